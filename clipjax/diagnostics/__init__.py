"""Measurements of norms, losses, optimizer states and networks, for analysis.

The functions test whether a run explodes, suggest thresholds and detect thresholds that
act as a learning rate; show the effect of a clip on gradient descent and on Adam; and
measure the smoothness of a loss, the growth of gradients through Jacobians, and the
influence of one example.
"""

from .adam import AdamLeaf as AdamLeaf
from .adam import AdamTrace as AdamTrace
from .adam import adam_report as adam_report
from .adam import adam_trace as adam_trace
from .alarms import OverClipping as OverClipping
from .alarms import over_clipping as over_clipping
from .descent import ClippedDescent as ClippedDescent
from .descent import clipped_descent as clipped_descent
from .example_influence import Influence as Influence
from .example_influence import LeaveOneOut as LeaveOneOut
from .example_influence import influence as influence
from .example_influence import leave_one_out as leave_one_out
from .geometry import direction_cosine as direction_cosine
from .geometry import leaf_norms as leaf_norms
from .growth import Explosion as Explosion
from .growth import explosion as explosion
from .growth import growth_factor as growth_factor
from .growth_monitor import Growth as Growth
from .growth_monitor import GrowthMonitor as GrowthMonitor
from .growth_monitor import GrowthState as GrowthState
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
from .suggestions import ThresholdRow as ThresholdRow
from .suggestions import ThresholdTable as ThresholdTable
from .suggestions import suggest_thresholds as suggest_thresholds
