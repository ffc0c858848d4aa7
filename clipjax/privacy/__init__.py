"""Differentially private training on gradients that are clipped per example."""

from .audit import AuditResult as AuditResult
from .audit import audit as audit
from .canaries import Canaries as Canaries
from .canaries import canaries as canaries
from .canaries import canary_scores as canary_scores
from .canaries import with_canaries as with_canaries
from .noise import NoiseState as NoiseState
from .noise import gaussian_noise as gaussian_noise
from .noise import laplace_noise as laplace_noise
from .optimizers import dp_adam as dp_adam
from .optimizers import dp_sgd as dp_sgd
