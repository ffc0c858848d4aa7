"""The options of the tasks with two players."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from ..options import NotNegative, Positive, Whole, check, option
from .models import WIDTH


@dataclasses.dataclass(frozen=True)
class Ring:
    """Generator against discriminator on a ring of eight modes, both at every step."""

    places: ClassVar[Mapping[str, str]] = {
        "generator": "the generator's gradient alone",
        "discriminator": "the discriminator's gradient alone",
        "both": "each player's by its own norm, as without a place; the report "
        "tells the norms of the generator's",
    }

    noise: int = option(2, WIDTH, "dimension of the generator's input noise")
    width: int = option(64, WIDTH, "width of the inner layers")
    batch: int = option(256, WIDTH, "real points, and generated ones, per step")
    radius: float = option(1.0, Positive(), "radius of the ring of modes")
    deviation: float = option(0.1, Positive(), "standard deviation of a mode")

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class Critic(Ring):
    """Generator against Wasserstein critic on a ring of eight modes."""

    places: ClassVar[Mapping[str, str]] = {
        "generator": "the generator's gradient alone",
        "critic": "the critic's gradient alone",
        "both": "each player's by its own norm, as without a place; the report "
        "tells the norms of the critic's",
    }

    critic_steps: int = option(
        5, Whole(), "steps of the critic per step of the generator"
    )
    penalty: float = option(
        0.1, NotNegative(), "factor on the mean of (slope of the critic - 1)²; 0: none"
    )
    weight_clip: float = option(
        0.0, NotNegative(), "largest absolute weight of the critic; 0: no limit"
    )
