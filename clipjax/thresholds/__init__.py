"""Thresholds: how large a norm is allowed, and where that comes from."""

from .averages import ema as ema
from .averages import moment_ratio as moment_ratio
from .averages import streaming_quantile as streaming_quantile
from .base import Context as Context
from .base import Threshold as Threshold
from .combine import after as after
from .combine import maximum as maximum
from .combine import minimum as minimum
from .combine import scaled as scaled
from .entries import quantization_range as quantization_range
from .extremes import relative_to_previous as relative_to_previous
from .extremes import running_extremum as running_extremum
from .extremes import warmup_statistic as warmup_statistic
from .given import constant as constant
from .given import schedule as schedule
from .history import Learnt as Learnt
from .loss import from_loss as from_loss
from .loss import polyak_cap as polyak_cap
from .outliers import zscore as zscore
from .presets import rule_of_thumb as rule_of_thumb
from .relative import relative_to_learning_rate as relative_to_learning_rate
from .relative import relative_to_params as relative_to_params
from .smoothness import estimated_smoothness as estimated_smoothness
from .smoothness import from_smoothness as from_smoothness
from .window import mean_plus_std as mean_plus_std
from .window import quantile as quantile
