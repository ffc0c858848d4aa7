"""Thresholds for norms that are outliers by their z-score."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from ..core.checks import Scalar, require_choice, require_fraction, require_number
from .averages import Moments, rms_average
from .history import Learnt, Memory, Remembered, complement, reached
from .window import LEAST_DEVIATION

Mode = Literal["zscore", "mean", "percentile"]


@dataclasses.dataclass(frozen=True)
class ZScore(Memory):
    """Mean and variance: of all norms during the warm-up, then running averages."""

    z: Scalar
    decay: Scalar
    warmup: Scalar
    mode: Mode
    factor: Scalar
    epsilon: Scalar

    def start(self, zeros):
        return Moments(zeros, jnp.zeros_like(zeros))

    def observe(self, memory, norm, seen):
        # Welford's recurrence during the warm-up; then, in the order of the paper, the
        # variance about the new mean.
        count = (seen + 1).astype(norm.dtype)
        deviation = norm - memory.norms_mean
        mean = memory.norms_mean + deviation / count
        spread = jnp.sqrt(jnp.abs(deviation)) * jnp.sqrt(jnp.abs(norm - mean))
        exact = Moments(mean, rms_average(memory.norms_root, spread, 1 / count))
        fresh = complement(self.decay, norm.dtype)
        mean = memory.norms_mean + fresh * deviation
        root = rms_average(memory.norms_root, jnp.abs(norm - mean), fresh)
        is_warm = reached(seen, self.warmup)
        return jax.tree.map(
            lambda new, old: jnp.where(is_warm, new, old), Moments(mean, root), exact
        )

    def threshold(self, memory, norm, seen):
        del seen
        limit, factor, epsilon = (
            jnp.asarray(x, norm.dtype) for x in (self.z, self.factor, self.epsilon)
        )
        mean, deviation = memory
        deviation = jnp.maximum(deviation, LEAST_DEVIATION * mean)
        z = (norm - mean) / (deviation + epsilon)
        target = {
            "zscore": mean + limit**2 * deviation / jnp.maximum(z, limit),
            "mean": mean,
            "percentile": mean + limit * deviation,
        }[self.mode]
        is_outlier = norm > target if self.mode == "percentile" else z > limit
        return jnp.where(is_outlier, factor * target, jnp.inf)


def zscore(
    z: Scalar = 2.5,
    *,
    decay: Scalar = 0.97,
    warmup: Scalar = 25,
    mode: Mode = "zscore",
    factor: Scalar = 1.0,
    epsilon: Scalar = 1e-6,
    remember: Remembered = "target",
    floor: Scalar = 0.0,
    cap: Scalar = math.inf,
) -> Learnt:
    """Return a threshold for norms that are outliers by their z-score.

    Mean and variance are those of the first ``warmup`` norms, then exponential
    averages. The standard deviation is taken as at least a thousandth of the mean.

    Args:
        z: the z-score above which a norm is an outlier.
        decay: weight of the past in the averages, from 0 to 1.
        warmup: how many norms to know before clipping; only the cap clips meanwhile.
        mode: the length of an outlier: ``zscore`` (mean + z²·deviation / its z-score,
            which falls with the size of the outlier), ``mean``, or ``percentile``
            (mean + z·deviation).
        factor: a multiplier of that length.
        epsilon: added to the deviation in the z-score.
        remember: which norm is averaged; see `clipjax.thresholds.Learnt`.
        floor: the least threshold, in the gradient's units.
        cap: the largest threshold, also for norms that are no outliers.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax
        >>> clip = clipjax.clip_by(clipjax.thresholds.zscore(3.0, cap=1.0))
    """
    for name, value in [("z", z), ("factor", factor), ("epsilon", epsilon)]:
        require_number(name, value, infinite=False)
    require_number("warmup", warmup, lowest=1, infinite=False)
    require_fraction("decay", decay)
    require_choice("mode", mode, get_args(Mode))
    memory = ZScore(z, decay, warmup, mode, factor, epsilon)
    return Learnt(
        memory,
        "zscore",
        remember=remember,
        minimum_history=warmup,
        floor=floor,
        cap=cap,
    )
