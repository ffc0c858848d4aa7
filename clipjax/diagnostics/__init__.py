"""Measurements of trees, losses and networks, for analysis rather than for training."""

from .example_influence import Influence as Influence
from .example_influence import LeaveOneOut as LeaveOneOut
from .example_influence import influence as influence
from .example_influence import leave_one_out as leave_one_out
from .geometry import direction_cosine as direction_cosine
from .geometry import leaf_norms as leaf_norms
from .jacobian_products import JacobianProductReport as JacobianProductReport
from .jacobian_products import jacobian_product_report as jacobian_product_report
from .jacobians import JacobianReport as JacobianReport
from .jacobians import jacobian_report as jacobian_report
from .noise import NoiseScale as NoiseScale
from .noise import gradient_noise_scale as gradient_noise_scale
from .quantization import QuantizationReport as QuantizationReport
from .quantization import quantization_report as quantization_report
from .smoothness import Smoothness as Smoothness
from .smoothness import local_smoothness as local_smoothness
from .smoothness_fit import LeastL0 as LeastL0
from .smoothness_fit import SmoothnessFit as SmoothnessFit
from .smoothness_fit import fit_smoothness as fit_smoothness
from .smoothness_fit import least_l0 as least_l0
