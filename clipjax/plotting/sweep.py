"""A heat map of the final loss by learning rate and threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike

from .arms import numbers, require_vector
from .canvas import TEXT, WIDTH, open_canvas, short_number, text_width
from .heat import color_bar, draw_cells, hatched_handle, lightness, scale_of

GAP = 0.25  # of a column, before the one without a clip
BEST = {"facecolor": "none", "edgecolor": "#D55E00", "linewidth": 3}


def plot_sweep(
    values: ArrayLike,
    learning_rates: ArrayLike,
    thresholds: ArrayLike | Sequence[float | None],
    *,
    diverged: ArrayLike | None = None,
    label: str = "final loss",
    axes: Any = None,
) -> Figure:
    """Draw a heat map of learning rate against threshold.

    Rows and columns are sorted; the infinite threshold, no clip, is the last column,
    set apart from the others. Each cell has its value in two digits, if all fit.
    Diverged cells are hatched, and the best cell, the least of the others, has a frame
    and a star.

    | value | cell |
    |---|---|
    | NaN or infinite | diverged |
    | finite, and ``diverged`` is True | diverged |
    | all diverged | no cell is best |

    Args:
        values: ``(rates, thresholds)``, lower is better, such as the mean of the last
            losses. Colors are logarithmic unless a value is negative.
        learning_rates: ``(rates,)``.
        thresholds: ``(thresholds,)``; infinite, or None, for the runs without a clip.
        diverged: ``(rates, thresholds)``, which cells diverged though their value is
            finite.
        label: the name of the values.
        axes: the Axes to draw into.

    Returns:
        The figure.

    Raises:
        TypeError: an argument does not contain real numbers.
        ValueError: shapes do not match.

    Example:
        >>> loss = [[0.5, 0.4], [0.3, float("nan")]]
        >>> figure = plot_sweep(loss, [0.1, 1.0], [1.0, None])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0.5', '0.4', '0.3 ★']
    """
    rates = require_vector("learning_rates", learning_rates, 1)
    given = np.atleast_1d(np.asarray(thresholds, object)).tolist()
    limits = [math.inf if threshold is None else threshold for threshold in given]
    limits = require_vector("thresholds", limits, 1)
    table = numbers("values", "", values)
    is_bad = np.zeros(table.shape, bool) if diverged is None else np.asarray(diverged)
    for name, array in {"values": table, "diverged": is_bad}.items():
        if array.shape != (len(rates), len(limits)):
            raise ValueError(
                f"{name} must have shape (learning rates, thresholds) = "
                f"{(len(rates), len(limits))}, got {array.shape}"
            )
    order = np.ix_(np.argsort(rates), np.argsort(limits))
    rates, limits, table = np.sort(rates), np.sort(limits), table[order]
    is_bad = is_bad[order].astype(bool) | ~np.isfinite(table)

    canvas = open_canvas(1, axes, 0.6 + 0.34 * max(len(rates), 3))
    (panel,) = canvas.panels
    places = np.arange(len(limits)) + GAP * np.isinf(limits)
    scale = scale_of(table[~is_bad])
    mesh = _draw_columns(panel, places, table, scale, is_bad)
    handles = {"diverged": hatched_handle()} if is_bad.any() else {}
    best = _least(table, is_bad)
    if best is not None:
        row, column = best
        panel.add_patch(Rectangle((places[column] - 0.5, row - 0.5), 1, 1, **BEST))
        place = f"learning rate {rates[row]:.3g}, "
        place += "threshold " if limits[column] < np.inf else ""
        place += _limit(limits[column])
        handles[f"best: {place}"] = Patch(**BEST)
    own = panel.bbox.width * 72 / canvas.figure.dpi
    room = 72 * WIDTH - 60 if canvas.is_own else own
    _label_columns(panel, places, limits, room / (places[-1] + 1))
    panel.set_yticks(range(len(rates)), [f"{rate:.3g}" for rate in rates])
    if _write_values(panel, places, table, is_bad, best, mesh, room):
        canvas.label("threshold", "learning rate", label[:1].upper() + label[1:])
    else:
        color_bar(canvas, mesh, label)
        canvas.label("threshold", "learning rate")
    canvas.list_handles(handles)
    return canvas.figure


def _least(table: np.ndarray, is_bad: np.ndarray) -> tuple[int, int] | None:
    """Return row and column of the least value that is not bad, if there is one."""
    if is_bad.all():
        return None
    place = int(np.where(is_bad, np.inf, table).argmin())
    return divmod(place, table.shape[1])


def _draw_columns(
    panel: Axes,
    places: np.ndarray,
    table: np.ndarray,
    scale: Normalize,
    is_bad: np.ndarray,
) -> QuadMesh:
    """Draw the columns one by one, since the last is set apart."""
    rows = np.arange(len(table) + 1) - 0.5
    meshes = [
        draw_cells(
            panel,
            place + np.array([-0.5, 0.5]),
            rows,
            table[:, [column]],
            scale,
            is_bad[:, [column]],
        )
        for column, place in enumerate(places)
    ]
    panel.grid(False)
    panel.set_xlim(-0.5, places[-1] + 0.5)
    panel.set_ylim(-0.5, len(table) - 0.5)
    for mesh in meshes:
        mesh.set_edgecolor("white")
    return meshes[0]


def _label_columns(
    panel: Axes, places: np.ndarray, limits: np.ndarray, width: float
) -> None:
    labels = [_limit(limit).replace("no clip", "no\nclip") for limit in limits]
    is_wide = max(text_width(label, TEXT) for label in labels) > width - 3
    panel.set_xticks(places, labels, rotation=90 if is_wide else 0)


def _limit(threshold: float) -> str:
    return "no clip" if threshold == math.inf else f"{threshold:.3g}"


def _write_values(
    panel: Axes,
    places: np.ndarray,
    table: np.ndarray,
    is_bad: np.ndarray,
    best: tuple[int, int] | None,
    mesh: QuadMesh,
    room: float,
) -> bool:
    """Write the numbers into the cells if all of them fit, and tell whether they do.

    The star of the best cell is written in any case.
    """
    texts = {
        (row, column): short_number(table[row, column])
        + (" ★" if (row, column) == best else "")
        for row, column in np.argwhere(~is_bad).tolist()
    }
    widest = max((text_width(text, TEXT) for text in texts.values()), default=0)
    is_fitting = widest < room / (places[-1] + 1) - 4
    if not is_fitting:
        texts = {} if best is None else {best: "★"}
    for (row, column), text in texts.items():
        is_dark = lightness(list(mesh.to_rgba(table[row, column]))) < 0.55
        color = "white" if is_dark else "black"
        panel.text(
            places[column], row, text, ha="center", va="center", color=color, size=TEXT
        )
    return is_fitting
