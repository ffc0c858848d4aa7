"""Thresholds relative to something else that is measured in the same step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..core.blocks import Values
from ..core.checks import require_bool, require_number
from .base import Context, Threshold
from .combine import Combined
from .given import ThresholdLike, as_threshold


@dataclasses.dataclass(frozen=True, repr=False)
class RelativeToParams(Threshold):
    """``ratio · max(‖w‖, floor)``, with the parameters' blocks and norm."""

    ratio: Any
    floor: Any
    kind = "relative-to-params"

    def __post_init__(self):
        require_number("ratio", self.ratio)
        require_number("floor", self.floor, infinite=False)

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        del norms
        ratio, floor = context.cast(self.ratio), context.cast(self.floor)
        weights = context.measure(context.parameters("relative_to_params"))
        return [ratio * jnp.maximum(weight, floor) for weight in weights], state


def relative_to_params(ratio: Any, floor: Any = 1e-3) -> RelativeToParams:
    """Allow each block a fraction of its parameters' norm.

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


@dataclasses.dataclass(frozen=True, repr=False)
class TrustRatio(Threshold):
    """``n · τ‖w‖ / (η (n + ω‖w‖ + ε))``: the factor of LARC, as a length."""

    learning_rate: Any
    trust: Any
    decay: Any
    epsilon: Any
    kind = "trust-ratio"
    reads = "norms"

    def __post_init__(self):
        require_rate(self.learning_rate)
        require_number("trust_coefficient", self.trust, infinite=False)
        require_number("weight_decay", self.decay, infinite=False)
        require_number("eps", self.epsilon, infinite=False)

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        weights = context.measure(context.parameters("larc_clip"))
        rate = learning_rate_now(self.learning_rate, context, "larc_clip")
        decay, epsilon = context.cast(self.decay), context.cast(self.epsilon)
        trust = context.cast(self.trust)

        def limit(norm: jax.Array, weight: jax.Array) -> jax.Array:
            divisor = rate * (norm + decay * weight + epsilon)
            usable = (weight > 0) & (divisor > 0)
            # An infinite norm cancels: the share of it that is allowed is not needed.
            norm = jnp.where(norm < jnp.inf, norm, 0)
            allowed = norm * (trust * weight / jnp.where(usable, divisor, 1))
            return jnp.where(usable, allowed, jnp.inf)

        return list(map(limit, norms, weights)), state


def require_rate(rate: Any) -> None:
    """Check a learning rate that is a number."""
    if rate is not None and not callable(rate):
        require_number("learning_rate", rate, infinite=False)


def learning_rate_now(rate: Any, context: Context, who: str) -> jax.Array:
    """Return the learning rate: a number, a schedule's value, or the extra argument."""
    if rate is None:
        rate = context.argument("learning_rate", who)
    elif callable(rate):
        rate = rate(context.steps)
    return context.cast(rate)


@dataclasses.dataclass(frozen=True, repr=False)
class RelativeToLearningRate(Combined):
    """A threshold times or divided by the learning rate."""

    learning_rate: Any
    proportional: bool
    kind = "relative-to-learning-rate"

    def join(self, limits, context):
        who = "relative_to_learning_rate"
        rate = learning_rate_now(self.learning_rate, context, who)
        if self.proportional:
            return limits[0] * rate
        quotient = limits[0] / jnp.where(rate > 0, rate, 1)
        return jnp.where(rate > 0, quotient, jnp.inf)


def relative_to_learning_rate(
    step: ThresholdLike, learning_rate: Any = None, *, proportional: bool = False
) -> RelativeToLearningRate:
    r"""Couple a threshold with the learning rate η.

    By default :math:`c = s/\eta`, so that under SGD no step η·u is longer than s; with
    ``proportional``, :math:`c = s\,\eta`.

    Args:
        step: s, anything that `clipjax.clip_by` accepts as a threshold: with
            `relative_to_params` a fraction of the parameters' norm, as LARC does.
        learning_rate: η, a number, an array or a schedule; None to read the extra
            argument ``learning_rate`` of each update. At 0 nothing is clipped.
        proportional: multiply rather than divide.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a number is negative or NaN; or, in ``update``, the learning rate is
            not given.

    Example:
        >>> import clipjax, optax
        >>> rate = optax.warmup_cosine_decay_schedule(0.0, 0.1, 100, 1000)
        >>> clip = clipjax.clip_by(
        ...     clipjax.thresholds.relative_to_learning_rate(0.05, rate)
        ... )
    """
    require_bool("proportional", proportional)
    require_rate(learning_rate)
    return RelativeToLearningRate(
        (as_threshold(step, "step"),), learning_rate, proportional
    )
