"""A wrapper that skips steps whose gradient has NaN or infinity."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from ..core.checks import require_integer, require_name
from ..core.meshes import AxisNames
from .inner import (
    as_transformation,
    checked_own_state,
    first_bad_leaf,
    no_update_if,
    state_before_if,
)
from .record import SkipRecord, empty_record, next_record


class SkipNonfiniteState(NamedTuple):
    """The state of `skip_nonfinite`.

    Attributes:
        skip_names: the wrapper's name, a key without leaves.
        skipped_count: int32 number of steps skipped so far.
        streak: int32 number of steps skipped in a row up to the latest one; 0 if that
            was not skipped.
        alarm: bool, true from the first streak of ``alarm_after`` steps on.
        nonfinite_leaf: int32 position of the first offending leaf in the latest skipped
            step, -1 before; `clipjax.nonfinite_path` gives its path.
        skip_record: the latest skipped steps; `clipjax.skipped_steps` reads it.
        inner_state: the state of the wrapped optimizer.
    """

    skip_names: dict[str, tuple[()]]
    skipped_count: Int[Array, ""]
    streak: Int[Array, ""]
    alarm: Bool[Array, ""]
    nonfinite_leaf: Int[Array, ""]
    skip_record: SkipRecord
    inner_state: Any


def skip_nonfinite(
    inner: optax.GradientTransformation,
    *,
    alarm_after: int = 10,
    record_size: int = 8,
    axis_name: AxisNames = None,
    name: str = "skip_nonfinite",
) -> optax.GradientTransformationExtraArgs:
    """Skip every step whose gradient has a NaN or inf, however many come in a row.

    On such a step the update is zero, and the inner optimizer's state, including its
    step count, does not change by a bit. Wrap the whole chain, so that no momentum or
    schedule outside it changes.

    | input | result |
    |---|---|
    | finite updates | exactly those of ``inner`` |
    | NaN or inf in any leaf | -0.0 in every leaf, inner state bit-identical |
    | ``alarm_after`` bad steps in a row | also skipped; ``alarm`` turns true for good |
    | float32 parameters, bfloat16 gradients | work |
    | a state that is not this wrapper's, None included | ValueError |

    Args:
        inner: the optimizer to protect.
        alarm_after: length of a streak of bad steps that sets the alarm, at least 1.
        record_size: how many of the latest skipped steps `clipjax.skipped_steps` lists,
            with ``batch_id`` if that is passed to update.
        axis_name: mesh or pmap axes that leaves are split over, inside ``shard_map``
            and ``pmap``, so that all devices take the same decision.
        name: prefix of its metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: inner is not a gradient transformation, or a number is not an
            integer.
        ValueError: a number is below 1, or name is empty or not a string.

    Example:
        >>> import clipjax, optax, jax.numpy as jnp
        >>> optimizer = clipjax.skip_nonfinite(optax.adam(1e-3))
        >>> params = jnp.ones(2)
        >>> state = optimizer.init(params)
        >>> bad = jnp.array([jnp.nan, 1.0])
        >>> updates, state = optimizer.update(bad, state, params)
        >>> print(optax.apply_updates(params, updates), state.skipped_count)
        [1. 1.] 1
    """
    inner = as_transformation("inner", inner)
    require_integer("alarm_after", alarm_after, 1)
    require_integer("record_size", record_size, 1)
    require_name(name)

    def fresh(inner_state: Any) -> SkipNonfiniteState:
        return SkipNonfiniteState(
            skip_names={name: ()},
            skipped_count=jnp.zeros((), jnp.int32),
            streak=jnp.zeros((), jnp.int32),
            alarm=jnp.zeros((), bool),
            nonfinite_leaf=jnp.full((), -1, jnp.int32),
            skip_record=empty_record(record_size),
            inner_state=inner_state,
        )

    def init(params: Any) -> SkipNonfiniteState:
        return fresh(inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, SkipNonfiniteState]:
        state = checked_own_state(state, fresh, "skip_nonfinite")
        leaf = first_bad_leaf(updates, axis_name, params)
        is_bad = leaf >= 0
        new_updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra
        )
        streak = jnp.where(is_bad, optax.safe_increment(state.streak), 0)
        return no_update_if(is_bad, new_updates), SkipNonfiniteState(
            skip_names=state.skip_names,
            skipped_count=state.skipped_count + is_bad.astype(jnp.int32),
            streak=streak,
            alarm=state.alarm | (streak >= alarm_after),
            nonfinite_leaf=jnp.where(is_bad, leaf, state.nonfinite_leaf),
            skip_record=next_record(
                state.skip_record, is_bad, state.skipped_count, leaf, extra
            ),
            inner_state=state_before_if(is_bad, state.inner_state, inner_state),
        )

    return optax.GradientTransformationExtraArgs(init, update)
