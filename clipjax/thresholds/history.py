"""Thresholds learnt from the norms seen so far."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..granularity import Blocks
from .base import Context, Threshold, require_number


class WarmupState(NamedTuple):
    """The memory of `WarmupStatistic`.

    Attributes:
        steps: int32 number of norms observed.
        largest: the largest norm observed, per block.
    """

    steps: jax.Array
    largest: Blocks


@dataclasses.dataclass(frozen=True)
class WarmupStatistic(Threshold):
    """The largest of the first norms times a factor, then frozen."""

    steps: int
    factor: float
    floor: float
    cap: float
    kind = "warmup-statistic"
    remembers = True

    def __post_init__(self):
        """Checks the numbers."""
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise TypeError(f"steps must be an integer, got {self.steps!r}")
        require_number("steps", self.steps, lowest=1, infinite=False)
        require_number("factor", self.factor, infinite=False)
        require_number("floor", self.floor, infinite=False)
        require_number("cap", self.cap, lowest=self.floor)

    def init(self, context: Context) -> Any:
        """Has seen nothing."""
        return WarmupState(jnp.zeros((), jnp.int32), context.zeros())

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Observes the raw norm during the warm-up, where only the cap clips."""
        del context
        warming = state.steps < self.steps
        largest = jax.tree.map(
            lambda old, new: jnp.where(warming, jnp.maximum(old, new), old),
            state.largest,
            norms,
        )
        threshold = jax.tree.map(
            lambda value: jnp.where(
                warming, self.cap, jnp.clip(self.factor * value, self.floor, self.cap)
            ),
            largest,
        )
        steps = jnp.minimum(state.steps + 1, self.steps)
        return threshold, WarmupState(steps, largest)


def warmup_statistic(
    steps: int, factor: float = 1.0, *, floor: float = 0.0, cap: float = math.inf
) -> WarmupStatistic:
    """Takes the largest of the first norms as the threshold, then freezes it.

    Args:
        steps: how many finite norms to observe; only ``cap`` clips meanwhile.
        factor: what the largest norm is multiplied by, 1 or 1.5 by rule of thumb.
        floor: the threshold is at least this, in the gradient's units.
        cap: the threshold is at most this, from the first step on.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative, NaN, or the cap is below the floor.

    Example:
        >>> import clipjax
        >>> source = clipjax.thresholds.warmup_statistic(100, 1.5, floor=0.1, cap=10.0)
        >>> clip = clipjax.clip_by(source)
    """
    return WarmupStatistic(steps, factor, floor, cap)
