"""Figures of results that several tasks share."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from ..plotting.canvas import TEXT, log_axis, open_canvas, style_of


def dots(
    values: Mapping[str, Mapping[str, np.ndarray]],
    *,
    label: str,
    title: str,
    is_log: bool = False,
) -> Figure:
    """Draw one row for each arm, with a mark for each seed.

    Args:
        values: arrays of shape `(seeds,)`, by arm and by name of the quantity. Each
            quantity has its own mark.
        label: the axis label, with the unit.
        title: the figure's title.
        is_log: whether the axis is logarithmic.
    """
    canvas = open_canvas(1, None, 0.5 + 0.45 * len(values))
    panel = canvas.panels[0]
    names = list(next(iter(values.values())))
    for row, (arm, quantities) in enumerate(values.items()):
        # Names of arms are long: they stand above their row, not beside it.
        panel.annotate(
            arm,
            (0.0, row - 0.25),
            xycoords=("axes fraction", "data"),
            fontsize=TEXT,
            va="center",
        )
        for index, name in enumerate(names):
            style = style_of(index + 1)
            found = np.ravel(quantities[name])
            panel.plot(
                found,
                np.full(len(found), row + 0.15),
                style.marker,
                color=style.color,
                fillstyle="none",
                label=name if len(names) > 1 else None,
            )
    panel.set_ylim(len(values) - 0.5, -0.6)
    panel.set_yticks([])
    if is_log:
        log_axis(canvas.panels, "x")
    canvas.label(label, "", title)
    canvas.legend()
    return canvas.figure
