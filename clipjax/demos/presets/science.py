"""The options of the tasks from physics and of generative models."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from ..options import Choice, Positive, check, option
from .models import LAYERS, WIDTH

EXAMPLES = "each example's gradient to C, then the mean"


@dataclasses.dataclass(frozen=True)
class Potential:
    """Neural network for the Lennard-Jones potential, from energies and forces."""

    places: ClassVar[Mapping[str, str]] = {"per_example": EXAMPLES}

    width: int = option(64, WIDTH, "width of the inner layers")
    contacts: float = option(
        0.02, Positive(), "fraction of the pairs that are close contacts"
    )
    batch: int = option(32, WIDTH, "pairs per step")

    def __post_init__(self):
        """Check every field, and that the fraction is one."""
        check(self)
        if self.contacts > 1:
            raise ValueError(f"--contacts {self.contacts}: expected at most 1")


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """Denoiser of two moons, with a weight v(t) for each noise level."""

    places: ClassVar[Mapping[str, str]] = {
        "per_example": f"{EXAMPLES}; gradients include the weight v(t)",
        "time": "each example's unweighted gradient to C/v(t), then times v(t)",
        "time_weighted": "each example's weighted gradient to C/v(t)",
    }

    weighting: str = option(
        "snr",
        Choice(("snr", "vlb", "none")),
        "weight v(t) of a noise level: signal-to-noise ratio, variational bound, or 1",
    )
    width: int = option(64, WIDTH, "width of the inner layers")
    batch: int = option(128, WIDTH, "points per step")

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class Flow:
    """Volume-preserving normalizing flow."""

    places: ClassVar[Mapping[str, str]] = {}

    layers: int = option(4, LAYERS, "number of layers")
    width: int = option(64, WIDTH, "width of the inner layers")
    stretch: float = option(
        5.0,
        Positive(),
        "largest singular value of the data's diagonal map",
    )
    bend: float = option(2.0, Positive(), "how far the data bend along a parabola")
    batch: int = option(128, WIDTH, "points per step")

    def __post_init__(self):
        check(self)
