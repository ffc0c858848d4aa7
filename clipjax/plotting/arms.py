"""Arrays, histories, and mappings to either: what every figure accepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
from numpy.typing import ArrayLike


class History(Protocol):
    """Recorded metrics: columns of one entry per record, ``step`` among them."""

    def to_numpy(self) -> Mapping[str, np.ndarray]: ...


Values = ArrayLike | History | Mapping[str, ArrayLike | History]
Steps = ArrayLike | Mapping[str, ArrayLike]


class Arm(NamedTuple):
    """One line of a figure.

    Attributes:
        values: ``(seeds, steps)``.
        steps: ``(steps,)``.
        columns: all columns of these steps, if the arm came from a history.
    """

    values: np.ndarray
    steps: np.ndarray
    columns: Mapping[str, np.ndarray] | None


Arms = dict[str, Arm]


def read_arms(
    argument: str, values: Values, column: str, steps: Steps | None = None
) -> Arms:
    """Return the arms by name; the name of a bare array or history is empty.

    Args:
        argument: name of the caller's argument, for errors.
        values: the argument of the caller.
        column: the column to take of a history, without the name of a clip.
        steps: the x values.
    """
    arms = {}
    for name, source in by_name(argument, values).items():
        array, columns = _read(argument, name, source, column)
        array = np.atleast_2d(array)
        if array.ndim != 2 or not array.size:
            raise ValueError(
                f"{of_arm(argument, name)} must have shape (steps,) or (seeds, steps) "
                f"and an entry, got shape {np.shape(array)}"
            )
        count = array.shape[1]
        arms[name] = Arm(
            array, steps_of(argument, name, count, columns, steps), columns
        )
    return arms


def read_companion(
    argument: str,
    values: Values | None,
    column: str,
    owner: str,
    arms: Arms,
    *,
    is_shared: bool = False,
) -> dict[str, np.ndarray]:
    """Return the values that belong to each arm's values, in the arm's shape.

    Args:
        argument: name of the caller's argument, for errors.
        values: the argument of the caller; None takes the column of each history that
            has one.
        column: the column to take of a history, without the name of a clip.
        owner: name of the argument that the arms were read from.
        arms: the arms.
        is_shared: whether one array or number may apply to all arms and seeds.
    """
    if values is None:
        columns = {name: arm.columns for name, arm in arms.items()}
        return {
            name: numbers(argument, name, found[key]).T.reshape(arms[name].values.shape)
            for name, found in columns.items()
            if found is not None
            for key in matching_columns(found, column)[:1]
        }
    given = by_name(argument, values)
    if is_shared and list(given) == [""]:
        given = dict.fromkeys(arms, given[""])
    for name in [*arms, *given]:
        if name not in given or name not in arms:
            lacking, holder = (
                (argument, owner) if name not in given else (owner, argument)
            )
            raise ValueError(f"{of_arm(holder, name)} is given, but not {lacking}")
    shaped = {}
    for name, source in given.items():
        array, _ = _read(argument, name, source, column)
        expected = arms[name].values.shape
        fitting = [expected]
        if is_shared or expected[0] == 1:
            fitting.append(expected[1:])
        if is_shared:
            fitting.append(())
        if array.shape not in fitting:
            raise ValueError(
                f"{of_arm(argument, name)} has shape {array.shape}, and {owner} has "
                f"shape {expected if expected[0] > 1 else expected[1:]}"
            )
        shaped[name] = np.broadcast_to(array, expected)
    return shaped


def _read(
    argument: str, name: str, source: Any, column: str
) -> tuple[np.ndarray, Mapping[str, np.ndarray] | None]:
    """Return an array with seeds before steps, and the columns of a history."""
    columns = columns_of(source)
    if columns is None:
        return numbers(argument, name, source), None
    found = find_column(argument, name, columns, column)
    array = numbers(argument, name, columns[found])
    kept = recorded_rows(array)
    return array[kept].T, {key: np.asarray(columns[key])[kept] for key in columns}


def recorded_rows(column: np.ndarray) -> np.ndarray:
    """Return which rows of a history's column ``(rows, ...)`` hold a number.

    Rows that lack a column have NaN there. So has the end of a run that diverged, which
    is kept: it is longer than the gaps between the rows before.
    """
    is_missing = np.isnan(column).reshape(len(column), -1).all(axis=1)
    is_number = np.logical_not(np.asarray(is_missing))
    places = np.flatnonzero(is_number)
    if not places.size:
        return np.ones(len(column), bool)
    gap = np.diff(places, prepend=-1).max()
    if len(column) - 1 - places[-1] >= gap:
        is_number[places[-1] :] = True
    return is_number


def by_name(argument: str, values: Any) -> dict[str, Any]:
    """Return the values of each arm by name; the name of a bare value is empty."""
    if not isinstance(values, Mapping):
        return {"": values}
    if not values:
        raise ValueError(f"{argument} has no arms")
    return {str(name): source for name, source in values.items()}


def columns_of(source: Any) -> Mapping[str, np.ndarray] | None:
    """Return the columns of a history, and None for anything else."""
    if not _has_to_numpy(source):
        return None
    columns = source.to_numpy()  # of a pandas Series: an array
    return columns if isinstance(columns, Mapping) else None


def _has_to_numpy(source: Any) -> TypeGuard[History]:
    return callable(getattr(source, "to_numpy", None))


def matching_columns(columns: Mapping[str, Any], column: str) -> list[str]:
    """Return the names of a column, with and without the name of a clip before it."""
    return [name for name in columns if name == column or name.endswith(f"/{column}")]


def find_column(
    argument: str, name: str, columns: Mapping[str, Any], column: str
) -> str:
    """Return the full name of a column."""
    found = matching_columns(columns, column)
    if len(found) == 1:
        return found[0]
    whose = f"the history {of_arm(argument, name)}"
    if found:
        raise ValueError(
            f"{whose} has {', '.join(map(repr, found))}: pass the array of one of "
            "them, or a mapping from a name to each array"
        )
    known = ", ".join(sorted(columns)) or "none"
    raise ValueError(f"{whose} has no column {column!r}; it has {known}")


def numbers(argument: str, name: str, values: Any) -> np.ndarray:
    """Return real numbers as float64."""
    try:
        array = np.asarray(values)
        if np.iscomplexobj(array) or array.dtype == object:  # None would become NaN
            raise TypeError(array.dtype)
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{of_arm(argument, name)} must be an array of real numbers, or a history, "
            f"or a mapping from names to either; got {type(values).__name__}"
        ) from error


def of_arm(argument: str, name: str) -> str:
    """Name an argument, and the arm if there are several, for errors."""
    return f"{argument}[{name!r}]" if name else argument


def steps_of(
    argument: str,
    name: str,
    count: int,
    columns: Mapping[str, np.ndarray] | None,
    steps: Steps | None,
) -> np.ndarray:
    """Return the x values of an arm: those given or recorded, or 0, 1, and so on."""
    if steps is None:
        recorded = None if columns is None else columns.get("step")
        return np.arange(count) if recorded is None else np.asarray(recorded)
    is_by_arm = isinstance(steps, Mapping)
    if is_by_arm and name not in steps:
        raise ValueError(f"{of_arm(argument, name)} is given, but not steps")
    own = numbers("steps", name, steps[name] if is_by_arm else steps)
    if own.shape != (count,):
        whose = of_arm("steps", name if is_by_arm else "")
        raise ValueError(
            f"{whose} has shape {own.shape}, and {of_arm(argument, name)} has {count} "
            "steps"
        )
    return own


def require_vector(argument: str, values: Any, least: int = 0) -> np.ndarray:
    """Return a one-dimensional array of real numbers."""
    array = numbers(argument, "", values)
    if array.ndim != 1 or len(array) < least:
        raise ValueError(
            f"{argument} must be one-dimensional with at least {least} entries, got "
            f"shape {array.shape}"
        )
    return array


def finite_positive(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the numbers of all arrays that a logarithmic axis can show."""
    together = np.concatenate([part.ravel() for part in parts] or [np.zeros(0)])
    return together[np.isfinite(together) & (together > 0)]
