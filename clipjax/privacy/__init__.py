"""Differentially private training on gradients that are clipped per example."""

from ..per_example.thresholds import GroupThresholds as GroupThresholds
from .accounting import Guarantee as Guarantee
from .accounting import delta as delta
from .accounting import epsilon as epsilon
from .accounting import guarantee as guarantee
from .accounting import noise_multiplier as noise_multiplier
from .adaptive import PrivateThreshold as PrivateThreshold
from .adaptive import QuantileState as QuantileState
from .adaptive import quantile_threshold as quantile_threshold
from .adaptive import split_noise_multiplier as split_noise_multiplier
from .metrics import noisy_clip_fraction as noisy_clip_fraction
from .noise import NoiseState as NoiseState
from .noise import gaussian_noise as gaussian_noise
from .noise import laplace_noise as laplace_noise
from .optimizers import dp_adam as dp_adam
from .optimizers import dp_sgd as dp_sgd
from .sampling import PoissonSampler as PoissonSampler
from .slack import WithSlack as WithSlack
from .slack import slack_threshold as slack_threshold
from .slack import with_slack as with_slack
from .splits import split_threshold as split_threshold
from .virtual import VirtualState as VirtualState
from .virtual import virtual_batches as virtual_batches
