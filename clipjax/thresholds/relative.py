"""Thresholds relative to the parameters, the momentum or the learning rate."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..core.blocks import Values
from ..core.checks import Scalar, require_bool, require_number
from .base import Context, Threshold
from .combine import Combined
from .given import ThresholdLike, as_threshold


@dataclasses.dataclass(frozen=True, repr=False)
class RelativeToParams(Threshold):
    """``ratio · max(‖w‖, floor)``, with the parameters' blocks and norm."""

    ratio: Scalar
    floor: Scalar
    kind = "relative-to-params"

    def __post_init__(self):
        require_number("ratio", self.ratio)
        require_number("floor", self.floor, infinite=False)

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        del norms
        ratio, floor = context.cast(self.ratio), context.cast(self.floor)
        weights = context.measure(context.parameters("relative_to_params"))
        return [ratio * jnp.maximum(weight, floor) for weight in weights], state


def relative_to_params(ratio: Scalar, floor: Scalar = 1e-3) -> RelativeToParams:
    """Return a threshold at a fraction of the norm of each block's parameters.

    Args:
        ratio: the fraction, a number or array of at least 0.
        floor: a lower bound for the parameters' norm, in their units, so that
            zero-initialized parameters can change.

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
class RelativeToMomentum(Threshold):
    """``ratio · ‖m‖``, for m an optimizer's momentum before this step.

    m is the extra argument ``momentum``, a tree like the updates. Blocks without a
    momentum so far (m = 0) have the threshold ``initial``.
    """

    ratio: Scalar
    initial: Scalar
    kind = "relative-to-momentum"

    def __post_init__(self):
        require_number("ratio", self.ratio)
        require_number("max_norm", self.initial)

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        del norms
        momentum = context.argument("momentum", "clip_by_momentum")
        arrays = context.blocks.leaves.aligned(momentum, "momentum")
        ratio, initial = context.cast(self.ratio), context.cast(self.initial)
        lengths = context.measure(arrays)
        return [jnp.where(n > 0, ratio * n, initial) for n in lengths], state


@dataclasses.dataclass(frozen=True, repr=False)
class TrustRatio(Threshold):
    """``n · τ‖w‖ / (η (n + ω‖w‖ + ε))``: the factor of LARC, as a length."""

    learning_rate: optax.ScalarOrSchedule | None
    trust: Scalar
    decay: Scalar
    epsilon: Scalar
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
            # A block of infinite norm becomes NaN whatever its threshold; 0 avoids
            # inf times 0 here.
            norm = jnp.where(norm < jnp.inf, norm, 0)
            allowed = norm * (trust * weight / jnp.where(usable, divisor, 1))
            return jnp.where(usable, allowed, jnp.inf)

        return list(map(limit, norms, weights)), state


def require_rate(rate: optax.ScalarOrSchedule | None) -> None:
    """Check a learning rate that is a number."""
    if rate is not None and not callable(rate):
        require_number("learning_rate", rate, infinite=False)


def learning_rate_now(
    rate: optax.ScalarOrSchedule | None, context: Context, who: str
) -> jax.Array:
    """Return the learning rate: a number, a schedule's value, or the extra argument."""
    if rate is None:
        return context.cast(context.argument("learning_rate", who))
    return context.cast(rate(context.steps) if callable(rate) else rate)


@dataclasses.dataclass(frozen=True, repr=False)
class RelativeToLearningRate(Combined):
    """A threshold times or divided by the learning rate."""

    learning_rate: optax.ScalarOrSchedule | None
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
    step: ThresholdLike,
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    proportional: bool = False,
) -> RelativeToLearningRate:
    r"""Return a threshold divided by the learning rate η, or multiplied by it.

    By default :math:`c = s/\eta`, so that under SGD no step η·u is longer than s; with
    ``proportional``, :math:`c = s\,\eta`.

    Args:
        step: s, anything that `clipjax.clip_by` accepts as a threshold: with
            `relative_to_params` a fraction of the parameters' norm, as LARC does.
        learning_rate: η, a number, an array or a schedule; None to use the extra
            argument ``learning_rate`` of each update. At 0 nothing is clipped.
        proportional: whether to multiply by η instead of dividing by it.

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
