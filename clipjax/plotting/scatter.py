"""Points in the plane, one panel per arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from .arms import numbers, of_arm
from .canvas import GREY, open_canvas, percent, set_title, style_of

MARGIN = 0.15  # of the outlines' extent, on each side


def plot_scatter(
    points: ArrayLike | Mapping[str, ArrayLike],
    *,
    outlines: ArrayLike | None = None,
    x_label: str = "",
    y_label: str = "",
    title: str = "",
    axes: Any = None,
) -> Figure:
    """Draw points in the plane, one panel per arm, each seed with its color and marker.

    With outlines, all panels show their extent and a margin. The title of a panel
    states the fraction of the arm's points that lie outside or are not finite.

    Args:
        points: by arm if several, ``(points, 2)`` or ``(seeds, points, 2)``.
        outlines: ``(points, 2)``, a line that is drawn into every panel; it is
            interrupted where a coordinate is NaN.
        x_label: the label of the x axis.
        y_label: the label of the y axis.
        title: the title of the figure.
        axes: the Axes to draw into, one per arm.

    Returns:
        The figure.

    Raises:
        TypeError: points are not real numbers.
        ValueError: an array has another shape.

    Example:
        >>> figure = plot_scatter({"a": [[0.0, 1.0], [2.0, 3.0]], "b": [[1.0, 1.0]]})
        >>> [panel.get_title() for panel in figure.axes]
        ['a', 'b']
    """
    by_arm = points if isinstance(points, Mapping) else {"": points}
    arms = {
        name: _read("points", name, values, (2, 3)) for name, values in by_arm.items()
    }
    canvas = open_canvas(len(arms), axes, 2.4)
    line = None if outlines is None else _read("outlines", "", outlines, (2,))[0]
    canvas.label(x_label, y_label, title)
    for panel, (name, seeds) in zip(canvas.panels, arms.items(), strict=True):
        outside = _draw(panel, seeds, line)
        own = title if len(arms) == 1 else ""
        # A text among the points would hide some.
        note = f"{percent(outside)} of the points lie outside" if outside else ""
        set_title(panel, "\n".join(text for text in (own, name, note) if text))
        panel.set_aspect("equal", adjustable="datalim" if line is None else "box")
    return canvas.figure


def _read(argument: str, name: str, values: Any, ranks: tuple[int, ...]) -> np.ndarray:
    """Return an array ``(seeds, points, 2)``."""
    array = numbers(argument, name, values)
    if array.ndim not in ranks or array.shape[-1] != 2:
        shapes = " or ".join(("(points, 2)", "(seeds, points, 2)")[: len(ranks)])
        raise ValueError(
            f"{of_arm(argument, name)} must have shape {shapes}, got {array.shape}"
        )
    return array.reshape(-1, *array.shape[-2:])


def _draw(panel: Axes, seeds: np.ndarray, line: np.ndarray | None) -> float:
    """Draw the points of an arm; return the fraction that is not in the panel."""
    is_seen = np.asarray(np.isfinite(seeds).all(axis=-1))
    if line is not None:
        panel.plot(*line.T, color=GREY, linewidth=1, zorder=1)
        low, high = np.nanmin(line, axis=0), np.nanmax(line, axis=0)
        low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
        panel.set_xlim(low[0], high[0])
        panel.set_ylim(low[1], high[1])
        is_seen &= ((seeds >= low) & (seeds <= high)).all(axis=-1)
    for index in range(len(seeds)):
        style = style_of(index)
        panel.plot(
            *seeds[index, is_seen[index]].T,
            style.marker,
            color=style.color,
            markersize=3,
            markeredgewidth=0,
            alpha=0.6,
        )
    return float(1 - is_seen.mean())
