"""Thresholds that do not depend on the gradient: numbers, arrays, tables, schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.blocks import Values
from ..core.checks import require_number
from .base import Context, Threshold

Table = Mapping[str, Any] | list[Any] | tuple[Any, ...]
Number = float | np.number | np.ndarray | jax.Array
ThresholdLike = Number | Callable[[Any], Any] | Table | Threshold


@dataclasses.dataclass(frozen=True, repr=False)
class Constant(Threshold):
    """A Python or NumPy number: a constant of the program, not a part of the state."""

    value: float
    kind = "constant"

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        del norms
        blocks = context.blocks
        return blocks.fill(np.asarray(self.value, blocks.leaves.dtype)), state


@dataclasses.dataclass(frozen=True, repr=False)
class Given(Threshold):
    """An array, read at every update: one number, or one for each block."""

    value: jax.Array = dataclasses.field(compare=False)
    _key: int = dataclasses.field(init=False, repr=False)
    kind = "constant"

    def __post_init__(self):
        object.__setattr__(self, "_key", id(self.value))

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        del norms
        value, blocks = context.cast(self.value), context.blocks
        if value.size == 1:
            return blocks.fill(value.reshape(())), state
        if value.shape != (blocks.count,):
            raise ValueError(
                f"threshold of shape {value.shape} does not fit {blocks.count} blocks; "
                "pass one number, or one per block"
            )
        return blocks.of_vector(value), state


@dataclasses.dataclass(frozen=True, repr=False)
class ByBlock(Threshold):
    """A table: one number per group, or a prefix tree with one per leaf.

    None stands for inf. NumPy and Python numbers are constants of the program; JAX
    arrays are read at every update.
    """

    value: Any = dataclasses.field(compare=False)
    argument: str = dataclasses.field(default="threshold", compare=False, repr=False)
    _key: Any = dataclasses.field(init=False, repr=False)
    kind = "constant"

    def __post_init__(self):
        entries, treedef = jax.tree.flatten(self.value, is_leaf=_is_none)
        for entry in entries:
            if entry is not None:
                require_number(self.argument, entry)
        object.__setattr__(self, "_key", (treedef, tuple(map(_identity, entries))))

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        del norms
        entries = jax.tree.map(
            lambda entry: np.inf if entry is None else entry,
            self.value,
            is_leaf=_is_none,
        )
        table = context.table(entries, self.argument)
        return [_as_entry(entry, context) for entry in table], state


@dataclasses.dataclass(frozen=True, repr=False)
class Schedule(Threshold):
    """An Optax schedule: a function of the number of updates so far."""

    function: Callable[[Any], Any]
    kind = "schedule"

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        del norms
        value = context.cast(self.function(context.steps))
        return context.blocks.fill(value), state


def constant(value: ThresholdLike) -> Threshold:
    """Return a fixed threshold; clips also accept the number, array or table itself.

    Args:
        value: a number of at least 0, an array, or a prefix tree of those. With 0 all
            updates are 0; None and ``inf`` clip nothing.

    Raises:
        TypeError: value is none of those.
        ValueError: a number is negative or NaN.
    """
    if isinstance(value, Threshold) or callable(value):
        raise TypeError(f"value must be a number, an array or a table, got {value!r}")
    return as_threshold(value, "value")


def schedule(function: Callable[[Any], Any]) -> Schedule:
    """Return a threshold that follows a schedule; clips also accept the function.

    Args:
        function: maps the int32 number of updates so far to the threshold, in the
            gradient's units. Where it returns a negative number or NaN, the update is
            zero, and the state counts the step.
    """
    if not callable(function):
        raise TypeError(f"function must be a schedule, got {function!r}")
    return Schedule(function)


def as_threshold(value: ThresholdLike | None, argument: str = "threshold") -> Threshold:
    """Return the threshold that an argument stands for, as in `clipjax.clip_by`.

    Args:
        value: the argument; None clips nothing.
        argument: the argument's name, for errors.

    Raises:
        TypeError: a bool, a string, or another value that is not a threshold.
        ValueError: a number is negative or NaN.
    """
    if isinstance(value, Threshold):
        return value
    accepted = "a number, an array, a schedule, a tree of numbers or a Threshold"
    if isinstance(value, type | str | bytes):
        raise TypeError(f"{argument} must be {accepted}, got {value!r}")
    if callable(value):
        module = getattr(value, "__module__", None) or ""  # None where exec made it
        if module.startswith("clipjax."):
            name = getattr(value, "__name__", repr(value))
            raise TypeError(
                f"{argument} must be {accepted}, got the function {name}: call it, as "
                f"in {name}(...)"
            )
        return Schedule(value)
    value = np.inf if value is None else value
    if isinstance(value, Mapping | list | tuple) or not jax.tree_util.all_leaves(
        [value]
    ):
        return ByBlock(value, argument)
    require_number(argument, value)
    if isinstance(value, jax.Array):
        return Given(value)
    if np.ndim(value):
        return Given(jnp.asarray(value))
    return Constant(float(value))


def _is_none(entry: Any) -> bool:
    return entry is None


def _as_entry(entry: Any, context: Context) -> Any:
    if isinstance(entry, jax.Array):
        return context.cast(entry)
    return np.asarray(entry, context.dtype)


def _identity(entry: Any) -> Any:
    """Return a hashable key; JAX arrays, which may be traced, compare by identity."""
    if isinstance(entry, np.ndarray):
        return (entry.shape, entry.dtype.str, entry.tobytes())
    return id(entry) if isinstance(entry, jax.Array) else entry
