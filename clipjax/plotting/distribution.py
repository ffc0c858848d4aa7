"""The distribution of gradient norms, with candidate thresholds marked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .arms import Arm, Values, of_arm, read_arms
from .canvas import (
    TEXT,
    log_axis,
    open_canvas,
    percent,
    plain_number,
    set_title,
    style_of,
)

GAP = 0.062  # between the numbers above the axes, as a fraction of their width


class Suggestion(Protocol):
    """A candidate threshold, and the fraction of steps that it would have clipped."""

    @property
    def strategy(self) -> str: ...
    @property
    def threshold(self) -> float: ...
    @property
    def clipped_fraction(self) -> float: ...


def plot_norm_distribution(
    norms: Values,
    suggestions: Iterable[Suggestion] = (),
    *,
    recommended: str | None = None,
    axes: Any = None,
) -> Figure:
    r"""Draw the fraction of steps that each threshold would clip.

    The curve is $P(n > C)$ over the recorded norms n against C on a logarithmic axis:
    one minus their empirical distribution function. Suggested thresholds are numbered
    from the smallest on, and their fractions are in the legend.

    | norm or threshold | effect |
    |---|---|
    | NaN or infinite norm | left out of the fractions, and counted in the legend |
    | norm 0 | counts as a step; a logarithmic axis does not show it |
    | threshold 0, negative or infinite | in the legend only |

    Args:
        norms: norm of each step before clipping, by arm if several; all seeds count
            together. Of a history, the column ``grad_norm_raw``.
        suggestions: rows with ``strategy``, ``threshold`` and ``clipped_fraction``, or
            a table whose ``rows`` are such, like that of ``suggest_thresholds``.
        recommended: the strategy to emphasize; by default the recommendation of the
            table.
        axes: the Axes to draw into.

    Returns:
        The figure.

    Raises:
        TypeError: norms are not real numbers, or a row lacks an attribute.
        ValueError: an arm has another shape or no finite positive norm; or no row has
            the recommended strategy.

    Example:
        >>> from typing import NamedTuple
        >>> class Row(NamedTuple):
        ...     strategy: str
        ...     threshold: float
        ...     clipped_fraction: float
        >>> rows = [Row("maximum", 8.0, 0.0), Row("median", 2.0, 0.5)]
        >>> figure = plot_norm_distribution([1.0, 2.0, 4.0, 8.0], rows)
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['median: 2 clips 50 %', 'maximum: 8 clips 0 %']
    """
    arms = read_arms("norms", norms, "grad_norm_raw")
    if recommended is None:
        best = getattr(suggestions, "recommended", None)
        recommended = getattr(best, "strategy", best)
    rows = _rows(suggestions, recommended)
    canvas = open_canvas(1, axes, 2.9)
    (panel,) = canvas.panels
    for index, (name, arm) in enumerate(arms.items()):
        _draw_fractions(panel, name, arm, index)
    shown = [
        (number, row)
        for number, row in enumerate(rows, start=1)
        if 0 < row.threshold < math.inf
    ]
    for _, row in shown:  # dots where the rows say that the curve is
        is_best = row.strategy == recommended
        panel.plot(
            row.threshold,
            100 * row.clipped_fraction,
            "*" if is_best else "o",
            markersize=13 if is_best else 5,
            markeredgecolor="white",
            color="black",
            zorder=4,
        )
    log_axis([panel], "x")
    panel.set_ylim(-4, 104)
    _number(panel, [(number, row.threshold) for number, row in shown])
    canvas.label("threshold C (gradient norm)", "steps with a norm above C (%)")
    set_title(panel, "What a threshold would clip", pad=26 if shown else None)
    canvas.list_handles(_handles(panel, rows, recommended))
    return canvas.figure


def _rows(suggestions: Any, recommended: str | None) -> list[Suggestion]:
    rows = list(getattr(suggestions, "rows", suggestions))
    for row in rows:
        for name in ("strategy", "threshold", "clipped_fraction"):
            if not hasattr(row, name):
                raise TypeError(f"a row of suggestions has no {name}: {row!r}")
    strategies = [row.strategy for row in rows]
    if recommended is not None and recommended not in strategies:
        raise ValueError(
            f"recommended must be one of {', '.join(map(repr, strategies)) or 'none'}, "
            f"got {recommended!r}"
        )
    return sorted(rows, key=lambda row: row.threshold)


def _draw_fractions(panel: Axes, name: str, arm: Arm, index: int) -> None:
    finite = np.sort(arm.values[np.isfinite(arm.values)])
    if not finite.size or finite[-1] <= 0:
        raise ValueError(f"{of_arm('norms', name)} has no finite positive norm")
    left_out = arm.values.size - finite.size
    label = f"{name or 'norms'} ({left_out} not finite)" if left_out else name
    above = 100 * (1 - np.arange(1, finite.size + 1) / finite.size)
    positive = finite > 0
    first = finite[positive][0]
    style = style_of(index)
    panel.plot(
        np.append(first, finite[positive]),
        np.append(100 * positive.mean(), above[positive]),
        drawstyle="steps-post",
        color=style.color,
        linestyle=style.dash,
        linewidth=1.6,
        label=label,
    )


def _number(panel: Axes, marks: list[tuple[int, float]]) -> None:
    """Write numbers above the axes, apart from each other, with lines to the marks."""
    low, high = panel.get_xlim()
    panel.set_xlim(low, high)
    thresholds = np.array([threshold for _, threshold in marks])
    wanted = np.log(thresholds / low) / math.log(high / low)
    places = spread(wanted, GAP)
    for (number, threshold), place, start in zip(marks, places, wanted, strict=True):
        panel.axvline(threshold, color="#555555", linewidth=0.8, linestyle=":")
        ends = [[start, place], [1.0, 1.055]]
        line = {"color": "#555555", "linewidth": 0.8, "clip_on": False}
        panel.plot(*ends, transform=panel.transAxes, **line)
        at = {"transform": panel.transAxes, "ha": "center", "va": "bottom"}
        panel.text(place, 1.06, str(number), size=TEXT, **at)


def spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Move ascending places apart to a least distance, inside 0 to 1 if they fit."""
    order = np.arange(len(places))
    moved = np.maximum.accumulate(places - gap * order) + gap * order
    return np.minimum(moved, 1 - gap * order[::-1])


def _handles(
    panel: Axes, rows: list[Suggestion], recommended: str | None
) -> dict[str, Line2D]:
    handles = dict(zip(*panel.get_legend_handles_labels()[::-1], strict=True))
    for number, row in enumerate(rows, start=1):
        label = (
            f"{row.strategy}: {plain_number(float(f'{row.threshold:.3g}'))} clips "
            f"{percent(row.clipped_fraction)}"
        )
        label += " (recommended)" if row.strategy == recommended else ""
        sign = f"${number}$"
        size = 6 if number < 10 else 10
        handles[label] = Line2D(
            [], [], linestyle="", marker=sign, markersize=size, color="black"
        )
    return handles
