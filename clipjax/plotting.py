"""Figures of clipped training: loss, norms, ratio and threshold against the step.

Every function takes a mapping from the name of an arm to an array of shape `(steps,)`
or `(seeds, steps)` and returns a `matplotlib.figure.Figure` of its own; pyplot and its
global state are not involved. Lines are medians over seeds, bands
reach from the lowest to the highest seed. Needs `pip install 'clipjax[demos]'`.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

# Okabe and Ito's colors, told apart with every kind of color vision. Dashes repeat
# the distinction for print, and come round at a different pace.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (6, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))

Arms = Mapping[str, ArrayLike]


def plot_loss(losses: Arms, *, window: int = 1, unit: str = "nats") -> Figure:
    """Training loss on a logarithmic axis; a cross marks where a seed left the reals.

    Args:
        losses: loss at each step, by arm.
        window: length of the running mean in steps.
        unit: unit of the loss.
    """
    figure, axes = _figure(1)
    _draw_all(axes[0], losses, window)
    _log_axis(axes[0])
    axes[0].set_ylabel(f"training loss ({unit})")
    axes[0].set_title(f"Training loss{_mean_of(window)}")
    _legend(figure, axes[0])
    return figure


def plot_norms(raw: Arms, clipped: Arms, thresholds: Arms | None = None) -> Figure:
    """Gradient norm before and after clipping, one panel per arm on a common axis.

    Nothing is averaged over steps: spikes are what a clip is for.

    Args:
        raw: norm before clipping, by arm.
        clipped: norm after clipping, by arm.
        thresholds: what was allowed, by arm; drawn where finite.
    """
    figure, axes = _figure(max(len(raw), 1))
    for panel, name in zip(axes, raw, strict=False):
        color = COLOURS[2]
        _draw(panel, raw[name], 1, "before clipping", "#777777", DASHES[0], 1.0)
        _draw(panel, clipped[name], 1, "after clipping", color, DASHES[0], 1.0)
        limit = None if thresholds is None else _seeds(thresholds[name])
        if limit is not None and np.isfinite(limit).any():
            _draw(panel, limit, 1, "threshold", COLOURS[1], DASHES[1])
        panel.set_title(name, fontsize=9)
        _log_axis(panel)
    axes[0].set_ylabel("gradient norm")
    figure.suptitle("Gradient norm before and after clipping")
    fullest = max(axes, key=lambda panel: len(panel.get_legend_handles_labels()[0]))
    _legend(figure, fullest, plain=True)
    return figure


def plot_clip_ratio(ratios: Arms, *, window: int = 1) -> Figure:
    """Norm after clipping over norm before: 1 where the clip left a gradient alone.

    Args:
        ratios: norm after over norm before, by arm.
        window: length of the running mean in steps.
    """
    figure, axes = _figure(1)
    _draw_all(axes[0], ratios, window)
    highest = _highest(ratios)
    axes[0].set_ylim(0, 1.05 if highest <= 1 else None)
    axes[0].set_ylabel("clip ratio (norm after / norm before)")
    axes[0].set_title(f"Clip ratio{_mean_of(window)}")
    _legend(figure, axes[0])
    return figure


def plot_threshold(thresholds: Arms) -> Figure:
    """The norm that each arm allowed at each step; arms without a limit are named.

    Args:
        thresholds: threshold at each step, by arm; infinite means no limit.
    """
    figure, axes = _figure(1)
    limited = {
        name: values
        for name, values in thresholds.items()
        if not np.isposinf(_seeds(values)).all()
    }
    _draw_all(axes[0], limited, 1, order=list(thresholds), nested=True)
    unlimited = [name for name in thresholds if name not in limited]
    if unlimited:
        axes[0].plot([], [], " ", label=f"no limit: {', '.join(unlimited)}")
    if limited:
        _log_axis(axes[0])
        if len(set(_finite(limited).tolist())) == 1:
            # One constant has no scale of its own: leave a decade on both sides.
            level = _finite(limited)[0]
            axes[0].set_ylim(level / 10, level * 10)
    axes[0].set_ylabel("threshold (gradient norm)")
    axes[0].set_title("Threshold")
    _legend(figure, axes[0])
    return figure


def running_mean(values: ArrayLike, window: int) -> np.ndarray:
    """Mean over the last `window` entries of the last axis, fewer at its start."""
    values = np.asarray(values, np.float64)
    window = min(window, values.shape[-1])
    with np.errstate(invalid="ignore", over="ignore"):
        start = np.cumsum(values[..., : window - 1], axis=-1) / np.arange(1, window)
        windows = np.lib.stride_tricks.sliding_window_view(values, window, axis=-1)
        return np.concatenate([start, windows.mean(axis=-1)], axis=-1)


def _seeds(values: ArrayLike) -> np.ndarray:
    values = np.atleast_2d(np.asarray(values, np.float64))
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"an arm must have shape (steps,) or (seeds, steps), got {values.shape}"
        )
    return values


def _finite(arms: Arms) -> np.ndarray:
    """The finite positive values of all arms: what a logarithmic axis can show."""
    parts = [_seeds(values).ravel() for values in arms.values()]
    together = np.concatenate(parts) if parts else np.zeros(0)
    return together[np.isfinite(together) & (together > 0)]


def _highest(arms: Arms) -> float:
    return float(np.max(_finite(arms), initial=0.0))


def _figure(panels: int) -> tuple[Figure, Sequence[Axes]]:
    columns = 2 if panels == 4 else min(panels, 3)
    rows = math.ceil(panels / columns)
    size = (7.5, 4.2) if panels == 1 else (3.4 * columns + 0.6, 3.0 * rows + 0.9)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    panels_axes = list(grid.ravel())
    for spare in panels_axes[panels:]:
        spare.set_visible(False)
    for axes in panels_axes[:panels]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels_axes[:panels]


def _draw_all(
    axes: Axes,
    arms: Arms,
    window: int,
    order: Sequence[str] | None = None,
    nested: bool = False,
) -> None:
    """Draw every arm.

    Colours follow `order` when some of its arms are left out. Nested lines become
    thinner one after the other, so that equal ones can all be seen.
    """
    names = list(order or arms)
    for name, values in arms.items():
        index = names.index(name)
        color, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        width = 1.6 + nested * 1.4 * (len(names) - 1 - index)
        _draw(axes, values, window, name, color, dash, width)


def _draw(
    axes: Axes,
    values: ArrayLike,
    window: int,
    label: str,
    color: str,
    dash: str | tuple,
    width: float = 1.6,
) -> None:
    values = _seeds(values)
    smooth = running_mean(values, window)
    shown = np.where(np.isfinite(smooth), smooth, np.nan)
    steps = np.arange(values.shape[1])
    some = np.isfinite(shown).any(axis=0)
    left = int((~np.isfinite(values)).any(axis=1).sum())
    if left:
        label += f" ({left} of {len(values)} seeds not finite)"
    middle, low, high = (np.full(shown.shape[1], np.nan) for _ in range(3))
    middle[some] = np.nanmedian(shown[:, some], axis=0)
    low[some] = np.nanmin(shown[:, some], axis=0)
    high[some] = np.nanmax(shown[:, some], axis=0)
    style = {"color": color, "linestyle": dash, "linewidth": width}
    axes.plot(steps, middle, label=label, **style)
    if len(values) > 1:
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    for row in shown:
        finite = np.flatnonzero(np.isfinite(row))
        if finite.size and finite[-1] < len(row) - 1:
            last = finite[-1]
            cross = {"color": color, "markersize": 9, "markeredgewidth": 2}
            axes.plot(steps[last], row[last], "x", clip_on=False, zorder=5, **cross)


def _log_axis(axes: Axes) -> None:
    drawn = [np.asarray(line.get_ydata(), np.float64) for line in axes.get_lines()]
    if not any((values > 0).any() for values in drawn):
        return  # nothing that a logarithm could show
    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    decades = math.log10(high / low) if low > 0 else 99.0
    plain = FuncFormatter(_plain_number)
    axes.yaxis.set_major_formatter(plain)
    # Few decades: label numbers between the powers of ten as well.
    if decades < 0.3:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    elif decades < 3:
        between = (1, 2, 3, 4, 6) if decades < 1 else (1, 2, 5)
        axes.yaxis.set_major_locator(LogLocator(subs=between))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plain_number(value: float, position: int | None = None) -> str:
    if 1e-3 <= abs(value) < 1e5 or not value:
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    factor = value / 10**exponent
    power = f"10^{{{exponent}}}"
    return f"${power}$" if abs(factor - 1) < 1e-6 else f"${factor:g}\\cdot{power}$"


def _mean_of(window: int) -> str:
    return f", running mean over {window} steps" if window > 1 else ""


def _legend(figure: Figure, axes: Axes, plain: bool = False) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if plain:
        labels = [label.partition(" (")[0] for label in labels]
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(3, len(handles)),
            frameon=False,
            fontsize=9,
        )
