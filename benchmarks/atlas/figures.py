"""One figure per question: a row for each method, with intervals."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from clipjax.plotting.canvas import COLORS, DPI, GREY, TEXT, WIDTH

from .arms import UNCLIPPED
from .summary import Atlas, Estimate, holm, methods, ranked

ROW = 0.165  # inches for each method
FIGURES = pathlib.Path(__file__).parents[2] / "docs" / "figures"


class Panel(NamedTuple):
    """What one panel shows of each method.

    Attributes:
        title: what the numbers are.
        shown: the mean and the interval of each method.
        tested: what is tested against zero; a method that differs is drawn full.
        line: the value of the unclipped arm.
    """

    title: str
    shown: Mapping[str, Estimate]
    tested: dict[str, Estimate]
    line: float = 0.0


def panels(atlas: Atlas) -> dict[str, list[Panel]]:
    """Return the panels of each figure by its name."""
    names = methods()

    def helps(condition: str) -> dict[str, Estimate]:
        return {name: atlas.helps(name, condition) for name in names}

    def difference(condition: str) -> Panel:
        found = helps(condition)
        return Panel(condition, found, found)

    def score(name: str, condition: str) -> Estimate:
        return Estimate.of([atlas.score(t, name, condition) for t in atlas.tasks])

    widths = {name: atlas.widens(name) for name in names}
    bare = score(UNCLIPPED, "spikes").mean
    return {
        "atlas_spikes": [
            Panel(
                "score under spikes (the line: unclipped)",
                {name: score(name, "spikes") for name in names},
                helps("spikes"),
                bare,
            )
        ],
        "atlas_clean": [difference("clean")],
        "atlas_rates": [
            Panel(
                "decades of usable rates,\nminus those without a clip", widths, widths
            )
        ],
        "atlas_faults": [difference("bad batches"), difference("label noise")],
    }


def draw(shown: Sequence[Panel]) -> Figure:
    """Draw the panels side by side, the best method of the first one at the top."""
    order = ranked(dict(shown[0].shown))
    figure = Figure((WIDTH, ROW * len(order) + 0.9), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, axis in zip(shown, axes, strict=True):
        differ = holm(panel.tested)
        for row, name in enumerate(reversed(order)):
            mean, half, _ = panel.shown[name]
            positive = panel.tested[name].mean > 0
            color = COLORS[2] if positive else COLORS[1]
            color = color if name in differ else GREY
            axis.plot([mean - half, mean + half], [row, row], color=color, lw=1.5)
            face = color if name in differ else "white"
            axis.plot(mean, row, "o", ms=4.5, mec=color, mfc=face)
        axis.axvline(panel.line, color="black", lw=0.8)
        axis.set_title(panel.title, fontsize=TEXT)
        axis.set_yticks(range(len(order)), list(reversed(order)), fontsize=TEXT - 2)
        axis.set_ylim(-0.7, len(order) - 0.3)
        axis.tick_params(axis="x", labelsize=TEXT - 1)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="both", color="#e6e6e6", lw=0.6)
        axis.set_axisbelow(True)
    if any(
        panel.shown is panel.tested and "decades" not in panel.title for panel in shown
    ):
        figure.supxlabel("score, minus that of the unclipped arm", fontsize=TEXT)
    return figure


def save(figure: Figure, path: pathlib.Path) -> None:
    """Write a PNG of 256 colors."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    image = Image.open(buffer).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
