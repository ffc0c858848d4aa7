"""Whether a clip raises the learning rates that converge, or the best speed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...plotting import plot_lines
from ..options import Whole
from .arguments import require
from .base import Report, Table, beside, number
from .paths import Gradient, Tuned, clipped_sgd, path
from .quartic import tune_all

RATES = np.array([0.5, 1.0, 1.5, 1.9, 1.99, 2.01, 2.1, 3.0, 4.0, 8.0])
THRESHOLDS = np.array([np.inf, 1.0, 0.1])
REPORTED = {
    (2.1, 1.0): "0.53",
    (4.0, 1.0): "1.2",
    (8.0, 1.0): "9.4",
    (2.1, 0.1): "0.005",
    (4.0, 0.1): "0.009",
    (8.0, 0.1): "0.042",
}
CURVATURES = jnp.array([1.0, 0.1])
OBJECTIVES: dict[str, Gradient] = {
    "x²/2": lambda x: x,
    "x²/2 + y²/20": lambda x: CURVATURES * x,
    "x⁴": lambda x: 4 * x**3,
    "cosh(x)": jnp.sinh,
}


class Measured(NamedTuple):
    """Learning rates on x²/2, and the best settings on several objectives.

    Attributes:
        rates: `(rates,)`.
        thresholds: `(3,)`: inf (no clip), 1 and 0.1.
        loss: x²/2 after the last step, `(3, rates, starts)`.
        tuned: by objective, by kind of clip, the best common settings.
    """

    rates: np.ndarray
    thresholds: np.ndarray
    loss: np.ndarray
    tuned: dict[str, dict[str, Tuned]]


def measure(*, steps: int = 2000, starts: int = 12, grid: int = 31) -> Measured:
    """Descend on x²/2 with each pair, and tune on every objective.

    Args:
        steps: of each path.
        starts: evenly spaced from 3 to 7.
        grid: learning rates, and thresholds, that are tried.
    """
    require(Whole(), steps=steps, starts=starts, grid=grid)
    several = np.linspace(3.0, 7.0, starts)

    def end(threshold: jax.Array, rate: jax.Array, start: jax.Array) -> jax.Array:
        return path(clipped_sgd(rate, threshold), lambda x: x, start, steps)[-1]

    ends = jax.vmap(
        jax.vmap(jax.vmap(end, (None, None, 0)), (None, 0, None)), (0, None, None)
    )
    grids = (jnp.asarray(each, float) for each in (THRESHOLDS, RATES, several))
    last = np.asarray(jax.jit(ends)(*grids), np.float64)
    tuned = {}
    for name, gradient in OBJECTIVES.items():
        points = several
        if "y" in name:
            points = np.stack([several, several[::-1]], axis=1)
        tuned[name] = tune_all(gradient, points, grid=grid, steps=steps)
    return Measured(RATES, THRESHOLDS, 0.5 * np.square(last), tuned)


def report(measured: Measured) -> Report:
    """Final losses next to reported ones, and steps with the best settings."""
    rates, thresholds = measured.rates.tolist(), measured.thresholds.tolist()
    rows = [
        (
            f"η = {rate:g}, C = {threshold:g}",
            said,
            measured.loss[thresholds.index(threshold), rates.index(rate)],
        )
        for (rate, threshold), said in REPORTED.items()
    ]
    steps = [
        (name, *(number(best.steps) for best in found.values()))
        for name, found in measured.tuned.items()
    ]
    worst = measured.loss.max(axis=-1)
    largest = [measured.rates[row < 1e-6].max(initial=0.0) for row in worst]
    moved = [rate for rate in largest[1:] if rate > largest[0]]
    is_stuck = np.isfinite(worst[1:, measured.rates > 2]).all()
    gains = {
        name: found["no clip"].steps
        / min(found["hard clip"].steps, found["soft clip"].steps)
        for name, found in measured.tuned.items()
    }
    faster = [f"{name} ({gain:.3g} times)" for name, gain in gains.items() if gain > 1]
    slower = [name for name, gain in gains.items() if gain <= 1]
    return Report(
        [
            beside("x²/2: loss after the last step, over starts from 3 to 7", rows),
            Table(
                "Steps to a distance of 0.1 from all starts, best common settings",
                ("", *measured.tuned["x⁴"]),
                steps,
            ),
        ],
        [
            "The largest learning rate of the table that converges on x²/2 is "
            + ", ".join(
                (f"{rate:g} " if rate else "none ")
                + ("without a clip" if np.isinf(limit) else f"for C = {limit:g}")
                for rate, limit in zip(largest, thresholds, strict=True)
            )
            + ("; after so few steps, higher with a clip. " if moved else "")
            + ("" if moved else ": the limit 2/L does not move. ")
            + (
                "Beyond it clipped paths stay finite, and go to and fro over a "
                "distance of ηC; where they end depends on the start."
                if is_stuck
                else "Beyond it some paths are not finite."
            ),
            f"With the best settings a clip is faster on {listed(faster)}, and not on "
            f"{listed(slower)}. A clip gains against a fixed step that has to be safe "
            "at every start, where the curvature grows with the gradient.",
        ],
        _figure(measured),
    )


def listed(names: list[str]) -> str:
    """The names, or that there are none."""
    return ", ".join(names) or "none of them"


def _figure(measured: Measured):
    names = ("no clip", "C = 1", "C = 0.1")
    # Lost paths are drawn where the axis ends, a minimum that is exact where it begins.
    loss = np.clip(np.nan_to_num(measured.loss, nan=np.inf), 1e-12, 1e6)
    figure = plot_lines(
        {name: np.median(each, axis=1) for name, each in zip(names, loss, strict=True)},
        measured.rates,
        x_label="learning rate η (1/L = 1)",
        y_label="loss at the end, from 1e-12 to 1e6",
        title="x²/2, median over starts from 3 to 7",
        is_log=(True, True),
    )
    figure.axes[0].axvline(2.0, color="0.5", linewidth=1, zorder=1)
    return figure
