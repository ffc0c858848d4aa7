"""Thresholds relative to something else that is measured in the same step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..granularity import Blocks
from .base import Context, Threshold, require_number


@dataclasses.dataclass(frozen=True)
class RelativeToParams(Threshold):
    """``ratio · max(‖w‖, floor)``, with the parameters' blocks and norm."""

    ratio: Any
    floor: Any
    kind = "relative-to-params"

    def __post_init__(self):
        """Checks the numbers."""
        require_number("ratio", self.ratio)
        require_number("floor", self.floor, infinite=False)

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Measures the parameters as they are before the update."""
        params = context.measure_params("relative_to_params")
        return (
            jax.tree.map(
                lambda weight: (
                    self._cast(self.ratio, weight)
                    * jnp.maximum(weight, self._cast(self.floor, weight))
                ),
                params,
            ),
            state,
        )

    @staticmethod
    def _cast(value: Any, like: jax.Array) -> jax.Array:
        return jnp.asarray(value).astype(like.dtype)


def relative_to_params(ratio: Any, floor: Any = 1e-3) -> RelativeToParams:
    """Allows each block a fraction of its parameters' norm.

    Args:
        ratio: the fraction, a number or array of at least 0.
        floor: parameters whose norm is below this count as if it were this, so that
            zero-initialised ones can move.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative or NaN; or, in ``update``, params are
            not given.

    Example:
        >>> import clipjax
        >>> clip = clipjax.clip_by(
        ...     clipjax.thresholds.relative_to_params(0.01),
        ...     granularity=clipjax.granularity.unit(),
        ... )
    """
    return RelativeToParams(ratio, floor)
