"""Threshold sources: what is allowed, and from where."""

from .base import Context as Context
from .base import Threshold as Threshold
from .combine import after as after
from .combine import maximum as maximum
from .combine import minimum as minimum
from .combine import scaled as scaled
from .fixed import constant as constant
from .fixed import schedule as schedule
from .history import warmup_statistic as warmup_statistic
from .relative import relative_to_params as relative_to_params
