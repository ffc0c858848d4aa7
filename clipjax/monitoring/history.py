"""A history: one column of numbers per key, one row per step."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .files import csv_text, jsonl_text, rows_of_jsonl, write_whole

LEAST_CAPACITY = 256


@dataclasses.dataclass
class _Column:
    """Numbers, and where there are any; both longer than the history.

    Attributes:
        values: float32 or float64.
        is_present: False for a step without this number.
    """

    values: np.ndarray
    is_present: np.ndarray


class History:
    """Numbers of steps: an array per key, on the host.

    Columns are float32 for numbers that float32 holds exactly and float64 for others,
    such as Python floats and int32 counts. A row takes 4 or 8 bytes, and one more, per
    key; arrays grow by half of their length.

    Rows are in order of their steps. Adding a row for a step that is not above the last
    one drops all rows from that step on: after a restart from a checkpoint, the
    repeated steps replace the rows of the lost ones.

    | input | result |
    |---|---|
    | a key that a step lacks | NaN in the column; not in files |
    | NaN, inf | kept; ``"NaN"``, ``"Infinity"`` in JSONL, ``nan``, ``inf`` in CSV |
    | no rows | arrays of length 0, and files without rows |

    Args:
        columns: what `to_numpy` returned, to restore a history from a checkpoint.

    Raises:
        ValueError: columns have other lengths than ``step``, or steps do not increase.

    Example:
        >>> from clipjax.monitoring import History
        >>> history = History({"step": [0, 1], "loss": [2.5, 1.5]})
        >>> history.append([1, 2], {"loss": [2.0, 1.0]})
        >>> print(history.steps, history["loss"])
        [0 1 2] [2.5 2.  1. ]
    """

    def __init__(self, columns: Mapping[str, ArrayLike] | None = None):
        self._steps = np.zeros(LEAST_CAPACITY, np.int64)
        self._columns: dict[str, _Column] = {}
        self._length = 0
        if columns is not None:
            if "step" not in columns:
                raise ValueError(
                    f"columns must have the key 'step', got {', '.join(columns)}"
                )
            others = {key: columns[key] for key in columns if key != "step"}
            self.append(columns["step"], others)

    def __len__(self) -> int:
        return self._length

    def __contains__(self, key: object) -> bool:
        return key in self._columns

    def __getitem__(self, key: str) -> np.ndarray:
        """Return a column, shape ``(rows,)``, NaN where a step has no such number.

        Raises:
            KeyError: no step had that key.
        """
        if key not in self._columns:
            known = ", ".join(self._columns) or "none"
            raise KeyError(f"no column {key!r}; the columns are {known}")
        column = self._columns[key]
        values = column.values[: self._length]
        return np.where(column.is_present[: self._length], values, np.nan)

    def __repr__(self) -> str:
        span = f", steps {self.steps[0]} to {self.steps[-1]}" if len(self) else ""
        return f"History({len(self)} rows{span}, {len(self.keys)} keys)"

    @property
    def steps(self) -> np.ndarray:
        """The steps, int64, increasing."""
        return self._steps[: self._length].copy()

    @property
    def keys(self) -> list[str]:
        """The keys of all columns, in order of their first appearance."""
        return list(self._columns)

    def append(self, steps: ArrayLike, columns: Mapping[str, ArrayLike]) -> None:
        """Drop all rows from the first of these steps on, then add rows.

        Args:
            steps: increasing integers, shape ``(rows,)``.
            columns: numbers of shape ``(rows,)`` by key. A masked entry (``numpy.ma``)
                means that the step has no such number.

        Raises:
            TypeError: a column does not hold real numbers.
            ValueError: steps do not increase, or a column has another length.
        """
        added = np.asarray(steps, np.int64)
        if added.ndim != 1 or (np.diff(added) <= 0).any():
            raise ValueError(f"steps must be increasing integers, got {steps!r}")
        checked = {key: _checked(key, columns[key], added.shape) for key in columns}
        if not added.size:
            return
        self._drop_from(int(np.searchsorted(self._steps[: self._length], added[0])))
        rows = slice(self._length, self._length + added.size)
        self._reserve(rows.stop)
        self._steps[rows] = added
        for key, values in checked.items():
            self._put(key, rows, values)
        self._length = rows.stop

    def extend(self, other: History) -> None:
        """Add the rows of another history, as `append` does."""
        self.append(*other._parts(slice(0, len(other))))

    def before(self, step: int) -> History:
        """Return the rows of the steps before this one."""
        return self.rows_between(0, int(np.searchsorted(self.steps, step)))

    def last(self, rows: int) -> History:
        """Return the last rows, or all if there are fewer."""
        return self.rows_between(max(0, len(self) - rows), len(self))

    def rows_between(self, start: int, stop: int) -> History:
        """Return the rows from one position up to another, which is excluded."""
        part = History()
        part.append(*self._parts(slice(start, min(stop, len(self)))))
        return part

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each step with its numbers, which are NumPy scalars."""
        for row in range(self._length):
            yield (
                int(self._steps[row]),
                {
                    key: column.values[row]
                    for key, column in self._columns.items()
                    if column.is_present[row]
                },
            )

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Return all columns and ``step``, for a checkpoint or for pandas."""
        return {"step": self.steps} | {key: self[key] for key in self.keys}

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON object per row, such as ``{"step": 0, "loss": 2.5}``.

        The file is written under a temporary name in the same folder and then renamed,
        so that no reader sees half of it. float32 numbers have the fewest digits that
        read back as the same float32.
        """
        write_whole(path, jsonl_text(self.rows()))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a table with a header, in the same safe way as `to_jsonl`."""
        write_whole(path, csv_text(self.keys, self.rows()))

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike[str]) -> History:
        """Return the history in a file that `to_jsonl` or a `JsonlWriter` wrote.

        An incomplete last line is ignored. A step that is not above the one before
        drops the rows from that step on. Columns are float64.

        Raises:
            ValueError: another line is no JSON object with a step and numbers.
        """
        rows = rows_of_jsonl(path)
        keys = dict.fromkeys(key for row in rows for key in row if key != "step")
        history = cls()
        columns = {
            key: np.ma.masked_array(
                [row.get(key, np.nan) for row in rows], [key not in row for row in rows]
            )
            for key in keys
        }
        history.append([row["step"] for row in rows], columns)
        return history

    def _parts(self, rows: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return what `append` takes, for some rows."""
        return self._steps[rows], {
            key: np.ma.masked_array(column.values[rows], ~column.is_present[rows])
            for key, column in self._columns.items()
        }

    def _drop_from(self, row: int) -> None:
        for column in self._columns.values():
            column.is_present[row:] = False
        self._length = row

    def _reserve(self, rows: int) -> None:
        """Make room for this many rows."""
        capacity = len(self._steps)
        if rows <= capacity:
            return
        more = max(rows, capacity * 3 // 2) - capacity
        self._steps = np.pad(self._steps, (0, more))
        for column in self._columns.values():
            column.values = np.pad(column.values, (0, more))
            column.is_present = np.pad(column.is_present, (0, more))

    def _put(self, key: str, rows: slice, values: np.ma.MaskedArray) -> None:
        dtype = np.dtype(np.float32 if _is_small(values.dtype) else np.float64)
        if key not in self._columns:
            size = len(self._steps)
            self._columns[key] = _Column(np.zeros(size, dtype), np.zeros(size, bool))
        column = self._columns[key]
        column.values = column.values.astype(
            np.promote_types(column.values.dtype, dtype), copy=False
        )
        column.values[rows] = np.ma.getdata(values)
        column.is_present[rows] = ~np.ma.getmaskarray(values)


def _checked(key: str, values: Any, shape: tuple[int, ...]) -> np.ma.MaskedArray:
    """Return a column as a masked array.

    Raises:
        TypeError: it does not hold real numbers.
        ValueError: it has another shape.
    """
    column = np.ma.asanyarray(values)
    if not _is_small(column.dtype) and column.dtype.kind not in "iuf":
        raise TypeError(f"{key} must hold real numbers, got dtype {column.dtype}")
    if column.shape != shape:
        raise ValueError(
            f"{key} must have one number for each of {shape[0]} steps, got shape "
            f"{column.shape}"
        )
    return column


def _is_small(dtype: np.dtype) -> bool:
    """Return whether float32 holds every number of a dtype."""
    return np.can_cast(dtype, np.float32)
