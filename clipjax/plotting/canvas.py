"""Figures of phone width, with large text and colors that suit the color-blind."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# 4.5 inches shown 360 pixels wide are 80 pixels to the inch: 9 points are 10 pixels.
WIDTH = 4.5
DPI = 160
TEXT, LABEL, TITLE = 9.0, 9.5, 10.5
LINE = 12.0  # points from one line of text to the next
MOST_LINES = 40  # beside a panel

# Okabe and Ito's colors (https://jfly.uni-koeln.de/color/), told apart with every kind
# of color vision. Two of the first seven share a dash only where their lightness
# differs by 16 % of the way from black to white or more, so that gray prints show both.
COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (6, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#8c8c8c"
COLOR_MAP = "cividis"  # its lightness rises steadily, also for color-blind readers

Dash = str | tuple[int, tuple[float, ...]]


class Style(NamedTuple):
    """How to tell one arm from the others, with and without color."""

    color: str
    dash: Dash
    marker: str


def style_of(index: int) -> Style:
    """Return the style of an arm by its position."""
    return Style(
        COLORS[index % len(COLORS)],
        DASHES[index % len(DASHES)],
        MARKERS[index % len(MARKERS)],
    )


class Canvas(NamedTuple):
    """Where to draw.

    Attributes:
        figure: the figure that the caller returns.
        panels: one Axes per panel, from top to bottom.
        is_own: whether the figure was created here, so that its size can change.
    """

    figure: Figure
    panels: Sequence[Axes]
    is_own: bool

    def lines_beside(self, panel: Axes) -> int:
        """Return how many lines of text fit beside a panel, or the most of them."""
        given = int(panel.bbox.height * 72 / self.figure.dpi / LINE)
        return MOST_LINES if self.is_own else max(given, 1)

    def label(self, xlabel: str, ylabel: str, title: str = "") -> None:
        """Label the outer axes, and give the figure a title."""
        for panel in self.panels:
            panel.set_ylabel(ylabel)
        self.panels[-1].set_xlabel(xlabel)
        if len(self.panels) == 1:
            own = self.panels[0].get_title()
            set_title(self.panels[0], f"{title}\n{own}" if own else title)
        elif self.is_own:
            self.figure.suptitle(title, size=TITLE)

    def legend(self, panels: Sequence[Axes] | None = None) -> None:
        """List each label once: below a figure created here, or inside given axes."""
        handles: dict[str, Any] = {}
        for panel in self.panels if panels is None else panels:
            for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
                handles.setdefault(wrapped(name, 46), handle)
        self.list_handles(handles)

    def list_handles(self, handles: Mapping[str, Any]) -> None:
        """Draw a legend of handles by their labels."""
        if not handles:
            return
        settings = {"frameon": False, "fontsize": TEXT, "handlelength": 2.6}
        entries = (list(handles.values()), list(handles))
        if not self.is_own:
            self.panels[0].legend(*entries, **settings | {"frameon": True})
            return
        widest = max(text_width(label, TEXT) for label in handles) + 4.4 * TEXT
        columns = min(max(int(72 * WIDTH // widest), 1), 3, len(handles))
        self.figure.legend(
            *entries, loc="outside lower center", ncols=columns, **settings
        )
        lines = sum(label.count("\n") + 1 for label in handles) / columns
        width, height = self.figure.get_size_inches()
        self.figure.set_size_inches(width, height + 0.19 * math.ceil(lines))


def open_canvas(
    count: int, axes: Any, height: float, *, is_shared: bool = True
) -> Canvas:
    """Return a canvas with panels below each other.

    Args:
        count: how many panels.
        axes: the argument of the caller: None, Axes, or a sequence of them.
        height: of one panel, in inches.
        is_shared: whether panels have a common y axis; their x axis always is.

    Raises:
        TypeError: axes has something else in it.
        ValueError: axes has more or fewer panels.
    """
    if axes is not None:
        panels = [axes] if isinstance(axes, Axes) else list(np.ravel(axes))
        for panel in panels:
            if not isinstance(panel, Axes):
                kind = type(panel).__name__
                raise TypeError(f"axes must be matplotlib Axes, or a list; got {kind}")
        if len(panels) != count:
            raise ValueError(f"axes must have {count} panels, got {len(panels)}")
        return Canvas(panels[0].figure.figure, panels, is_own=False)
    size = (WIDTH, height * count + 0.75)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(count, 1, squeeze=False, sharex=True, sharey=is_shared)
    for panel in grid[:, 0]:
        panel.tick_params(labelsize=TEXT)
        for axis in (panel.xaxis, panel.yaxis):
            axis.label.set_size(LABEL)
            axis.get_offset_text().set_size(TEXT)
        panel.grid(True, color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return Canvas(figure, list(grid[:, 0]), is_own=True)


def count_steps(panel: Axes) -> None:
    """Put the ticks of an x axis at whole numbers."""
    ticks = MaxNLocator(6, integer=True, steps=[1, 2, 5, 10])
    panel.xaxis.set_major_locator(ticks)


def set_title(panel: Axes, title: str, pad: float | None = None) -> None:
    """Give a panel a title that fits a figure of phone width."""
    panel.set_title(wrapped(title), size=TITLE, pad=pad)


def wrapped(text: str, width: int = 48) -> str:
    """Break lines that are longer than a figure of phone width."""
    return "\n".join(
        line if "$" in line else textwrap.fill(line, width)  # a formula stays whole
        for line in text.split("\n")
    )


def text_width(text: str, size: float) -> float:
    """Return the width of a text in points, without drawing it."""
    lines = [line for line in text.split("\n") if line.strip()]
    paths = (TextPath((0, 0), line, size=size) for line in lines)
    return max((path.get_extents().width for path in paths), default=0.0)


def log_axis(panels: Sequence[Axes], which: str = "y") -> None:
    """Make an axis of all panels logarithmic, if anything on it is positive."""
    drawn = [
        np.asarray(line.get_data()[which == "y"], np.float64)
        for panel in panels
        for line in panel.get_lines()
        if line.get_transform() is panel.transData
    ]
    if not any((values > 0).any() for values in drawn):
        return
    for panel in panels:
        set_scale = panel.set_yscale if which == "y" else panel.set_xscale
        set_scale("log", nonpositive="mask")
        low, high = panel.get_ylim() if which == "y" else panel.get_xlim()
        log_ticks(panel.yaxis if which == "y" else panel.xaxis, low, high)


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Label a logarithmic axis in plain numbers, enough of them for its range."""
    axis.set_major_formatter(FuncFormatter(plain_number))
    axis.set_minor_formatter(NullFormatter())
    # Few decades: label numbers between the powers of ten as well.
    decades = math.log10(high / low) if low > 0 else 99.0
    if decades < 0.3:
        axis.set_major_locator(MaxNLocator(5))
    elif decades < 3:
        between = (1, 2, 3, 4, 6) if decades < 1 else (1, 2, 5)
        axis.set_major_locator(LogLocator(subs=between))


def plain_number(value: float, position: int | None = None) -> str:
    """Write a tick without an exponent where that is short."""
    if 1e-3 <= abs(value) < 1e5 or not value or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    factor = value / 10**exponent
    power = f"10^{{{exponent}}}"
    return f"${power}$" if abs(factor - 1) < 1e-6 else f"${factor:g}\\cdot{power}$"


def short_number(value: float) -> str:
    """Write two digits of a number, shortly."""
    if not math.isfinite(value):
        return f"{value:g}"
    if 100 <= abs(value) < 1e4:
        return f"{value:.0f}"
    if 1e-3 <= abs(value) < 100 or not value:
        return f"{float(f'{value:.2g}'):g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def percent(fraction: float) -> str:
    """Write a fraction as a percentage, small ones with two digits."""
    number = 100 * fraction
    return f"{number:.2g} %" if number < 10 else f"{number:.0f} %"
