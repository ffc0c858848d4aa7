"""The phase portrait of clipped gradient descent in one dimension."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike

from .arms import Values, numbers, read_arms, read_companion, require_vector
from .canvas import COLORS, GREY, TEXT, Style, open_canvas, plain_number, style_of

# Beyond this multiple of the threshold, a linear axis leaves no room for the band.
WIDE = 20.0


def plot_phase_portrait(
    path: Values,
    derivatives: Values,
    threshold: float,
    *,
    cycles: ArrayLike = (),
    fixed_points: ArrayLike = (),
    axes: Any = None,
) -> Figure:
    r"""Draw the path of clipped descent in the plane of x and f′(x).

    The shaded band is $|f'| \le C$. Inside it a step is that of gradient descent,
    $-\eta f'(x)$; outside its length is ηC, whatever the derivative. The y axis is
    linear, and logarithmic outside of the band where a derivative exceeds 20 C.

    Args:
        path: the points x, ``(steps,)``, by arm if there are several starts.
        derivatives: f′ at each of them, of the same shapes.
        threshold: C, finite and positive.
        cycles: the two points of a 2-cycle, where descent with too large a learning
            rate ends up, or of several, ``(cycles, 2)``; drawn as vertical lines with
            their distance.
        fixed_points: points where f′ is 0.
        axes: the Axes to draw into.

    Returns:
        The figure.

    Raises:
        TypeError: an argument does not contain real numbers.
        ValueError: arms or shapes differ between path and derivatives; or the threshold
            is not finite and positive; or cycles have not two points.

    Example:
        >>> figure = plot_phase_portrait([3.0, 2.5, 2.0], [6.0, 5.0, 4.0], 1.0)
        >>> figure.axes[0].get_ylabel()
        "$f'(x)$"
    """
    arms = read_arms("path", path, "x")
    slopes = read_companion("derivatives", derivatives, "derivative", "path", arms)
    limit = _threshold(threshold)
    canvas = open_canvas(1, axes, 3.0)
    (panel,) = canvas.panels
    band = {"facecolor": "#e4e4e4", "edgecolor": GREY, "linestyle": ":", "zorder": 0}
    panel.axhspan(-limit, limit, label=rf"$|f'| \leq C = {limit:g}$", **band)
    panel.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    for index, (name, arm) in enumerate(arms.items()):
        for start, (x, y) in enumerate(zip(arm.values, slopes[name], strict=True)):
            label = (name or "path") if not start else ""
            _draw_path(panel, x, y, style_of(index), label)
    highest = max(np.max(np.abs(y[np.isfinite(y)]), initial=0) for y in slopes.values())
    if highest > WIDE * limit:
        panel.set_yscale("symlog", linthresh=limit)
        panel.yaxis.set_major_formatter(FuncFormatter(plain_number))
    zeros = require_vector("fixed_points", fixed_points)
    if zeros.size:
        ring = {"markersize": 9, "markerfacecolor": "white", "color": "black"}
        panel.plot(zeros, 0 * zeros, "o", label="fixed point", zorder=3, **ring)
    _draw_cycles(panel, cycles)
    canvas.label("$x$", "$f'(x)$", "Clipped descent")
    canvas.legend()
    return canvas.figure


def _threshold(threshold: float) -> float:
    limit = numbers("threshold", "", threshold)
    if limit.ndim or not 0 < limit < np.inf:
        raise ValueError(f"threshold must be finite and positive, got {threshold!r}")
    return float(limit)


def _draw_path(
    panel: Axes, x: np.ndarray, y: np.ndarray, style: Style, label: str
) -> None:
    line = {"color": style.color, "linestyle": style.dash, "linewidth": 1.0}
    panel.plot(x, y, marker=style.marker, markersize=4, label=label, **line)
    finite = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if finite.size:
        at = finite[0]
        panel.annotate(
            "start",
            (x[at], y[at]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            size=TEXT,
        )


def _draw_cycles(panel: Axes, cycles: ArrayLike) -> None:
    points = numbers("cycles", "", cycles)
    if not points.size:
        return
    if points.shape[-1:] != (2,) or points.ndim > 2:
        raise ValueError(f"cycles must have shape (cycles, 2), got {points.shape}")
    style = {"color": COLORS[1], "linestyle": (0, (4, 2)), "linewidth": 1.4}
    distances = set()
    for low, high in np.atleast_2d(points):
        distances.add(f"{abs(high - low):.3g}")
        panel.axvline(low, **style, zorder=2)
        panel.axvline(high, **style, zorder=2)
    label = f"2-cycle, {' or '.join(sorted(distances))} apart"
    panel.plot([], [], label=label, **style)
