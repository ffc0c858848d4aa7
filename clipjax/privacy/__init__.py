"""Differentially private training on gradients that are clipped per example."""

from .noise import NoiseState as NoiseState
from .noise import gaussian_noise as gaussian_noise
from .noise import laplace_noise as laplace_noise
from .optimizers import dp_adam as dp_adam
from .optimizers import dp_sgd as dp_sgd
from .sampling import PoissonSampler as PoissonSampler
from .virtual import VirtualState as VirtualState
from .virtual import virtual_batches as virtual_batches
