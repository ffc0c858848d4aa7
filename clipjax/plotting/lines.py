"""Any quantity against any other, by arm."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from .arms import Steps, Values, read_arms
from .canvas import GREY, log_axis, open_canvas
from .curves import draw_arms


def plot_lines(
    values: Values,
    x: Steps | None = None,
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    is_log: tuple[bool, bool] = (False, False),
    level: float | None = None,
    axes: Any = None,
) -> Figure:
    """Draw lines: the median over seeds, and the range from lowest to highest.

    Args:
        values: by arm if several, ``(points,)`` or ``(seeds, points)``.
        x: the x values, ``(points,)``, for all arms or by arm; by default 0, 1, 2, ….
        x_label: the label of the x axis, with its unit.
        y_label: the label of the y axis, with its unit.
        title: the title of the figure.
        is_log: whether the x axis and the y axis are logarithmic. Zeros and negative
            values are left out of a logarithmic axis.
        level: a y value to mark by a horizontal line.
        axes: the Axes to draw into.

    Returns:
        The figure.

    Raises:
        TypeError: values are not real numbers.
        ValueError: an arm has another shape, or another number of points than ``x``.

    Example:
        >>> figure = plot_lines([1.0, 4.0, 9.0], [1, 2, 3], x_label="x", y_label="y")
        >>> figure.axes[0].get_xlabel()
        'x'
    """
    arms = read_arms("values", values, "values", x)
    canvas = open_canvas(1, axes, 2.6)
    draw_arms(canvas.panels[0], arms)
    for which, is_wanted in zip("xy", is_log, strict=True):
        if is_wanted:
            log_axis(canvas.panels, which)
    if level is not None:
        canvas.panels[0].axhline(level, color=GREY, linewidth=1, zorder=1)
    canvas.label(x_label, y_label, title)
    canvas.legend()
    return canvas.figure
