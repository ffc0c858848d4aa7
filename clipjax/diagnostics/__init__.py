"""Measurements for analysis rather than for training.

Functions of gradient norms, of optimizer states and of losses: whether a run explodes,
whether a threshold acts as a learning rate, which threshold suits a run, and what a
clip does to gradient descent and to Adam.
"""

from .adam import AdamLeaf as AdamLeaf
from .adam import AdamTrace as AdamTrace
from .adam import adam_report as adam_report
from .adam import adam_trace as adam_trace
from .alarms import OverClipping as OverClipping
from .alarms import over_clipping as over_clipping
from .descent import ClippedDescent as ClippedDescent
from .descent import clipped_descent as clipped_descent
from .growth import Explosion as Explosion
from .growth import explosion as explosion
from .growth import growth_factor as growth_factor
from .growth_monitor import Growth as Growth
from .growth_monitor import GrowthMonitor as GrowthMonitor
from .growth_monitor import GrowthState as GrowthState
from .suggestions import ThresholdRow as ThresholdRow
from .suggestions import ThresholdTable as ThresholdTable
from .suggestions import suggest_thresholds as suggest_thresholds
