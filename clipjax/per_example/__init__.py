"""Clipping each example by itself, before the sum."""

from .api import AuxiliaryOutput as AuxiliaryOutput
from .api import ClippedGrad as ClippedGrad
from .api import clipped_grad as clipped_grad
from .api import per_example_grad_norms as per_example_grad_norms
