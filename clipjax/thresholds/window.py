"""Thresholds from a window of the latest norms: quantiles, mean plus deviations."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from ..core.checks import Scalar, require_fraction, require_number, require_steps
from ..core.dtypes import inverse_power
from .history import Learnt, Memory, Remembered

# Lower bound for the standard deviation, relative to the mean: if norms hardly vary,
# rounding and drift must not count as outliers.
LEAST_DEVIATION = 1e-3


def in_ring(ring: jax.Array, count: jax.Array, value: jax.Array) -> jax.Array:
    """Return a ring buffer in which a value has taken the place of the oldest.

    Args:
        ring: values along the first axis.
        count: how many values have entered before: a scalar, or of the value's shape.
        value: the new one.
    """
    # A select, which XLA fuses into the code that reads the ring buffer; a scatter
    # would be a kernel of its own.
    oldest = count % ring.shape[0]
    oldest = oldest[None] if oldest.ndim else oldest
    return jnp.where(slots(ring) == oldest, value[None], ring)


def slots(ring: jax.Array) -> jax.Array:
    """Return the position along the first axis of each entry."""
    return jax.lax.broadcasted_iota(jnp.int32, ring.shape, 0)


@dataclasses.dataclass(frozen=True)
class Window(Memory):
    """The latest norms, in a ring buffer along a leading axis."""

    size: int

    def __post_init__(self):
        require_steps("window", self.size)

    def start(self, zeros):
        return jnp.zeros((self.size, *zeros.shape), zeros.dtype)

    def observe(self, memory, norm, seen):
        return in_ring(memory, seen, norm)

    def is_filled(self, memory, seen):
        """Return which slots hold a norm."""
        return slots(memory) < seen[None]


@dataclasses.dataclass(frozen=True)
class Quantile(Window):
    """A multiple of a quantile, interpolated as NumPy does."""

    q: Scalar
    factor: Scalar

    def threshold(self, memory, norm, seen):
        del norm
        # Sorting moves unused slots to the end.
        filled = jnp.where(self.is_filled(memory, seen), memory, jnp.inf)
        ordered = jnp.sort(filled, axis=0)
        count = jnp.minimum(seen, self.size)
        q = jnp.asarray(self.q, memory.dtype)
        position = q * (count - 1).astype(memory.dtype)
        below = jnp.floor(position).astype(jnp.int32)
        above = jnp.minimum(below + 1, count - 1)
        low, high = (
            jnp.take_along_axis(ordered, index[None], axis=0)[0]
            for index in (below, above)
        )
        share = position - below.astype(memory.dtype)
        return (low + (high - low) * share) * jnp.asarray(self.factor, memory.dtype)


@dataclasses.dataclass(frozen=True)
class MeanPlusStd(Window):
    """The mean, and a number of population standard deviations above it."""

    k: Scalar

    def threshold(self, memory, norm, seen):
        del norm
        is_filled = self.is_filled(memory, seen)
        count = jnp.minimum(seen, self.size).astype(memory.dtype)
        mean = jnp.sum(jnp.where(is_filled, memory, 0), axis=0) / count
        # Scaled so that the squares neither overflow nor underflow.
        power = inverse_power(mean)
        squares = jnp.square((memory - mean[None]) * power[None])
        squares = jnp.sum(jnp.where(is_filled, squares, 0), axis=0)
        deviation = jnp.sqrt(squares / count) / power
        deviation = jnp.maximum(deviation, LEAST_DEVIATION * mean)
        return mean + jnp.asarray(self.k, memory.dtype) * deviation


def quantile(
    q: Scalar,
    window: int = 1000,
    *,
    factor: Scalar = 1.0,
    include_current: bool = False,
    remember: Remembered = "raw",
    minimum_history: Scalar = 1,
    floor: Scalar = 0.0,
    cap: Scalar = math.inf,
) -> Learnt:
    """Return a threshold at an exact quantile of the latest norms.

    The state keeps ``window`` norms per block, and each step sorts them.

    Args:
        q: the quantile, from 0 to 1: 0.9 clips about one step in ten.
        window: how many norms to store.
        factor: a multiplier of the quantile.
        include_current: whether the current norm counts for the current threshold.
        remember: which norm is stored; see `clipjax.thresholds.Learnt`. Clipped norms
            lower the threshold: at 0.9 it then clips twice as often.
        minimum_history: how many norms to observe before the threshold applies; until
            then only the cap clips.
        floor: the least threshold, in the gradient's units.
        cap: the largest threshold.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax
        >>> clip = clipjax.clip_by(clipjax.thresholds.quantile(0.9, window=200))
        >>> clip
        clip_by(whole × l2 × hard × quantile(size=200, q=0.9, factor=1))
    """
    require_fraction("q", q)
    require_number("factor", factor, infinite=False)
    memory = Quantile(window, q, factor)
    return Learnt(
        memory,
        "quantile",
        include_current,
        remember,
        minimum_history,
        floor=floor,
        cap=cap,
    )


def mean_plus_std(
    window: int = 128,
    k: Scalar = 3.0,
    *,
    include_current: bool = False,
    remember: Remembered = "raw",
    minimum_history: Scalar = 1,
    floor: Scalar = 0.0,
    cap: Scalar = math.inf,
) -> Learnt:
    """Return a threshold at the mean of the latest norms plus standard deviations.

    The standard deviation is that of the population, at least a thousandth of the mean.

    Args:
        window: how many norms to store.
        k: the number of standard deviations.
        include_current: whether the current norm counts for the current threshold.
        remember: which norm is stored; see `clipjax.thresholds.Learnt`.
        minimum_history: how many norms to observe before the threshold applies; until
            then only the cap clips.
        floor: the least threshold, in the gradient's units.
        cap: the largest threshold.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax
        >>> source = clipjax.thresholds.mean_plus_std(128, 3.0, minimum_history=64)
        >>> clip = clipjax.clip_by(source)
    """
    require_number("k", k, infinite=False)
    memory = MeanPlusStd(window, k)
    return Learnt(
        memory,
        "mean-plus-std",
        include_current,
        remember,
        minimum_history,
        floor=floor,
        cap=cap,
    )
