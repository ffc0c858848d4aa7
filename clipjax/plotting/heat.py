"""Colored cells with a logarithmic scale, and hatches where a number is missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Patch, Rectangle

from .arms import finite_positive
from .canvas import COLOR_MAP, LABEL, TEXT, Canvas, log_ticks

HATCHED = {
    "facecolor": "white",
    "edgecolor": "#444444",
    "hatch": "////",
    "linewidth": 0,
}


def scale_of(values: np.ndarray) -> Normalize:
    """Return a color scale of the finite values: logarithmic, unless one is negative.

    Zeros get the color of the least positive value.
    """
    finite = values[np.isfinite(values)]
    positive = finite_positive([finite])
    if positive.size and (finite >= 0).all():
        low, high = positive.min(), positive.max()
        return LogNorm(low, high) if low < high else LogNorm(low / 2, high * 2)
    if not finite.size:
        return Normalize(0, 1)
    low, high = finite.min(), finite.max()
    return Normalize(low, high) if low < high else Normalize(low - 1, high + 1)


def draw_cells(
    panel: Axes,
    x_edges: np.ndarray,
    y_edges: np.ndarray,
    values: np.ndarray,
    scale: Normalize,
    is_hatched: np.ndarray,
) -> QuadMesh:
    """Draw a cell for each value, hatched where `is_hatched`, and none for NaN.

    Args:
        panel: where to.
        x_edges: ``(columns + 1,)``.
        y_edges: ``(rows + 1,)``.
        values: ``(rows, columns)``.
        scale: from values to colors.
        is_hatched: ``(rows, columns)``.
    """
    shown = np.ma.masked_invalid(np.where(is_hatched, np.nan, values))
    if isinstance(scale, LogNorm):
        shown = np.ma.maximum(shown, float(scale.vmin or 0))
    mesh = panel.pcolormesh(x_edges, y_edges, shown, norm=scale, cmap=COLOR_MAP)
    for row, bottom, top in zip(is_hatched, y_edges, y_edges[1:], strict=False):
        # One patch for neighbors: a run that diverged has thousands of hatched cells.
        changes = np.flatnonzero(np.diff(row, prepend=False, append=False))
        for start, stop in changes.reshape(-1, 2):
            left, right = float(x_edges[start]), float(x_edges[stop])
            corner = (left, float(bottom))
            panel.add_patch(Rectangle(corner, right - left, top - bottom, **HATCHED))
    return mesh


def color_bar(canvas: Canvas, mesh: QuadMesh, label: str) -> None:
    """Put the color scale above the panels."""
    bar = canvas.figure.colorbar(
        mesh, ax=list(canvas.panels), location="top", aspect=30
    )
    bar.set_label(label, size=LABEL)
    bar.ax.tick_params(labelsize=TEXT)
    if isinstance(mesh.norm, LogNorm):
        log_ticks(bar.ax.xaxis, *bar.ax.get_xlim())


def hatched_handle() -> Patch:
    """Return the legend handle of a hatched cell."""
    return Patch(**HATCHED)


def lightness(color: Sequence[float]) -> float:
    """Return how light a color is, from 0 to 1: CIE L*, as in a gray print."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in color[:3]
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    is_dark = luminance <= 216 / 24389
    return luminance * 9.033 if is_dark else 1.16 * luminance ** (1 / 3) - 0.16
