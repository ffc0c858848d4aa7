"""A wrapper that skips steps with a spike in the loss or in the gradient's norm."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ..core.checks import require_bool, require_integer, require_number
from ..core.clip import require_name
from ..core.measure import measure
from ..core.meshes import AxisNames, mesh_axes
from ..core.trees import Leaves
from ..norms import l2
from .inner import (
    as_transformation,
    checked_own_state,
    no_update_if,
    state_before_if,
    whole_tree,
)


class SkipOnSpikeState(NamedTuple):
    """The state of `skip_on_spike`.

    Attributes:
        skip_names: the wrapper's name, a key without leaves.
        skipped_count: int32 number of steps skipped so far.
        streak: int32 number of latest steps that were skipped in a row.
        alarm: bool, true from the first streak of ``alarm_after`` steps on.
        is_spike: bool, whether the latest step was skipped.
        accepted: int32 number of steps not skipped. Set it to 0 to forget the history,
            so that the wrapper learns a new level.
        history: the latest accepted norms, under ``norm``, and losses, under ``loss``
            if it is watched: ring buffers of shape ``(window,)``, float32, or float64
            where any parameter is.
        inner_state: the state of the wrapped optimizer.
    """

    skip_names: dict[str, tuple[()]]
    skipped_count: Int[Array, ""]
    streak: Int[Array, ""]
    alarm: Bool[Array, ""]
    is_spike: Bool[Array, ""]
    accepted: Int[Array, ""]
    history: dict[str, Float[Array, " window"]]
    inner_state: Any


def skip_on_spike(
    inner: optax.GradientTransformation,
    *,
    window: int = 128,
    sigma: float = 6.0,
    tolerance: float = 0.15,
    minimum_history: int | None = None,
    loss: bool = True,
    alarm_after: int = 10,
    axis_name: AxisNames = None,
    name: str = "skip_on_spike",
) -> optax.GradientTransformationExtraArgs:
    r"""Skip a step whose loss or gradient norm lies far above the latest ones.

    .. math::
        x - \bar x > \max(\sigma s, \, \tau \lvert \bar x \rvert)

    Here :math:`x` is the loss, or the L2 norm of the whole gradient as it comes in, and
    :math:`\bar x` and :math:`s` are mean and sample standard deviation of the latest
    accepted ones. On such a step the update is zero, and the inner optimizer's state,
    including its step count, does not change by a bit. Rejected values never enter the
    history. So if the level rises permanently, all steps are skipped: watch ``alarm``,
    and set ``accepted`` in the state to 0 to learn the new level.

    Wrap the whole chain, including the clip. If the clip is the first in the chain, it
    measures the same norm, and under ``jit`` XLA computes the common sum once.

    | input | result |
    |---|---|
    | no spike | exactly the updates of ``inner`` |
    | spike in the loss or the norm | -0.0 in every leaf, inner state bit-identical |
    | NaN or inf in either, a norm beyond the dtype | likewise, whatever the history |
    | fewer than ``minimum_history`` steps accepted | finite steps are never skipped |
    | a rise of at most ``tolerance`` · mean | never a spike, however even the history |
    | growth by 1 % per step | never a spike, even after a constant history |
    | a drop | never a spike |
    | the history is all zeros | finite steps are never skipped |
    | ``alarm_after`` spikes in a row | also skipped; ``alarm`` is set, and stays |
    | `clipjax.skip_nonfinite` around it, or in it | works; the outer one counts |
    | a state that is not this wrapper's, None included | ValueError |

    Args:
        inner: the optimizer to protect.
        window: how many accepted steps are remembered, at least 2.
        sigma: the rise above the mean, in standard deviations, from which on a value is
            a spike.
        tolerance: the smallest rise of a spike, as a fraction of the mean's magnitude;
            0 for sigma alone.
        minimum_history: how many steps must have been accepted before a step can be
            skipped, from 2 to ``window``; by default half the window.
        loss: whether to watch the loss besides the norm. Pass it to update, as
            ``value=loss``.
        alarm_after: length of a streak of skipped steps that sets the alarm.
        axis_name: mesh or pmap axes that leaves are split over, inside ``shard_map``
            and ``pmap``, so that all devices take the same decision. A loss that
            differs over them is averaged.
        name: prefix of its metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``. The inner optimizer gets all
        extra arguments, ``value`` included.

    Raises:
        TypeError: inner is no gradient transformation, or a number is of a wrong type.
        ValueError: a number is out of range, or update is not given ``value``.

    Example:
        >>> import clipjax, optax, jax.numpy as jnp
        >>> optimizer = clipjax.skip_on_spike(optax.sgd(0.1), minimum_history=2)
        >>> params = jnp.ones(2)
        >>> state = optimizer.init(params)
        >>> for loss in (2.0, 2.1, 9.0):
        ...     _, state = optimizer.update(jnp.ones(2), state, params, value=loss)
        ...     print(state.is_spike, state.accepted)
        False 1
        False 2
        True 2

    References:
        OLMo team, `2 OLMo 2 Furious <https://arxiv.org/abs/2501.00656>`_, 2025. Their
        code, and that of Levanter and MaxText, use the same window and sigma, but enter
        rejected values into the history and have no tolerance.
    """
    inner = as_transformation("inner", inner)
    require_integer("window", window, lowest=2)
    least = max(2, window // 2) if minimum_history is None else minimum_history
    require_integer("minimum_history", least, lowest=2)
    if least > window:
        raise ValueError(f"minimum_history must be at most {window=}, got {least!r}")
    require_integer("alarm_after", alarm_after, lowest=1)
    require_number("sigma", sigma, infinite=False)
    require_number("tolerance", tolerance, infinite=False)
    require_bool("loss", loss)
    require_name(name)
    watched = ("loss", "norm") if loss else ("norm",)

    def fresh(inner_state: Any, dtype: Any = jnp.float32) -> SkipOnSpikeState:
        return SkipOnSpikeState(
            skip_names={name: ()},
            skipped_count=jnp.zeros((), jnp.int32),
            streak=jnp.zeros((), jnp.int32),
            alarm=jnp.zeros((), bool),
            is_spike=jnp.zeros((), bool),
            accepted=jnp.zeros((), jnp.int32),
            history={key: jnp.zeros(window, dtype) for key in watched},
            inner_state=inner_state,
        )

    def init(params: Any) -> SkipOnSpikeState:
        return fresh(inner.init(params), Leaves.of(params).dtype)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, SkipOnSpikeState]:
        state = checked_own_state(state, fresh, "skip_on_spike")
        blocks = whole_tree(updates, axis_name, params)
        (norm,) = measure(l2, blocks, blocks.leaves.arrays).norms
        values = {"norm": norm}
        if loss:
            values["loss"] = _loss(extra.get("value"), axis_name)
        is_spike = jnp.zeros((), bool)
        for key, past in state.history.items():
            values[key] = values[key].astype(past.dtype)
            is_high = _is_high(values[key], past, state.accepted, sigma, tolerance)
            is_spike |= is_high & (state.accepted >= least)
            is_spike |= ~jnp.isfinite(values[key])

        new_updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra
        )
        streak = jnp.where(is_spike, optax.safe_increment(state.streak), 0)
        accepted = optax.safe_increment(state.accepted)
        position = state.accepted % window
        return no_update_if(is_spike, new_updates), SkipOnSpikeState(
            skip_names=state.skip_names,
            skipped_count=state.skipped_count + is_spike.astype(jnp.int32),
            streak=streak,
            alarm=state.alarm | (streak >= alarm_after),
            is_spike=is_spike,
            accepted=jnp.where(is_spike, state.accepted, accepted),
            history={
                key: past.at[position].set(
                    jnp.where(is_spike, past[position], values[key])
                )
                for key, past in state.history.items()
            },
            inner_state=state_before_if(is_spike, state.inner_state, inner_state),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _is_high(
    value: jax.Array,
    past: jax.Array,
    accepted: jax.Array,
    sigma: float,
    tolerance: float,
) -> jax.Array:
    """Return whether a value is a spike over ``accepted`` entries of a ring buffer."""
    counts = jnp.arange(past.size) < accepted
    peak = jnp.max(jnp.where(counts, jnp.abs(past), 0))
    has_scale = peak > 0
    # Relative to the largest entry, so that no square overflows.
    scale = jnp.where(has_scale, peak, 1)
    past, value = jnp.where(counts, past / scale, 0), value / scale
    number = jnp.minimum(accepted, past.size).astype(past.dtype)
    mean = jnp.sum(past) / jnp.maximum(number, 1)
    squares = jnp.where(counts, jnp.square(past - mean), 0)
    deviation = jnp.sqrt(jnp.sum(squares) / jnp.maximum(number - 1, 1))
    rise = jnp.maximum(sigma * deviation, tolerance * jnp.abs(mean))
    return has_scale & (value - mean > rise)


def _loss(value: Any, axis_name: AxisNames) -> jax.Array:
    """Return the loss, averaged over the axes over which it differs."""
    if value is None:
        raise ValueError(
            "skip_on_spike needs the loss: call update(updates, state, params, "
            "value=loss), or build it with loss=False to watch the norm only"
        )
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(f"value must be a scalar loss, got shape {value.shape}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(jnp.float32)
    (axes,) = mesh_axes(Leaves.of({"value": value}), axis_name)
    return jax.lax.pmean(value, axes) if axes else value
