"""Thresholds that depend on the loss, given to ``update`` as ``value=``."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core.blocks import Blocks, Values
from ..core.checks import Scalar, require_fraction, require_limits, require_number
from ..core.meshes import shared
from .averages import average_weight
from .base import Context, Threshold
from .combine import Combined
from .given import ThresholdLike, as_threshold


class LossState(NamedTuple):
    """The memory of `FromLoss`.

    Attributes:
        losses_seen: int32 number of finite losses.
        fast_average: their average over the latest steps.
        slow_average: their average over more steps.
        relaxed: the memory of the threshold that is relaxed, as of `Combined`.
    """

    losses_seen: jax.Array
    fast_average: jax.Array
    slow_average: jax.Array
    relaxed: Any


@dataclasses.dataclass(frozen=True, repr=False)
class FromLoss(Combined):
    """A threshold that grows while the loss has stopped falling."""

    relaxation: Scalar
    tolerance: Scalar
    fast_decay: Scalar
    slow_decay: Scalar
    cap: Scalar
    kind = "from-loss"

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """True: the state always holds two averages of the loss."""
        return True

    def init(self, blocks: Blocks, params: Any) -> LossState:
        # Two buffers, since a state that holds one buffer twice cannot be donated.
        fast, slow = (jnp.zeros((), blocks.leaves.dtype) for _ in range(2))
        relaxed = super().init(blocks, params)
        return LossState(jnp.zeros((), jnp.int32), fast, slow, relaxed)

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        cast = context.cast
        loss = shared(context.argument("value", "from_loss"), "value")
        loss = cast(loss).reshape(())
        seen, fast, slow, relaxed = state
        # A loss of NaN or inf does not enter.
        enters = jnp.isfinite(loss)
        fast, slow = (
            jnp.where(
                enters,
                old + average_weight(decay, seen, loss.dtype) * (loss - old),
                old,
            )
            for old, decay in ((fast, self.fast_decay), (slow, self.slow_decay))
        )
        size = jnp.maximum(jnp.abs(slow), jnp.finfo(slow.dtype).tiny)
        progress = jnp.maximum((slow - fast) / size, 0)
        factor = 1 + cast(self.relaxation) * jnp.exp(-progress / cast(self.tolerance))
        # The averages start out equal: at first that does not mean a plateau.
        past = jnp.asarray(1 / (1 - cast(self.slow_decay)))
        factor = jnp.where(seen.astype(past.dtype) < past, 1, factor)
        thresholds, relaxed = super().update(norms, relaxed, context)
        thresholds = [
            jnp.minimum(limit * factor, cast(self.cap)) for limit in thresholds
        ]
        seen = seen + enters.astype(jnp.int32)
        return thresholds, LossState(seen, fast, slow, relaxed)

    def join(self, limits, context):
        del context
        return limits[0]


def from_loss(
    threshold: ThresholdLike,
    *,
    relaxation: Scalar = 1.0,
    tolerance: Scalar = 0.01,
    fast_decay: Scalar = 0.9,
    slow_decay: Scalar = 0.99,
    cap: Scalar = math.inf,
) -> FromLoss:
    r"""Return a threshold that grows while the loss has stopped falling. Experimental.

    No published method does this; the form is clipjax's own and may change. With a fast
    and a slow exponential average of the loss,

    .. math::
        c = c_0 \bigl(1 + \kappa\, e^{-\max(q, 0) / q_0}\bigr), \qquad
        q = (L_\text{slow} - L_\text{fast}) / |L_\text{slow}|.

    Pass the loss as ``update(updates, state, params, value=loss)``. A loss that is NaN
    or infinite does not enter the averages. The threshold is c₀ until the slow average
    has seen as many losses as it effectively averages over, ``1 / (1 - slow_decay)``.

    Args:
        threshold: :math:`c_0`, anything that `clipjax.clip_by` accepts as a threshold.
        relaxation: κ, the largest relative increase: the threshold is at most (1 + κ)
            c₀.
        tolerance: q₀, the relative progress that counts as falling, above 0.
        fast_decay: weight of the past in the fast average, from 0 to 1.
        slow_decay: weight of the past in the slow average, from 0 to 1.
        cap: the largest threshold.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range; or, in ``update``, no loss is given.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> source = clipjax.thresholds.from_loss(1.0, slow_decay=0.5)
        >>> clip = clipjax.clip_by(source)
        >>> state = clip.init(jnp.ones(2))
        >>> for loss in (2.0, 2.0, 2.0):
        ...     _, state = clip.update(jnp.ones(2), state, value=loss)
        >>> print(state.clip_info.clip_threshold)
        2.0
    """
    require_number("relaxation", relaxation, infinite=False)
    require_number("tolerance", tolerance, lowest=1e-12, infinite=False)
    require_fraction("fast_decay", fast_decay)
    require_fraction("slow_decay", slow_decay)
    require_limits(0.0, cap)
    return FromLoss(
        (as_threshold(threshold),), relaxation, tolerance, fast_decay, slow_decay, cap
    )


@dataclasses.dataclass(frozen=True, repr=False)
class PolyakCap(Threshold):
    """The norm at which a step of SGD is as long as Polyak's step."""

    learning_rate: optax.ScalarOrSchedule
    lower_bound: Scalar
    kind = "polyak-cap"
    reads = "norms"

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        loss = shared(context.argument("value", "polyak_cap"), "value")
        loss = context.cast(loss).reshape(())
        gain = jnp.maximum(loss - context.cast(self.lower_bound), 0)
        rate = self.learning_rate
        rate = context.cast(rate(context.steps) if callable(rate) else rate)

        def limit(norm: jax.Array) -> jax.Array:
            divisor = rate * norm
            return jnp.where(
                divisor > 0, gain / jnp.where(divisor > 0, divisor, 1), jnp.inf
            )

        return list(map(limit, norms)), state


def polyak_cap(
    learning_rate: optax.ScalarOrSchedule, lower_bound: Scalar = 0.0
) -> PolyakCap:
    r"""Return a threshold that caps the step of SGD at the length of Polyak's step.

    .. math:: c = \frac{f - f^*}{\eta \lVert g \rVert}

    so that :math:`\eta \lVert u \rVert \le (f - f^*)/\lVert g \rVert`. Pass the loss f
    as ``update(updates, state, params, value=loss)``; at or below its bound the update
    is zero.

    Args:
        learning_rate: η of the SGD that follows, a number above 0 or a schedule.
        lower_bound: f*, the least loss there can be, a finite number.

    Raises:
        TypeError: an argument is not a number.
        ValueError: the learning rate is negative; or, in ``update``, no loss is given.

    Example:
        >>> import clipjax, optax
        >>> clip = clipjax.clip_by(clipjax.thresholds.polyak_cap(learning_rate=1.0))
        >>> optimizer = optax.chain(clip, optax.sgd(1.0))

    References:
        Loizou et al., `Stochastic Polyak step-size for SGD
        <https://arxiv.org/abs/2002.10542>`_, 2021, SPS_max with c = 1.
    """
    if not callable(learning_rate):
        require_number("learning_rate", learning_rate, infinite=False)
    require_number("lower_bound", lower_bound, lowest=-math.inf, infinite=False)
    return PolyakCap(learning_rate, lower_bound)
