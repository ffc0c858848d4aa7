"""Clip the gradient of each example by itself, before the sum."""

from .api import clipped_grad as clipped_grad
from .api import per_example_grad_norms as per_example_grad_norms
from .clipped import AuxiliaryOutput as AuxiliaryOutput
from .clipped import ClippedGrad as ClippedGrad
