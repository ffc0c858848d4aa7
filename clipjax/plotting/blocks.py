"""Norms of all blocks over time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .arms import (
    Steps,
    Values,
    by_name,
    columns_of,
    numbers,
    of_arm,
    recorded_rows,
    steps_of,
)
from .canvas import LINE, MOST_LINES, count_steps, open_canvas, set_title, wrapped
from .heat import color_bar, draw_cells, hatched_handle, scale_of

COLUMNS = 400  # more cells would be narrower than a pixel of a phone
NAME = 22  # characters of a line


class Table(NamedTuple):
    """Norms ``(blocks, cells)`` with the names of blocks and ``(cells + 1,)`` edges."""

    names: list[str]
    norms: np.ndarray
    edges: np.ndarray


def plot_block_norms(
    norms: Values,
    *,
    steps: Steps | None = None,
    axes: Any = None,
    column: str = "grad_norm_raw",
) -> Figure:
    """Draw the norm of each block at each step as a heat map, one panel per arm.

    Colors are logarithmic and the same in all panels. Where a cell covers several
    steps, it shows the largest of their norms, so that no spike is lost.

    | norm | cell |
    |---|---|
    | 0 | the color of the least positive norm |
    | infinite | hatched: the step was not finite |
    | NaN | empty: nothing was recorded |

    Args:
        norms: a mapping from the name of a block to an array ``(steps,)``; an array
            ``(blocks, steps)``; a history, whose columns ``<column>/<block>`` are
            taken; or a mapping from the name of an arm to an array ``(blocks, steps)``
            or a history.
        steps: the x values, ascending.
        axes: the Axes to draw into, one per arm.
        column: the column to take of a history, such as ``clip_ratio``.

    Returns:
        The figure.

    Raises:
        TypeError: norms are not real numbers.
        ValueError: blocks have different lengths, or ``steps`` has another; an array
            has another shape; a history has no blocks.

    Example:
        >>> figure = plot_block_norms({"kernel": [1.0, 2.0], "bias": [0.1, 0.2]})
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['kernel', 'bias']
    """
    tables = _tables(norms, column, steps)
    scale = scale_of(np.concatenate([table.norms.ravel() for table in tables.values()]))
    lines = max(_lines(table) for table in tables.values())
    height = 0.4 + LINE / 72 * min(max(lines, 4), MOST_LINES)
    canvas = open_canvas(len(tables), axes, height, is_shared=False)
    meshes = [
        _draw_table(panel, name, table, scale, canvas.lines_beside(panel))
        for panel, (name, table) in zip(canvas.panels, tables.items(), strict=True)
    ]
    quantity = "gradient norm" if column.startswith("grad_norm") else column
    color_bar(canvas, meshes[0], f"{quantity} of each block")
    ends = np.stack([table.edges[[0, -1]] for table in tables.values()])
    canvas.panels[-1].set_xlim(ends.min(), ends.max())
    canvas.panels[-1].set_xlabel("step")
    if any(np.isinf(table.norms).any() for table in tables.values()):
        canvas.list_handles({"not finite": hatched_handle()})
    return canvas.figure


def _tables(norms: Values, column: str, steps: Steps | None) -> dict[str, Table]:
    """Return a table per arm; that of blocks without an arm has an empty name."""
    sources = by_name("norms", norms)
    columns = {name: columns_of(source) for name, source in sources.items()}
    arrays = {
        name: numbers("norms", name, source)
        for name, source in sources.items()
        if columns[name] is None
    }
    if isinstance(norms, Mapping) and all(
        name in arrays and arrays[name].ndim == 1 for name in sources
    ):
        return {"": _table("", _stacked(arrays), list(arrays), None, steps)}
    tables = {}
    for name in sources:
        recorded = columns[name]
        if recorded is None:
            labels = [str(number) for number in range(len(np.atleast_1d(arrays[name])))]
            tables[name] = _table(name, arrays[name], labels, None, steps)
        else:
            blocks = _blocks(name, recorded, column)
            array = _stacked(blocks)
            kept = recorded_rows(array.T)
            rows = {key: np.asarray(recorded[key])[kept] for key in recorded}
            tables[name] = _table(name, array[:, kept], list(blocks), rows, steps)
    return tables


def _blocks(
    name: str, columns: Mapping[str, np.ndarray], column: str
) -> dict[str, np.ndarray]:
    pattern = re.compile(rf"(?:([^/]+)/)?{re.escape(column)}/(.+)")
    matches = {key: pattern.fullmatch(key) for key in columns}
    clips = {match[1] for match in matches.values() if match}
    found = {
        match[2] if len(clips) == 1 else f"{match[1]}/{match[2]}": np.asarray(
            columns[key], np.float64
        )
        for key, match in matches.items()
        if match
    }
    if not found:
        known = ", ".join(sorted(columns)) or "none"
        raise ValueError(
            f"the history {of_arm('norms', name)} has no columns '{column}/<block>'; "
            f"it has {known}"
        )
    return found


def _stacked(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    (first, expected), *others = arrays.items()
    for name, array in others:
        if array.shape != expected.shape:
            raise ValueError(
                f"blocks must have the same steps: norms[{first!r}] has shape "
                f"{expected.shape} and norms[{name!r}] has shape {array.shape}"
            )
    return np.stack(list(arrays.values()))


def _table(
    name: str,
    norms: np.ndarray,
    labels: list[str],
    columns: Mapping[str, np.ndarray] | None,
    steps: Steps | None,
) -> Table:
    """Check the shape, and merge steps where there are too many."""
    if norms.ndim != 2 or not norms.size:
        raise ValueError(
            f"{of_arm('norms', name)} must have shape (blocks, steps) and an entry, "
            f"got shape {norms.shape}"
        )
    x = steps_of("norms", name, norms.shape[1], columns, steps)
    if (np.diff(x) <= 0).any():
        raise ValueError(f"{of_arm('steps', name)} must ascend")
    between = (x[1:] + x[:-1]) / 2
    half = (np.diff(x)[[0, -1]] if len(x) > 1 else np.ones(2)) / 2
    edges = np.concatenate([[x[0] - half[0]], between, [x[-1] + half[1]]])
    starts = np.arange(0, len(x), -(-len(x) // COLUMNS))
    merged = np.fmax.reduceat(norms, starts, axis=1)
    return Table(labels, merged, np.append(edges[starts], edges[-1]))


def _broken(name: str) -> str:
    """Break a path behind a slash, a dot or a bracket."""
    lines = [""]
    for part in re.split(r"(?<=[/.\]])", name):
        if lines[-1] and len(lines[-1]) + len(part) > NAME:
            lines.append("")
        lines[-1] += part
    return wrapped("\n".join(lines), NAME)


def _lines(table: Table) -> int:
    return len(table.names) * max(_broken(name).count("\n") + 1 for name in table.names)


def _draw_table(
    panel: Axes, name: str, table: Table, scale: Normalize, room: int
) -> QuadMesh:
    count = len(table.names)
    rows = np.arange(count + 1) - 0.5
    mesh = draw_cells(
        panel, table.edges, rows, table.norms, scale, np.isinf(table.norms)
    )
    panel.grid(False)
    panel.set_ylim(count - 0.5, -0.5)
    every = -(-_lines(table) // room)
    shown = range(0, count, every)
    panel.set_yticks(shown, [_broken(table.names[row]) for row in shown])
    set_title(panel, name)
    count_steps(panel)
    return mesh
