"""Wrappers that protect a whole optimizer from a bad step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from .casts import narrow
from .distributed import AxisNames, beside, split_over
from .measurement import first_nonfinite_leaf
from .thresholds.base import require_integer
from .trees import NamedLeaves, is_clippable
from .wrapped import as_transformation


class SkipNonfiniteState(NamedTuple):
    """The state of `skip_nonfinite`.

    Attributes:
        names: the wrapper's name, a key without leaves.
        leaves: the names of the updates' leaves, in the same way.
        skipped_count: int32 number of steps skipped so far.
        streak: int32 number of steps skipped in a row, up to now.
        alarm: bool, true from the step on that made the streak too long.
        nonfinite_leaf: int32 position of the first offending leaf in the latest skipped
            step, -1 before; `clipjax.nonfinite_path` gives its path.
        inner_state: the state of the wrapped optimizer.
    """

    names: dict[str, tuple[()]]
    leaves: dict[str, tuple[()]]
    skipped_count: Int[Array, ""]
    streak: Int[Array, ""]
    alarm: Bool[Array, ""]
    nonfinite_leaf: Int[Array, ""]
    inner_state: Any


def skip_nonfinite(
    inner: optax.GradientTransformation,
    *,
    alarm_after: int = 10,
    axis_name: AxisNames = None,
    name: str = "skip_nonfinite",
) -> optax.GradientTransformationExtraArgs:
    """Skips every step whose gradient has a NaN or inf, however many come in a row.

    On such a step the update is zero and the inner optimizer's state, its step count
    included, stays as it was, bit for bit. Wrap the whole chain, so that no momentum
    or schedule outside of it moves.

    | input | result |
    |---|---|
    | finite updates | exactly those of ``inner`` |
    | NaN or inf in any leaf | -0.0 in every leaf, inner state bit-identical |
    | ``alarm_after`` bad steps in a row | skipped too; ``alarm`` is raised and stays |
    | float32 parameters, bfloat16 gradients | work |

    Args:
        inner: the optimizer to protect.
        alarm_after: length of a streak of bad steps that raises the alarm, at least 1.
        axis_name: mesh or pmap axes that leaves are split over, inside ``shard_map``
            and ``pmap``, so that all devices decide alike.
        name: prefix of its metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: inner is no gradient transformation, or alarm_after no integer.
        ValueError: alarm_after is below 1.

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

    def init(params: Any) -> SkipNonfiniteState:
        return SkipNonfiniteState(
            names={name: ()},
            leaves={leaf: () for leaf in NamedLeaves.of(params).arrays},
            skipped_count=jnp.zeros((), jnp.int32),
            streak=jnp.zeros((), jnp.int32),
            alarm=jnp.zeros((), bool),
            nonfinite_leaf=jnp.full((), -1, jnp.int32),
            inner_state=inner.init(params),
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, SkipNonfiniteState]:
        leaves = NamedLeaves.of(updates)
        split = split_over(leaves, axis_name, params)
        leaf = first_nonfinite_leaf(leaves, split)
        is_bad = leaf >= 0
        new_updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra
        )
        streak = jnp.where(is_bad, optax.safe_increment(state.streak), 0)
        return (
            jax.tree.map(lambda update: nothing_if(is_bad, update), new_updates),
            SkipNonfiniteState(
                names=state.names,
                leaves=state.leaves,
                skipped_count=state.skipped_count + is_bad.astype(jnp.int32),
                streak=streak,
                alarm=state.alarm | (streak >= alarm_after),
                nonfinite_leaf=jnp.where(is_bad, leaf, state.nonfinite_leaf),
                inner_state=jax.tree.map(
                    lambda old, new: keep_if(is_bad, old, new),
                    state.inner_state,
                    inner_state,
                ),
            ),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def nothing_if(is_bad: jax.Array, update: Any) -> Any:
    """Replaces an update by one that leaves the parameters as they are."""
    # Adding +0.0 would turn a parameter of -0.0 into +0.0; adding -0.0 never does.
    if is_clippable(update):
        is_bad = beside(is_bad, update)
        return jnp.where(is_bad, jnp.full_like(update, -0.0), update)
    return update


def keep_if(is_bad: jax.Array, old: Any, new: Any) -> jax.Array:
    """Keeps the old value of a state's leaf, in its dtype either way."""
    if is_clippable(old):  # some optimizers let a memory drift to the updates' dtype
        new = narrow(jnp.asarray(new), jnp.asarray(old))
    return jnp.where(beside(is_bad, new), old, new)
