"""Helpers of all wrappers: the inner transformation, its state, and bad steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..core.blocks import Blocks
from ..core.dtypes import narrow
from ..core.measure import first_nonfinite_leaf
from ..core.meshes import AxisNames, mesh_axes
from ..core.state import checked_state
from ..core.trees import Leaves, is_clippable
from ..granularity import whole


def as_transformation(
    argument: str, value: Any
) -> optax.GradientTransformationExtraArgs:
    """Return an argument as a transformation that accepts extra arguments.

    ``optax.MultiSteps``, which is not a transformation but contains one, is accepted.

    Raises:
        TypeError: the argument is neither.
    """
    if hasattr(value, "gradient_transformation"):
        value = value.gradient_transformation()
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(f"{argument} must be a gradient transformation, got {value!r}")
    return optax.with_extra_args_support(value)


def checked_own_state(
    state: Any,
    fresh: Callable[..., Any],
    who: str,
    inside: tuple[str, ...] = ("inner_state",),
) -> Any:
    """Return a wrapper's state, or raise an error that names the difference.

    Args:
        state: the state that was passed to ``update``.
        fresh: a function from the fields ``inside`` to the wrapper's initial state.
        who: the wrapper's name.
        inside: the fields that hold the states of inner transformations, which check
            them themselves.

    Raises:
        ValueError: the state is not this wrapper's.
    """
    nothing = dict.fromkeys(inside, ())
    own = state
    if set(inside) <= set(getattr(state, "_fields", ())):
        own = state._replace(**nothing)
    checked_state(own, lambda: fresh(**nothing), True, who)
    return state


def whole_tree(tree: Any, axis_name: AxisNames, params: Any = None) -> Blocks:
    """Return a tree of updates as one block."""
    leaves = Leaves.of(tree)
    return whole().of(leaves, mesh_axes(leaves, axis_name, params))


def first_bad_leaf(tree: Any, axis_name: AxisNames, params: Any = None) -> jax.Array:
    """Return the position of the first leaf of a tree with NaN or inf, or -1."""
    return first_nonfinite_leaf(whole_tree(tree, axis_name, params))


def no_update_if(is_bad: jax.Array, updates: Any) -> Any:
    """Return the updates or, on a bad step, ones that leave parameters unchanged."""

    def one(update: Any) -> Any:
        if not is_clippable(update):
            return update
        # -0.0, since adding +0.0 would turn a parameter of -0.0 into +0.0.
        return jnp.where(is_bad, jnp.full_like(update, -0.0), update)

    return jax.tree.map(one, updates)


def state_before_if(is_bad: jax.Array, old: Any, new: Any) -> Any:
    """Return the old state on a bad step, else the new one, in the old dtypes."""

    def one(old: Any, new: Any) -> jax.Array:
        if is_clippable(old):
            # Some optimizers return a memory in the updates' dtype.
            new = narrow(jnp.asarray(new), jnp.asarray(old))
        return jnp.where(is_bad, old, new)

    return jax.tree.map(one, old, new)
