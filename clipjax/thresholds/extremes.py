"""Thresholds from the largest, the smallest, the first or the previous norms."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from ..core.checks import (
    Scalar,
    require_bool,
    require_fraction,
    require_number,
    require_steps,
)
from .history import Learnt, Memory, Remembered
from .window import Quantile


@dataclasses.dataclass(frozen=True)
class Extremum(Memory):
    """A multiple of the largest or smallest norm so far."""

    largest: bool
    factor: Scalar

    def observe(self, memory, norm, seen):
        pick = jnp.maximum if self.largest else jnp.minimum
        return jnp.where(seen == 0, norm, pick(memory, norm))

    def threshold(self, memory, norm, seen):
        del norm, seen
        return jnp.asarray(self.factor, memory.dtype) * memory


@dataclasses.dataclass(frozen=True)
class Previous(Memory):
    """A multiple of the previous norm, whose decrease per step is limited."""

    growth: Scalar
    slowest: Scalar

    def observe(self, memory, norm, seen):
        least = jnp.asarray(self.slowest, norm.dtype) * memory
        return jnp.where(seen == 0, norm, jnp.maximum(norm, least))

    def threshold(self, memory, norm, seen):
        del norm, seen
        return jnp.asarray(self.growth, memory.dtype) * memory


def running_extremum(
    largest: bool = True,
    factor: Scalar = 1.0,
    *,
    include_current: bool = False,
    remember: Remembered = "raw",
    minimum_history: Scalar = 1,
    floor: Scalar = 0.0,
    cap: Scalar = math.inf,
) -> Learnt:
    """Return a threshold at a multiple of the largest, or the smallest, norm so far.

    A single spike raises the largest norm permanently: set a cap, or use a quantile.

    Args:
        largest: False for the smallest.
        factor: a multiplier of the largest or smallest norm.
        include_current: whether the current norm counts for the current threshold.
        remember: which norm is compared; see `clipjax.thresholds.Learnt`.
        minimum_history: how many norms to observe before the threshold applies; until
            then only the cap clips.
        floor: the least threshold, in the gradient's units.
        cap: the largest threshold.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax
        >>> source = clipjax.thresholds.running_extremum(False, 2.0, minimum_history=10)
        >>> clip = clipjax.clip_by(source)
    """
    require_bool("largest", largest)
    require_number("factor", factor, infinite=False)
    return Learnt(
        Extremum(largest, factor),
        "running-extremum",
        include_current,
        remember,
        minimum_history,
        floor=floor,
        cap=cap,
    )


def warmup_statistic(
    steps: int,
    factor: Scalar = 1.0,
    *,
    quantile: Scalar | None = None,
    floor: Scalar = 0.0,
    cap: Scalar = math.inf,
) -> Learnt:
    """Return a threshold that is computed from the first norms and then stays fixed.

    The statistic is the largest of the first norms, or a quantile of them. A single
    spike among them inflates the largest norm; a quantile is robust to it, and a cap
    limits it. With a quantile, the state stores all ``steps`` norms.

    Args:
        steps: how many norms to observe; until then only ``cap`` clips.
        factor: a multiplier of the statistic: by rules of thumb 1 or 1.5 for the
            largest norm, 0.5 for the quantile 0.99.
        quantile: from 0 to 1; None for the largest norm.
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
    require_steps("steps", steps)
    require_number("factor", factor, infinite=False)
    if quantile is None:
        memory: Memory = Extremum(True, factor)
    else:
        require_fraction("quantile", quantile)
        memory = Quantile(steps, quantile, factor)
    return Learnt(
        memory,
        "warmup-statistic",
        minimum_history=steps,
        learning_steps=steps,
        floor=floor,
        cap=cap,
    )


def relative_to_previous(
    growth: Scalar = 1.01,
    *,
    slowest_decay: Scalar = 0.5,
    floor: Scalar = 0.0,
    cap: Scalar = math.inf,
) -> Learnt:
    """Return a threshold at a multiple of the previous norm after the clip.

    Args:
        growth: the largest ratio of one norm to the one before, at least 1.
        slowest_decay: the least ratio of one remembered norm to the one before, so that
            a single tiny gradient does not stop the next ones; 0 for no limit.
        floor: the least threshold, in the gradient's units.
        cap: the largest threshold, also for the first norm.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range, or growth below 1.

    Example:
        >>> import clipjax
        >>> source = clipjax.thresholds.relative_to_previous(1.01)
        >>> source
        relative-to-previous(growth=1.01, slowest=0.5, remember='clipped')
        >>> clip = clipjax.clip_by(source)

    References:
        Chen et al., `Fira <https://arxiv.org/abs/2410.01623>`_, 2024, for the
        norm-growth limiter, which has no limit to the decay.
    """
    require_number("growth", growth, lowest=1.0, infinite=False)
    require_fraction("slowest_decay", slowest_decay)
    return Learnt(
        Previous(growth, slowest_decay),
        "relative-to-previous",
        remember="clipped",
        floor=floor,
        cap=cap,
    )
