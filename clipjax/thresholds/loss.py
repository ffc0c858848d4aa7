"""Thresholds that depend on the loss, given to ``update`` as ``value=``."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..distributed import shared
from ..granularity import Blocks
from .averages import average_weight
from .base import Context, Threshold, require_number
from .combine import Combined
from .fixed import as_threshold
from .history import require_fraction, require_limits


class LossState(NamedTuple):
    """The memory of `FromLoss`.

    Attributes:
        seen: int32 number of finite losses.
        fast: their average over the latest steps.
        slow: their average over more steps.
        base: the state of the threshold that is relaxed.
    """

    seen: jax.Array
    fast: jax.Array
    slow: jax.Array
    base: Any


@dataclasses.dataclass(frozen=True)
class FromLoss(Combined):
    """A threshold that is relaxed where the loss has stopped falling."""

    relaxation: Any
    tolerance: Any
    fast_decay: Any
    slow_decay: Any
    cap: Any
    kind = "from-loss"

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Two averages of the loss."""
        return True

    def init(self, context: Context) -> LossState:
        """Has seen no loss."""
        zero = jnp.zeros((), context.dtype)
        base = self.sources[0].init(context)
        return LossState(jnp.zeros((), jnp.int32), zero, zero, base)

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Lets the loss in, unless it is NaN or inf, and compares the averages."""
        cast = functools.partial(jnp.asarray, dtype=context.dtype)
        loss = shared(context.argument("value", "from_loss"), "value")
        loss = loss.astype(context.dtype).reshape(())
        enters = jnp.isfinite(loss)
        fast, slow = (
            jnp.where(
                enters,
                old + average_weight(decay, state.seen, loss.dtype) * (loss - old),
                old,
            )
            for old, decay in (
                (state.fast, self.fast_decay),
                (state.slow, self.slow_decay),
            )
        )
        size = jnp.maximum(jnp.abs(slow), jnp.finfo(slow.dtype).tiny)
        progress = jnp.maximum((slow - fast) / size, 0)
        relaxed = 1 + cast(self.relaxation) * jnp.exp(-progress / cast(self.tolerance))
        # The averages start out equal: at first that does not mean a plateau.
        past = jnp.asarray(1 / (1 - cast(self.slow_decay)))
        relaxed = jnp.where(state.seen.astype(past.dtype) < past, 1, relaxed)
        threshold, base = self.sources[0].update(norms, state.base, context)
        threshold = jax.tree.map(
            lambda value: jnp.minimum(value * relaxed, cast(self.cap)), threshold
        )
        seen = state.seen + enters.astype(jnp.int32)
        return threshold, LossState(seen, fast, slow, base)


def from_loss(
    threshold: Any,
    *,
    relaxation: Any = 1.0,
    tolerance: Any = 0.01,
    fast_decay: Any = 0.9,
    slow_decay: Any = 0.99,
    cap: Any = math.inf,
) -> FromLoss:
    r"""Relaxes a threshold where the loss has stopped falling. Experimental.

    No published method does this; the form is clipjax's own and may change. With a fast
    and a slow exponential average of the loss,

    .. math::
        c = c_0 \bigl(1 + \kappa\, e^{-\max(q, 0) / q_0}\bigr), \qquad
        q = (L_\text{slow} - L_\text{fast}) / |L_\text{slow}|.

    The loss comes as ``update(updates, state, params, value=loss)``. One that is NaN or
    infinite is left out. Nothing is relaxed before the slow average has as many losses
    as it remembers, ``1 / (1 - slow_decay)``.

    Args:
        threshold: :math:`c_0`, anything that `clipjax.clip_by` accepts as a threshold.
        relaxation: κ, by how much the threshold grows at most, relative to itself.
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
        >>> print(state.info.threshold)
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


@dataclasses.dataclass(frozen=True)
class PolyakCap(Threshold):
    """The norm with which a step of SGD is as long as Polyak's."""

    learning_rate: Any
    lower_bound: Any
    kind = "polyak-cap"

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Divides what there is to gain by the norm and the learning rate."""
        cast = functools.partial(jnp.asarray, dtype=context.dtype)
        loss = shared(context.argument("value", "polyak_cap"), "value")
        loss = cast(loss).reshape(())
        gain = jnp.maximum(loss - cast(self.lower_bound), 0)
        rate = self.learning_rate
        rate = cast(rate(context.count) if callable(rate) else rate)
        return (
            jax.tree.map(
                lambda norm: jnp.where(norm > 0, gain / (rate * norm), jnp.inf), norms
            ),
            state,
        )


def polyak_cap(learning_rate: Any, lower_bound: Any = 0.0) -> PolyakCap:
    r"""Caps the step of SGD at the length of Polyak's, from the loss.

    .. math:: c = \frac{f - f^*}{\eta \lVert g \rVert}

    so that :math:`\eta \lVert u \rVert \le (f - f^*)/\lVert g \rVert`. The loss f
    comes as ``update(updates, state, params, value=loss)``; at or below its bound
    nothing moves.

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
