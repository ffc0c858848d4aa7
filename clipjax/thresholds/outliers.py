"""Thresholds for norms that are outliers: by their z-score, or by their logarithm's."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from ..core.checks import Scalar, require_choice, require_fraction, require_number
from .averages import Moments, average_weight, rms_average
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


class LogMoments(NamedTuple):
    """The average of the logarithms of norms, and their variance about it."""

    logs_mean: jax.Array
    logs_variance: jax.Array


@dataclasses.dataclass(frozen=True)
class LogMeanPlusStd(Memory):
    """Exponential averages, with bias correction, of the logarithms of norms."""

    k: Scalar
    decay: Scalar

    def start(self, zeros):
        return LogMoments(zeros, jnp.zeros_like(zeros))

    def observe(self, memory, norm, seen):
        mean, variance = memory
        weight = average_weight(self.decay, seen, norm.dtype)
        # A norm of zero never enters the averages, but computing its logarithm would
        # raise an error under jax_debug_nans.
        deviation = jnp.log(jnp.where(norm > 0, norm, 1)) - mean
        variance = (1 - weight) * (variance + weight * jnp.square(deviation))
        return LogMoments(mean + weight * deviation, variance)

    def threshold(self, memory, norm, seen):
        del norm, seen
        mean, variance = memory
        # To first order, a relative change of a thousandth changes the logarithm by
        # 0.001.
        deviation = jnp.sqrt(jnp.maximum(variance, LEAST_DEVIATION**2))
        return jnp.exp(mean + jnp.asarray(self.k, mean.dtype) * deviation)


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
        warmup: how many norms to observe before clipping; until then only the cap
            clips.
        mode: the length of an outlier: ``zscore`` (mean + z²·deviation / its z-score,
            which falls with the size of the outlier), ``mean``, or ``percentile``
            (mean + z·deviation).
        factor: a multiplier of that length.
        epsilon: added to the deviation in the z-score.
        remember: which norm is averaged; see `clipjax.thresholds.Learnt`.
        floor: the least threshold, in the gradient's units.
        cap: the largest threshold; it also clips norms that are not outliers.

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


def log_mean_plus_std(
    k: Scalar = 4.0,
    *,
    decay: Scalar = 0.99,
    include_current: bool = False,
    remember: Remembered = "clipped",
    minimum_history: Scalar = 25,
    floor: Scalar = 0.0,
    cap: Scalar = math.inf,
) -> Learnt:
    r"""Return a threshold at the mean log norm plus standard deviations of log norms.

    .. math:: c = \exp(\mu + k \sigma), \qquad
        \mu, \sigma^2 = \text{exponential mean and variance of } \log n

    Norms of gradients are about log-normal, so that one ``k`` clips about the same
    fraction of steps in any model, and the threshold scales with the gradient: norms
    times a constant yield thresholds times that constant. The standard deviation is
    taken as at least 0.001, which is a thousandth of the norm.

    | input | result |
    |---|---|
    | fewer than ``minimum_history`` norms observed | only the cap clips |
    | zero, NaN or inf | never enters the averages |
    | a constant history of norms n | n · exp(0.001 k) |
    | exp(μ + kσ) beyond the dtype | inf: only the cap clips |

    Args:
        k: the number of standard deviations.
        decay: weight of the past in the averages, from 0 to 1; the first average is the
            first logarithm.
        include_current: whether the current norm counts for the current threshold.
        remember: which norm is averaged; see `clipjax.thresholds.Learnt`.
        minimum_history: how many norms to observe before the threshold applies; until
            then only the cap clips.
        floor: the least threshold, in the gradient's units.
        cap: the largest threshold.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        Clip, or skip the whole step, as the paper does:

        >>> import clipjax, optax
        >>> source = clipjax.thresholds.log_mean_plus_std(4.0)
        >>> clip = clipjax.clip_by(source)
        >>> optimizer = clipjax.skip_on_spike(optax.adam(1e-3), limit=source)

    References:
        Chen et al., `The best of both worlds: combining recent advances in neural
        machine translation <https://arxiv.org/abs/1804.09849>`_, 2018, which skips
        steps beyond four standard deviations; ``adaptive_clipping_fn`` of
        TensorFlow 1 clips at two.
    """
    require_number("k", k, infinite=False)
    require_fraction("decay", decay)
    return Learnt(
        LogMeanPlusStd(k, decay),
        "log-mean-plus-std",
        include_current,
        remember,
        minimum_history,
        floor=floor,
        cap=cap,
    )
