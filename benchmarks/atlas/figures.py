"""One figure per question: a row for each method, with intervals."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from clipjax.plotting.canvas import COLORS, DPI, GREY, TEXT, WIDTH

from .arms import UNCLIPPED
from .conditions import NAMES
from .estimates import Estimate, ranked
from .summary import RATES, Atlas, methods

ROW = 0.165  # inches for each method
FIGURES = pathlib.Path(__file__).parents[2] / "docs" / "figures"


class Panel(NamedTuple):
    """What one panel shows of each method.

    Attributes:
        title: what the numbers are.
        shown: the mean and the interval of each method.
        above: the methods that differ, and are better; drawn full, and in color.
        below: those that are worse.
        line: the value of the unclipped arm.
    """

    title: str
    shown: Mapping[str, Estimate]
    above: Collection[str]
    below: Collection[str]
    line: float = 0.0


def panels(atlas: Atlas) -> dict[str, list[Panel]]:
    """Return the panels of each figure by its name."""

    def difference(what: str, title: str) -> Panel:
        found = atlas.tests[UNCLIPPED, what]
        return Panel(title, found, *atlas.verdicts(UNCLIPPED, what))

    def score(name: str) -> Estimate:
        return Estimate.of([atlas.score(task, name, "spikes") for task in atlas.tasks])

    return {
        "atlas_spikes": [
            Panel(
                "score under spikes (the line: unclipped)",
                {name: score(name) for name in methods()},
                *atlas.verdicts(UNCLIPPED, "spikes"),
                score(UNCLIPPED).mean,
            )
        ],
        "atlas_clean": [difference("clean", "clean")],
        "atlas_rates": [
            difference(RATES, "decades of usable rates,\nminus those without a clip")
        ],
        "atlas_faults": [
            difference(one, one) for one in ("bad batches", "label noise")
        ],
    }


def draw(shown: Sequence[Panel]) -> Figure:
    """Draw the panels side by side, the best method of the first one at the top."""
    order = ranked(dict(shown[0].shown))
    figure = Figure((WIDTH, ROW * len(order) + 0.9), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, axis in zip(shown, axes, strict=True):
        for row, name in enumerate(reversed(order)):
            mean, half, _ = panel.shown[name]
            color = COLORS[2] if name in panel.above else GREY
            color = COLORS[1] if name in panel.below else color
            axis.plot([mean - half, mean + half], [row, row], color=color, lw=1.5)
            face = "white" if color == GREY else color
            axis.plot(mean, row, "o", ms=4.5, mec=color, mfc=face)
        axis.axvline(panel.line, color="black", lw=0.8)
        axis.set_title(panel.title, fontsize=TEXT)
        axis.set_yticks(range(len(order)), list(reversed(order)), fontsize=TEXT - 2)
        axis.set_ylim(-0.7, len(order) - 0.3)
        axis.tick_params(axis="x", labelsize=TEXT - 1)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="both", color="#e6e6e6", lw=0.6)
        axis.set_axisbelow(True)
    if all(panel.title in NAMES for panel in shown):
        figure.supxlabel("score, minus that of the unclipped arm", fontsize=TEXT)
    return figure


def save(figure: Figure, path: pathlib.Path) -> None:
    """Write a PNG of 256 colors."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    image = Image.open(buffer).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
