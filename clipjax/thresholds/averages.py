"""Thresholds from running averages of the norms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Scalar, require_fraction, require_number
from ..core.dtypes import inverse_power
from .history import Learnt, Memory, Remembered, complement


@dataclasses.dataclass(frozen=True)
class Average(Memory):
    """A multiple of an exponential average with bias correction."""

    decay: Scalar
    multiplier: Scalar

    def observe(self, memory, norm, seen):
        return memory + average_weight(self.decay, seen, norm.dtype) * (norm - memory)

    def threshold(self, memory, norm, seen):
        del norm, seen
        return jnp.asarray(self.multiplier, memory.dtype) * memory


def average_weight(decay: Scalar, seen: jax.Array, dtype: Any) -> jax.Array:
    """Return the weight of the next value in a bias-corrected exponential average."""
    rest = bias_correction(decay, seen + 1, dtype)
    fresh = complement(decay, dtype)
    return jnp.where(seen == 0, 1, fresh / jnp.where(rest > 0, rest, 1))


def bias_correction(decay: Scalar, count: jax.Array, dtype: Any) -> jax.Array:
    """Return ``1 - decay^count`` without cancellation."""
    if isinstance(decay, jax.Array):
        logarithm = jnp.log(decay.astype(dtype))
    else:
        logarithm = math.log(decay) if decay > 0 else -math.inf
    return -jnp.expm1(count.astype(dtype) * logarithm)


def rms_average(root: jax.Array, value: jax.Array, weight: jax.Array) -> jax.Array:
    """Return ``√((1 - weight)·root² + weight·value²)``, without overflow of squares."""
    power = inverse_power(jnp.maximum(root, value))
    square = (1 - weight) * jnp.square(root * power)
    square = square + weight * jnp.square(value * power)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0) / power


@dataclasses.dataclass(frozen=True)
class StreamingQuantile(Memory):
    """A quantile estimate that moves up or down by a constant ratio."""

    q: Scalar
    rate: Scalar

    def observe(self, memory, norm, seen):
        rate, q = (jnp.asarray(x, norm.dtype) for x in (self.rate, self.q))
        is_below = (norm <= memory).astype(norm.dtype)
        moved = memory * jnp.exp(rate * (q - is_below))
        return jnp.where(seen == 0, norm, moved)

    def threshold(self, memory, norm, seen):
        del norm, seen
        return memory


class Moments(NamedTuple):
    """The average of norms, and the root of the average of squares or of the variance.

    Roots are stored, in the norms' units: squares of norms above 1e19 or below 1e-19
    leave the range of float32.
    """

    norms_mean: jax.Array
    norms_root: jax.Array


@dataclasses.dataclass(frozen=True)
class MomentRatio(Memory):
    """The average norm, divided by the root of the average square."""

    mean_decay: Scalar
    square_decay: Scalar
    epsilon: Scalar

    def start(self, zeros):
        return Moments(zeros, jnp.zeros_like(zeros))

    def observe(self, memory, norm, seen):
        weight = average_weight(self.mean_decay, seen, norm.dtype)
        mean = memory.norms_mean + weight * (norm - memory.norms_mean)
        weight = average_weight(self.square_decay, seen, norm.dtype)
        return Moments(mean, rms_average(memory.norms_root, norm, weight))

    def threshold(self, memory, norm, seen):
        del norm, seen
        mean, root = memory
        return mean / (root + jnp.asarray(self.epsilon, mean.dtype))


def ema(
    multiplier: Scalar,
    *,
    decay: Scalar = 0.99,
    include_current: bool = False,
    remember: Remembered | None = None,
    minimum_history: Scalar = 1,
    floor: Scalar = 0.0,
    cap: Scalar = math.inf,
) -> Learnt:
    """Return a threshold at a multiple of the exponential average of the norms.

    If clipped norms are averaged, a multiplier of at most 1 lowers the threshold to
    zero, since each clip lowers the next threshold. If raw norms are averaged, a single
    spike raises the threshold until the average has forgotten it. By default, clipped
    norms are averaged if the multiplier is above 1, and raw norms otherwise.

    Args:
        multiplier: the multiplier of the average.
        decay: weight of the past in the average, from 0 to 1; the first average is the
            first norm.
        include_current: whether the current norm counts for the current threshold.
        remember: which norm is averaged; see `clipjax.thresholds.Learnt`.
        minimum_history: how many norms to observe before the threshold applies; until
            then only the cap clips.
        floor: the least threshold, in the gradient's units.
        cap: the largest threshold.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or clipped norms are to be remembered
            with a multiplier of at most 1 and no floor.

    Example:
        >>> import clipjax
        >>> source = clipjax.thresholds.ema(2.0, decay=0.95, cap=10.0)
        >>> source
        ema(decay=0.95, multiplier=2, remember='clipped', cap=10)
        >>> clip = clipjax.clip_by(source)
    """
    require_number("multiplier", multiplier, infinite=False)
    require_fraction("decay", decay)
    is_number = not isinstance(multiplier, jax.Array) and not isinstance(
        floor, jax.Array
    )
    sinks = is_number and multiplier <= 1 and floor == 0
    if remember in ("clipped", "target") and sinks:
        raise ValueError(
            f"remember must be 'raw' or 'inliers', or floor above 0, with a multiplier "
            f"of {multiplier!r}: each clip would lower the next threshold"
        )
    remember = remember or ("raw" if is_number and multiplier <= 1 else "clipped")
    memory = Average(decay, multiplier)
    return Learnt(
        memory, "ema", include_current, remember, minimum_history, floor=floor, cap=cap
    )


def streaming_quantile(
    q: Scalar,
    rate: Scalar = 0.05,
    *,
    minimum_history: Scalar = 1,
    floor: Scalar = 0.0,
    cap: Scalar = math.inf,
) -> Learnt:
    """Return a threshold at an estimated quantile, which stores one number per block.

    The estimate starts at the first norm. A norm above it multiplies it by
    ``exp(rate·q)``, and one below by ``exp(-rate·(1 - q))``.

    Args:
        q: the quantile, from 0 to 1: 0.9 clips about one step in ten.
        rate: how fast the estimate moves, above 0.
        minimum_history: how many norms to observe before the threshold applies; until
            then only the cap clips.
        floor: the least threshold, in the gradient's units.
        cap: the largest threshold.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax
        >>> clip = clipjax.clip_by(clipjax.thresholds.streaming_quantile(0.9))

    References:
        Andrew, Thakkar, McMahan, Ramaswamy, `Differentially private learning with
        adaptive clipping <https://arxiv.org/abs/1905.03871>`_, 2021, without the noise.
    """
    require_fraction("q", q)
    require_number("rate", rate, infinite=False)
    memory = StreamingQuantile(q, rate)
    return Learnt(
        memory,
        "streaming-quantile",
        minimum_history=minimum_history,
        floor=floor,
        cap=cap,
    )


def moment_ratio(
    mean_decay: Scalar = 0.7, square_decay: Scalar = 0.9, *, epsilon: Scalar = 1e-8
) -> Learnt:
    """Return a threshold near 1: the average norm over the root of the average square.

    Use it with ``rules.normalise``; see `clipjax.gradient_stabilizer`. Both averages
    include the current norm.

    Args:
        mean_decay: weight of the past in the average norm, from 0 to 1.
        square_decay: weight of the past in the average square, from 0 to 1.
        epsilon: a constant added to the root, in the gradient's units.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax
        >>> source = clipjax.thresholds.moment_ratio()
        >>> clip = clipjax.clip_by(source, rule=clipjax.rules.normalise)
    """
    require_fraction("mean_decay", mean_decay)
    require_fraction("square_decay", square_decay)
    require_number("epsilon", epsilon, infinite=False)
    memory = MomentRatio(mean_decay, square_decay, epsilon)
    return Learnt(memory, "moment-ratio", include_current=True)
