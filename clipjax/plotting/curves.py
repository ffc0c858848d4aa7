"""Lines against the step: median and range over seeds, crosses where a seed ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from .arms import Arm, Arms
from .canvas import Style, style_of


def running_mean(values: ArrayLike, window: int) -> np.ndarray:
    """Return the mean over the last `window` entries of the last axis.

    Args:
        values: an array ``(..., steps)``; a mean over NaN or inf is not finite.
        window: how many entries; at the start of the axis, those that exist.

    Returns:
        A float64 array of the same shape.

    Example:
        >>> running_mean([1.0, 3.0, 5.0], 2)
        array([1., 2., 4.])
    """
    values = np.asarray(values, np.float64)
    window = min(window, values.shape[-1])
    with np.errstate(invalid="ignore", over="ignore"):
        start = np.cumsum(values[..., : window - 1], axis=-1) / np.arange(1, window)
        windows = np.lib.stride_tricks.sliding_window_view(values, window, axis=-1)
        return np.concatenate([start, windows.mean(axis=-1)], axis=-1)


def draw_arms(
    panel: Axes,
    arms: Arms,
    window: int = 1,
    *,
    order: Sequence[str] | None = None,
    is_nested: bool = False,
) -> None:
    """Draw every arm.

    Args:
        panel: the Axes to draw into.
        arms: the arms, by name.
        window: length of the running mean in steps.
        order: all arms that have a style, if some are left out.
        is_nested: whether lines become thinner one after the other, so that equal ones
            can all be seen.
    """
    names = list(order or arms)
    for name, arm in arms.items():
        index = names.index(name)
        width = 1.6 + is_nested * 1.4 * (len(names) - 1 - index)
        label = with_lost_seeds(name, arm.values)
        draw(panel, arm, style_of(index), label, window, width)


def with_lost_seeds(name: str, values: np.ndarray) -> str:
    """Add to the name of an arm how many seeds have a NaN or an infinity."""
    lost = int((~np.isfinite(values)).any(axis=1).sum())
    seeds = len(values)
    note = f"{lost} of {seeds} seeds not finite" if seeds > 1 else "not finite"
    if not lost:
        return name
    return f"{name} ({note})" if name else note


def draw(
    panel: Axes,
    arm: Arm,
    style: Style,
    label: str,
    window: int = 1,
    width: float = 1.6,
) -> None:
    """Draw the median over seeds, their range, and a cross where a seed ends."""
    smooth = running_mean(arm.values, window)
    shown = np.where(np.isfinite(smooth), smooth, np.nan)
    some = np.isfinite(shown).any(axis=0)
    middle, low, high = (np.full(shown.shape[1], np.nan) for _ in range(3))
    middle[some] = np.nanmedian(shown[:, some], axis=0)
    low[some] = np.nanmin(shown[:, some], axis=0)
    high[some] = np.nanmax(shown[:, some], axis=0)
    line = {"color": style.color, "linestyle": style.dash, "linewidth": width}
    if np.count_nonzero(np.isfinite(middle)) == 1:
        line["marker"] = style.marker  # one point has no line
    panel.plot(arm.steps, middle, label=label, **line)
    if len(arm.values) > 1:
        band = {"color": style.color, "alpha": 0.18, "linewidth": 0}
        panel.fill_between(arm.steps, low, high, **band)
    for row in shown:
        finite = np.flatnonzero(np.isfinite(row))
        if finite.size and finite[-1] < len(row) - 1:
            last = finite[-1]
            cross = {"color": style.color, "markersize": 9, "markeredgewidth": 2}
            panel.plot(
                arm.steps[last], row[last], "x", clip_on=False, zorder=5, **cross
            )
