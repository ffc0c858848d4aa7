"""Draws the figures of docs/choosing.md and docs/thresholds.md.

The decision figure is text in boxes. The paths of thresholds come from the example on
the page: `docs/thresholds.md` defines norms and strategies, and this script runs it.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
from draw_figures import save
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from run_snippets import BLOCK

from clipjax.plotting.canvas import COLORS, DPI, GREY, TEXT, WIDTH

HERE = pathlib.Path(__file__).parent

QUESTIONS = [
    ("Is the gradient NaN or\ninfinite now and then?", "skip_nonfinite"),
    ("May no single example\ncount too much?\n(privacy, outliers)", "clipped_grad"),
    (
        "Does the gradient grow on\nits way back through time?",
        "clip_by_global_norm\nclip_cotangent",
    ),
    ("Does one layer spike,\nor one entry?", "adagc\nspam_clip"),
    (
        "Are there spikes, while\nthe usual norm falls\nor drifts?",
        "zclip\nquantile_clip",
    ),
    (
        "Are there spikes above\na level that stays?",
        "clip_by_global_norm\nclipjax tune --history",
    ),
    (
        "Are steps too long for\nthe weights they change?",
        "adaptive_grad_clip\nclippy",
    ),
    (
        "Does the run diverge at\nthe learning rate that\nyou want?",
        "clip_by_global_norm\nclipjax tune",
    ),
]
LAST = "No clip, or a loose one that records the norm:\nclip_by_global_norm(jnp.inf)"


def decision() -> Figure:
    """Draws questions from top to bottom, and to the right of each its method."""
    height = 0.92
    figure = Figure(figsize=(WIDTH, height * (len(QUESTIONS) + 0.9)), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(-0.9, len(QUESTIONS)))
    axes.axis("off")
    arrow = {"arrowstyle": "-|>", "color": "#404040", "lw": 1.2}
    for row, (question, method) in enumerate(QUESTIONS):
        middle = len(QUESTIONS) - row - 0.5
        box(axes, 0.08, middle, 2.05, question, "#f2f2f2", GREY)
        box(axes, 2.62, middle, 1.8, method, "#e3eef6", COLORS[2], bold=True)
        axes.annotate("", (2.6, middle), (2.15, middle), arrowprops=arrow)
        axes.text(2.36, middle + 0.06, "yes", ha="center", va="bottom", size=TEXT)
        axes.annotate("", (1.1, middle - 0.66), (1.1, middle - 0.36), arrowprops=arrow)
        axes.text(1.18, middle - 0.51, "no", va="center", size=TEXT)
    box(axes, 0.08, -0.5, WIDTH - 0.16, LAST, "#f2f2f2", GREY)
    return figure


def box(
    axes: Any, left: float, middle: float, width: float, text: str, *colors, bold=False
):
    """Draws a box with text in its middle; colors are those of face and edge."""
    face, edge = colors
    style = "round,pad=0,rounding_size=0.06"
    patch = FancyBboxPatch(
        (left, middle - 0.34), width, 0.68, boxstyle=style, fc=face, ec=edge, lw=1.1
    )
    axes.add_patch(patch)
    axes.text(
        *(left + width / 2, middle, text),
        **{"ha": "center", "va": "center", "size": TEXT, "linespacing": 1.2},
        weight="bold" if bold else "normal",
    )


def threshold_paths() -> Figure:
    """Draws the threshold of each strategy over the norms of docs/thresholds.md."""
    page = (HERE / "thresholds.md").read_text(encoding="utf-8")
    (code,) = (b.group(1) for b in BLOCK.finditer(page) if "def follow(" in b.group(1))
    names: dict[str, Any] = {}
    exec(code, names)
    norms, first = np.asarray(names["norms"]), 2950
    steps = np.arange(first, len(norms))
    strategies = names["strategies"]
    figure = Figure(figsize=(WIDTH, 1.25 * len(strategies) / 2 + 0.5), dpi=DPI)
    panels = figure.subplots(-(-len(strategies) // 2), 2, sharex=True, sharey=True)
    found = jax.jit(lambda: names["follow"](strategies))()
    for panel, name in zip(panels.flat, strategies, strict=True):
        thresholds = np.asarray(found[name][0])[first:]
        panel.plot(steps, norms[first:], color=GREY, lw=0.8)
        panel.plot(steps, thresholds, color=COLORS[2], lw=1.6)
        panel.set_title(name, size=TEXT, pad=3)
        panel.set(yscale="log", ylim=(0.3, 2e4))
        panel.tick_params(labelsize=TEXT - 1)
    figure.supxlabel("step", size=TEXT)
    figure.supylabel("norm (grey), threshold (blue)", size=TEXT)
    figure.set_layout_engine("constrained")
    return figure


if __name__ == "__main__":
    drawings = {"choosing": decision, "threshold_paths": threshold_paths}
    for name, draw in drawings.items():
        path = HERE / "figures" / f"{name}.png"
        save(draw(), path)
        print(path.relative_to(HERE.parent), f"{path.stat().st_size / 1000:.0f} kB")
