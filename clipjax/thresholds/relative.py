"""Thresholds relative to something else that is measured in the same step."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..granularity import Blocks
from .base import Context, Threshold, require_number
from .combine import Combined
from .fixed import as_threshold


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
        params = context.measure(context.parameters("relative_to_params"))
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


@dataclasses.dataclass(frozen=True)
class TrustRatio(Threshold):
    """``n · τ‖w‖ / (η (n + ω‖w‖ + ε))``: the factor of LARC, as a length."""

    learning_rate: Any
    trust: Any
    decay: Any
    epsilon: Any
    kind = "trust-ratio"

    def __post_init__(self):
        """Checks the numbers."""
        _require_rate(self.learning_rate)
        require_number("trust_coefficient", self.trust, infinite=False)
        require_number("weight_decay", self.decay, infinite=False)
        require_number("eps", self.epsilon, infinite=False)

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Measures the parameters as they are before the update."""
        weights = context.measure(context.parameters("larc_clip"))
        cast = functools.partial(jnp.asarray, dtype=context.dtype)
        rate = _rate(self.learning_rate, context, "larc_clip")

        def limit(norm: jax.Array, weight: jax.Array) -> jax.Array:
            divisor = rate * (norm + cast(self.decay) * weight + cast(self.epsilon))
            allowed = norm * (cast(self.trust) * weight / divisor)
            return jnp.where((weight > 0) & (divisor > 0), allowed, jnp.inf)

        return jax.tree.map(limit, norms, weights), state


def _require_rate(rate: Any) -> None:
    if rate is not None and not callable(rate):
        require_number("learning_rate", rate, infinite=False)


def _rate(rate: Any, context: Context, who: str) -> jax.Array:
    """Gives the learning rate: a number, a schedule's value, or the extra argument."""
    if rate is None:
        rate = context.argument("learning_rate", who)
    elif callable(rate):
        rate = rate(context.count)
    return jnp.asarray(rate).astype(context.dtype)


@dataclasses.dataclass(frozen=True)
class RelativeToLearningRate(Combined):
    """A threshold times or divided by the learning rate."""

    learning_rate: Any
    proportional: bool
    kind = "relative-to-learning-rate"

    def _join(self, thresholds, context):
        rate = _rate(self.learning_rate, context, "relative_to_learning_rate")
        if self.proportional:
            return jax.tree.map(lambda value: value * rate, thresholds[0])
        return jax.tree.map(
            lambda value: jnp.where(
                rate > 0, value / jnp.where(rate > 0, rate, 1), jnp.inf
            ),
            thresholds[0],
        )


def relative_to_learning_rate(
    step: Any, learning_rate: Any = None, *, proportional: bool = False
) -> RelativeToLearningRate:
    r"""Couples a threshold with the learning rate η.

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
    if not isinstance(proportional, bool):
        raise TypeError(f"proportional must be True or False, got {proportional!r}")
    _require_rate(learning_rate)
    return RelativeToLearningRate((as_threshold(step),), learning_rate, proportional)
