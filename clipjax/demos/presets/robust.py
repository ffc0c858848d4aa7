"""The options of the tasks whose data have wrong examples."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import ClassVar

from ..options import Choice, Fraction, Whole, check, option
from .models import LAYERS, WIDTH, epochs_option, mnist_option

PER_EXAMPLE = {"per_example": "each example's gradient alone, before the mean"}


@dataclasses.dataclass(frozen=True)
class Outliers:
    """Linear regression, some of whose examples are wrong."""

    places: ClassVar[Mapping[str, str]] = PER_EXAMPLE

    kind: str = option(
        "shift",
        Choice(("none", "shift", "symmetric", "leverage")),
        "what is wrong: targets too high, targets off to both sides, or targets too "
        "high and inputs too large",
    )
    outliers: float = option(0.1, Fraction(), "fraction of the examples that are wrong")
    examples: int = option(200, WIDTH, "examples")
    features: int = option(5, Whole(1000), "inputs of the regression")

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class LabelNoise:
    """ReLU network on MNIST, some of whose labels are wrong."""

    places: ClassVar[Mapping[str, str]] = PER_EXAMPLE

    noise: float = option(0.3, Fraction(), "fraction of the labels that are wrong")
    depth: int = option(3, LAYERS, "number of linear layers")
    width: int = option(64, WIDTH, "width of the inner layers")
    batch: int = option(64, WIDTH, "images per step")
    epochs: int | None = epochs_option()
    mnist: pathlib.Path | None = mnist_option()

    def __post_init__(self):
        check(self)
