"""The options of the task in half precision."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import ClassVar

from ..options import Positive, check, option
from .models import LAYERS, WIDTH, epochs_option, mnist_option

LARGER = 16  # how many times the other loss scale is as large


@dataclasses.dataclass(frozen=True)
class Precision:
    """ReLU network on MNIST in float16, with its parameters in float32."""

    places: ClassVar[Mapping[str, str]] = {
        "scaled": "before the gradient is unscaled: the wrong order",
        f"x{LARGER}": f"after it is unscaled, with {LARGER} times the loss scale",
        f"scaled_x{LARGER}": f"the wrong order with {LARGER} times the loss scale",
        "single": "in float32 throughout, without a loss scale",
    }

    scale: float = option(1024.0, Positive(), "factor on the loss in float16")
    depth: int = option(4, LAYERS, "number of linear layers")
    width: int = option(64, WIDTH, "width of the inner layers")
    batch: int = option(64, WIDTH, "images per step")
    epochs: int | None = epochs_option()
    mnist: pathlib.Path | None = mnist_option()

    def __post_init__(self):
        check(self)
