"""Thresholds for single entries, learnt from all entries of a leaf or from each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..casts import widen
from ..distributed import beside, pmax
from ..granularity import Blocks
from ..sums import largest as largest_of
from .averages import average_weight
from .base import Context, Threshold, require_number
from .history import complement, reached, require_fraction


class MaximumState(NamedTuple):
    """The memory of `AverageMaximum`.

    Attributes:
        seen: int32 number of maxima other than zero, per leaf.
        average: their average, per leaf.
    """

    seen: dict[str, jax.Array]
    average: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class AverageMaximum(Threshold):
    """Brings a leaf's outliers down together, the largest to the average maximum.

    Entries above the average T of the leaf's maxima keep their proportions: they are
    multiplied by T / max.
    """

    decay: Any
    kind = "average-maximum"
    remembers = True

    def __post_init__(self):
        """Checks the decay."""
        require_fraction("gamma3", self.decay)

    def init(self, context: Context) -> MaximumState:
        """Has seen nothing."""
        leaves = _by_leaf(context.zeros(), self.kind)
        return MaximumState(
            {name: jnp.zeros((), jnp.int32) for name in leaves},
            {name: jnp.zeros((), leaf.dtype) for name, leaf in leaves.items()},
        )

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Lets today's maximum in, then compares."""
        thresholds, seen, average = {}, dict(state.seen), dict(state.average)
        leaves = _by_leaf(norms, self.kind)
        maxima = context.joined(
            {n: largest_of(_no_nan(sizes)) for n, sizes in leaves.items()},
            pmax,
        )
        for name, sizes in leaves.items():
            largest = beside(maxima[name], sizes)
            # The engine gives infinite entries the largest number; they are no outliers
            # to bring down, but for the next clip or the guard to see.
            is_finite = largest < jnp.finfo(sizes.dtype).max
            enters = (largest > 0) & is_finite
            weight = average_weight(self.decay, seen[name], sizes.dtype)
            mean = average[name] + weight * (largest - average[name])
            average[name] = jnp.where(enters, mean, average[name])
            seen[name] = seen[name] + enters.astype(jnp.int32)
            scale = average[name] / jnp.where(enters, largest, 1)
            is_outlier = (sizes > average[name]) & is_finite
            thresholds[name] = jnp.where(is_outlier, scale * sizes, jnp.inf)
        return thresholds, MaximumState(seen, average)


@dataclasses.dataclass(frozen=True)
class SecondMoment(Threshold):
    """``√(θ·v)``, for v the optimizer's average of squares before this step.

    It comes as the extra argument ``second_moment``, a tree like the updates. Entries
    of which nothing is known yet (v = 0) are not clipped.
    """

    theta: Any
    start: Any
    period: Any
    kind = "second-moment"

    def __post_init__(self):
        """Checks the numbers."""
        require_number("theta", self.theta)
        require_number("start", self.start, infinite=False)
        if self.period is not None:
            require_number("period", self.period, lowest=1, infinite=False)

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Waits at the start, and after each reset, until v means something."""
        step = context.count + 1
        is_ready = reached(step, self.start)
        if self.period is not None:
            period = jnp.asarray(self.period).astype(step.dtype)
            is_ready &= reached(step % period, self.start)
        moment = context.argument("second_moment", "spam_clip")
        arrays = context.aligned(moment, "second_moment").arrays
        theta = jnp.asarray(self.theta, context.dtype)
        # Of complex entries the average of |g|² is kept in a complex array.
        squares = {name: jnp.real(v) for name, v in arrays.items()}
        limit = {
            name: jnp.where(
                is_ready & (v > 0), jnp.sqrt(theta * v.astype(context.dtype)), jnp.inf
            )
            for name, v in squares.items()
        }
        return {name: limit[name] for name in _by_leaf(norms, self.kind)}, state


@dataclasses.dataclass(frozen=True)
class PowerAverage(Threshold):
    """``(average of |g|^α)^(1/α)``, entry by entry.

    The gradient g comes as the extra argument ``gradient``, since what is clipped by
    this is a momentum. The average starts at zero, as published, without a correction.
    """

    decay: Any
    power: Any
    kind = "power-average"
    remembers = True

    def __post_init__(self):
        """Checks the numbers."""
        require_fraction("b2", self.decay)
        require_number("alpha", self.power, lowest=1e-3, infinite=False)

    def init(self, context: Context) -> dict[str, jax.Array]:
        """Starts at zero."""
        return dict(_by_leaf(context.zeros(), self.kind))

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Lets today's gradient in first."""
        gradient = context.argument("gradient", "acclip")
        arrays = context.aligned(gradient, "gradient").arrays
        cast = functools.partial(jnp.asarray, dtype=context.dtype)
        power = cast(self.power)
        fresh = complement(self.decay, context.dtype)
        new = dict(state)
        for name in _by_leaf(norms, self.kind):
            size = jnp.abs(widen(arrays[name], context.dtype))
            new[name] = state[name] + fresh * (size**power - state[name])
        return {name: new[name] ** (1 / power) for name in norms}, new


def _no_nan(sizes: jax.Array) -> jax.Array:
    """Takes NaN for infinite: a maximum over devices may drop it."""
    return jnp.where(jnp.isnan(sizes), jnp.finfo(sizes.dtype).max, sizes)


def _by_leaf(blocks: Blocks, kind: str) -> Mapping[str, jax.Array]:
    if not isinstance(blocks, dict):
        raise ValueError(f"threshold {kind} needs granularity.element()")
    return blocks
