"""Differentially private training on gradients that are clipped per example."""

from ..per_example.thresholds import GroupThresholds as GroupThresholds
from .noise import NoiseState as NoiseState
from .noise import gaussian_noise as gaussian_noise
from .noise import laplace_noise as laplace_noise
from .optimizers import dp_adam as dp_adam
from .optimizers import dp_sgd as dp_sgd
from .splits import split_threshold as split_threshold
