"""Thresholds that do not depend on the gradient: numbers, tables, schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..granularity import Blocks
from .base import Context, Threshold, require_number


@dataclasses.dataclass(frozen=True)
class Constant(Threshold):
    """A number, an array, or a prefix tree of those; None means not clipped.

    Python and NumPy numbers are kept in the clip's state, where they can be edited
    between steps without a retrace. JAX arrays are read anew at every update, so
    that ``optax.inject_hyperparams`` and closures decide.

    Attributes:
        value: the number, array or tree.
        argument: what errors call it.
    """

    value: Any = dataclasses.field(compare=False)
    argument: str = dataclasses.field(default="threshold", compare=False)
    _key: Any = dataclasses.field(init=False, repr=False)
    kind = "constant"

    def __post_init__(self):
        """Checks every number of the tree."""
        leaves, treedef = jax.tree_util.tree_flatten(
            self.value, is_leaf=lambda leaf: leaf is None
        )
        for leaf in leaves:
            if leaf is not None:
                require_number(self.argument, leaf)
        object.__setattr__(self, "_key", (treedef, tuple(map(_identity, leaves))))

    def _in_state(self) -> bool:
        return not any(isinstance(x, jax.Array) for x in jax.tree.leaves(self.value))

    def _blocks(self, context: Context) -> Blocks:
        is_leaf = jax.tree_util.all_leaves([self.value], is_leaf=lambda x: x is None)
        if is_leaf:
            value = jnp.inf if self.value is None else self.value
            return jnp.asarray(value).astype(context.dtype)
        unclipped = jax.tree.map(
            lambda entry: jnp.inf if entry is None else entry,
            self.value,
            is_leaf=lambda entry: entry is None,
        )
        return context.table(unclipped)

    def init(self, context: Context) -> Any:
        """Puts numbers where they can be edited."""
        return self._blocks(context) if self._in_state() else ()

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Reads the state, or the arrays."""
        del norms
        return (state if self._in_state() else self._blocks(context)), state


def _identity(leaf: Any) -> Any:
    """Makes a hashable stand-in; arrays on a device are compared by identity."""
    if isinstance(leaf, np.ndarray):
        return (leaf.shape, leaf.dtype.str, leaf.tobytes())
    return id(leaf) if isinstance(leaf, jax.Array) else leaf


@dataclasses.dataclass(frozen=True)
class Schedule(Threshold):
    """An Optax schedule: a function of the number of updates so far."""

    function: Callable[[Any], Any]
    kind = "schedule"

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Evaluates the schedule; the first value is ``function(0)``."""
        del norms
        return jnp.asarray(self.function(context.count), context.dtype), state


def constant(value: Any) -> Constant:
    """Makes a fixed threshold; see `Constant`. Plain numbers need no such call.

    Args:
        value: a number of at least 0, an array, or a prefix tree of those. 0 stops
            everything; None and ``inf`` clip nothing.
    """
    return Constant(value)


def schedule(function: Callable[[Any], Any]) -> Schedule:
    """Makes a threshold of an Optax schedule. Plain schedules need no such call.

    Args:
        function: gives the threshold, in the gradient's units, from the int32 number
            of updates so far. Where it gives a negative number or NaN, the update is
            zero and the state says so.
    """
    if not callable(function):
        raise TypeError(f"function must be a schedule, got {function!r}")
    return Schedule(function)


def as_threshold(value: Any, argument: str = "threshold") -> Threshold:
    """Reads the ``threshold`` argument of `clipjax.clip_by`.

    Args:
        value: what was given.
        argument: its name, for errors.

    Raises:
        TypeError: a bool, a string, or something else that is no threshold.
        ValueError: a number is negative or NaN.
    """
    if isinstance(value, Threshold):
        return value
    if isinstance(value, type) or isinstance(value, str | bytes):
        raise TypeError(
            f"{argument} must be a number, an array, a schedule, a tree of those or a "
            f"Threshold, got {value!r}"
        )
    return Schedule(value) if callable(value) else Constant(value, argument)
