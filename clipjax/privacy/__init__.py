"""Differentially private training on gradients that are clipped per example."""

from .accounting import Guarantee as Guarantee
from .accounting import delta as delta
from .accounting import epsilon as epsilon
from .accounting import guarantee as guarantee
from .accounting import noise_multiplier as noise_multiplier
from .noise import NoiseState as NoiseState
from .noise import gaussian_noise as gaussian_noise
from .noise import laplace_noise as laplace_noise
from .optimizers import dp_adam as dp_adam
from .optimizers import dp_sgd as dp_sgd
