"""Figures of a run: loss, norms, clip ratio and threshold against the step."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .arms import Arm, Steps, Values, finite_positive, read_arms, read_companion
from .canvas import (
    COLORS,
    DASHES,
    GREY,
    Style,
    count_steps,
    log_axis,
    open_canvas,
    percent,
    set_title,
)
from .curves import draw, draw_arms

BEFORE = Style(GREY, DASHES[0], "")
AFTER = Style("#00436b", DASHES[0], "")  # darker than the gray in any print
LIMIT = Style(COLORS[1], DASHES[1], "")
CLIPPED = 1 - 1e-6  # beyond the rounding of a float32 norm


def plot_loss(
    losses: Values,
    *,
    steps: Steps | None = None,
    axes: Any = None,
    window: int = 1,
    unit: str = "nats",
) -> Figure:
    """Draw the training loss on a logarithmic axis.

    A cross marks where the loss of a seed stops being finite; the legend counts such
    seeds.

    Args:
        losses: loss at each step, ``(steps,)`` or ``(seeds, steps)``, by arm if
            several; of a history, the column ``loss``.
        steps: the x values.
        axes: the Axes to draw into.
        window: length of the running mean in steps.
        unit: unit of the loss.

    Returns:
        The figure.

    Raises:
        TypeError: losses are not real numbers.
        ValueError: an arm has another shape, or another number of steps than ``steps``.

    Example:
        >>> import numpy as np
        >>> figure = plot_loss({"sgd": np.geomspace(4.0, 1.0, 50)}, unit="bits")
        >>> figure.axes[0].get_ylabel()
        'training loss (bits)'
    """
    arms = read_arms("losses", losses, "loss", steps)
    canvas = open_canvas(1, axes, 2.6)
    (panel,) = canvas.panels
    draw_arms(panel, arms, window)
    count_steps(panel)
    log_axis(canvas.panels)
    canvas.label("step", f"training loss ({unit})", f"Training loss{_mean_of(window)}")
    canvas.legend()
    return canvas.figure


def plot_norms(
    raw: Values,
    clipped: Values | None = None,
    thresholds: Values | None = None,
    *,
    steps: Steps | None = None,
    axes: Any = None,
) -> Figure:
    """Draw the gradient norm before and after clipping, one panel per arm.

    Nothing is averaged over steps, which would hide spikes. Ticks along the top mark
    the steps that were clipped (for several seeds, where at least half of them were),
    crosses there the steps whose norm is NaN or infinite. The title has the fraction of
    clipped steps, over all seeds.

    | given | a step counts as clipped if |
    |---|---|
    | ``clipped`` | its norm became smaller |
    | ``thresholds`` only | its norm is above the threshold |
    | neither | no steps are marked |

    Args:
        raw: norm before clipping, by arm if several; of a history, the column
            ``grad_norm_raw``.
        clipped: norm after clipping, of the same shapes; of a history, the column
            ``grad_norm_clipped``, which is also read from a history passed as ``raw``.
        thresholds: the threshold at each step, of the same shapes, or one number or
            array for all arms; of a history, the column ``threshold``. Drawn where
            finite.
        steps: the x values.
        axes: the Axes to draw into, one per arm.

    Returns:
        The figure.

    Raises:
        TypeError: an argument does not contain real numbers.
        ValueError: arms or shapes differ between the arguments.

    Example:
        >>> import numpy as np
        >>> norms = np.array([1.0, 5.0, 2.0, 9.0])
        >>> figure = plot_norms(norms, np.minimum(norms, 4.0), 4.0)
        >>> figure.axes[0].get_title().splitlines()[-1]
        '50 % of steps clipped'
    """
    arms = read_arms("raw", raw, "grad_norm_raw", steps)
    after = read_companion("clipped", clipped, "grad_norm_clipped", "raw", arms)
    limits = read_companion(
        "thresholds", thresholds, "threshold", "raw", arms, is_shared=True
    )
    canvas = open_canvas(len(arms), axes, 2.6 if len(arms) == 1 else 1.8)
    for panel, (name, arm) in zip(canvas.panels, arms.items(), strict=True):
        draw(panel, arm, BEFORE, "before clipping", width=1.2)
        shortened = None
        if name in limits and np.isfinite(limits[name]).any():
            draw(panel, arm._replace(values=limits[name]), LIMIT, "threshold")
            shortened = arm.values > limits[name]
        if name in after:
            draw(panel, arm._replace(values=after[name]), AFTER, "after clipping", 1, 1)
            shortened = after[name] < arm.values * CLIPPED
        title = name
        if shortened is not None:
            title += f": {percent(shortened.mean())} of steps clipped"
            _mark(panel, arm.steps[shortened.mean(axis=0) >= 0.5], "|", "clipped step")
        _mark(panel, arm.steps[_holes(arm)], "x", "norm not finite")
        panel.margins(y=0.12)  # keeps the marks off the curves
        set_title(panel, title.removeprefix(": "))
        count_steps(panel)
    log_axis(canvas.panels)
    title = "Gradient norm before and after clipping" if after else "Gradient norm"
    canvas.label("step", "gradient norm", title)
    canvas.legend()
    return canvas.figure


def plot_clip_ratio(
    ratios: Values,
    *,
    steps: Steps | None = None,
    axes: Any = None,
    window: int = 1,
) -> Figure:
    """Draw the norm after clipping over the norm before.

    The ratio is 1 where the clip did not change the gradient.

    Args:
        ratios: norm after over norm before, by arm if several; of a history, the column
            ``clip_ratio``.
        steps: the x values.
        axes: the Axes to draw into.
        window: length of the running mean in steps.

    Returns:
        The figure.

    Raises:
        TypeError: ratios are not real numbers.
        ValueError: an arm has another shape, or another number of steps than ``steps``.

    Example:
        >>> figure = plot_clip_ratio([1.0, 0.2, 1.0])
        >>> figure.axes[0].get_title()
        'Clip ratio'
    """
    arms = read_arms("ratios", ratios, "clip_ratio", steps)
    canvas = open_canvas(1, axes, 2.6)
    (panel,) = canvas.panels
    draw_arms(panel, arms, window)
    count_steps(panel)
    highest = np.max(finite_positive([arm.values for arm in arms.values()]), initial=0)
    panel.set_ylim(0, 1.05 if highest <= 1 else None)
    canvas.label("step", "norm after / before", f"Clip ratio{_mean_of(window)}")
    canvas.legend()
    return canvas.figure


def plot_threshold(
    thresholds: Values, *, steps: Steps | None = None, axes: Any = None
) -> Figure:
    """Draw the threshold of each arm; the legend names arms without one.

    Args:
        thresholds: threshold at each step, by arm if several; infinite means no limit.
            Of a history, the column ``threshold``.
        steps: the x values.
        axes: the Axes to draw into.

    Returns:
        The figure.

    Raises:
        TypeError: thresholds are not real numbers.
        ValueError: an arm has another shape, or another number of steps than ``steps``.

    Example:
        >>> figure = plot_threshold({"constant": [1.0, 1.0], "learnt": [3.0, 2.0]})
        >>> [line.get_label() for line in figure.axes[0].get_lines()]
        ['constant', 'learnt']
    """
    arms = read_arms("thresholds", thresholds, "threshold", steps)
    canvas = open_canvas(1, axes, 2.6)
    (panel,) = canvas.panels
    limited = {
        name: arm for name, arm in arms.items() if not np.isposinf(arm.values).all()
    }
    draw_arms(panel, limited, order=list(arms), is_nested=True)
    unlimited = [name or "thresholds" for name in arms if name not in limited]
    if unlimited:
        panel.plot([], [], " ", label=f"no limit: {', '.join(unlimited)}")
    count_steps(panel)
    if limited:
        levels = finite_positive([arm.values for arm in limited.values()])
        if np.ptp(levels) == 0 if levels.size else False:
            # One constant has no scale of its own: leave a decade on both sides.
            panel.set_ylim(levels[0] / 10, levels[0] * 10)
        log_axis(canvas.panels)
    canvas.label("step", "threshold (gradient norm)", "Threshold")
    canvas.legend()
    return canvas.figure


def _holes(arm: Arm) -> np.ndarray:
    """Return the steps without a finite norm that later steps have again."""
    bad = ~np.isfinite(arm.values)
    later = np.cumsum(~bad[:, ::-1], axis=1)[:, ::-1] > 0
    return np.flatnonzero((bad & later).any(axis=0))


def _mark(panel: Axes, steps: np.ndarray, marker: str, label: str) -> None:
    """Mark steps along the upper edge of a panel."""
    if steps.size:
        style = {"color": "black", "markersize": 7, "markeredgewidth": 0.9}
        at_top = panel.get_xaxis_transform()
        height = np.full(steps.shape, 0.97)
        panel.plot(steps, height, marker, label=label, transform=at_top, **style)


def _mean_of(window: int) -> str:
    return f", running mean over {window} steps" if window > 1 else ""
