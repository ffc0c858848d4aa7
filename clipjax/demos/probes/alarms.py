"""How often thresholds from recorded norms clip, and what the mean ratio tells."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from clipjax import rules
from clipjax.diagnostics import over_clipping, suggest_thresholds

from ...plotting import plot_lines
from ..options import Whole
from .arguments import require
from .base import Report, beside

SPREADS = (0.1, 0.25, 0.5, 1.0)
STRATEGIES = ("g99 / 2", "maximum", "1.5 maximum")


class Measured(NamedTuple):
    """Hard clips of log-normal norms by thresholds from as many norms before.

    Attributes:
        spreads: `(spreads,)`, standard deviations of the logarithm of the norm.
        strategies: `(strategies,)`, names of rows of `suggest_thresholds`.
        clipped: `(strategies, spreads, seeds)`, the fraction of the steps clipped.
        low: likewise, the fraction with a ratio below one half.
        ratio: likewise, the mean ratio.
        alarm: likewise, whether `over_clipping` gives the alarm.
        soft_ratio: `(spreads, seeds)`, the mean ratio of the soft rule at g99 / 2.
    """

    spreads: np.ndarray
    strategies: np.ndarray
    clipped: np.ndarray
    low: np.ndarray
    ratio: np.ndarray
    alarm: np.ndarray
    soft_ratio: np.ndarray


def measure(*, seeds: int = 100, steps: int = 1000) -> Measured:
    """Draw norms, take thresholds from them, and clip as many further norms.

    Args:
        seeds: independent repetitions.
        steps: norms to take thresholds from, and norms to clip, at least 100.
    """
    require(Whole(), seeds=seeds)
    require(Whole(lowest=100), steps=steps)
    generator = np.random.default_rng(0)
    normal = generator.standard_normal((seeds, 2, steps))
    cells = [[_cell(np.exp(spread * pair)) for pair in normal] for spread in SPREADS]
    # (spreads, seeds, strategies, numbers)
    numbers = np.moveaxis(
        np.array([[c[0] for c in row] for row in cells]), (3, 2), (0, 1)
    )
    clipped, low, ratio, alarm = numbers
    soft = np.array([[cell[1] for cell in row] for row in cells])
    return Measured(
        np.array(SPREADS), np.array(STRATEGIES), clipped, low, ratio, alarm > 0, soft
    )


def _cell(pair: np.ndarray) -> tuple[list[tuple[float, ...]], float]:
    """Fractions, mean ratio and alarm by strategy, and the soft mean ratio."""
    before, after = pair
    found = {row.strategy: row.threshold for row in suggest_thresholds(before).rows}
    limits = [found[name] for name in STRATEGIES]
    norms, limit = np.broadcast_arrays(after, np.array(limits)[:, None])
    norms, limit = jnp.asarray(norms, jnp.float32), jnp.asarray(limit, jnp.float32)
    ratios = np.asarray(rules.hard.factor(norms, limit))
    soft = float(rules.soft.factor(norms[0], limit[0]).mean())
    alarms = [over_clipping(rules.hard, row) for row in ratios]
    return [
        (a.clipped_fraction, np.mean(row < 0.5), a.average_ratio, a.is_over_clipping)
        for a, row in zip(alarms, ratios, strict=True)
    ], soft


def report(measured: Measured) -> Report:
    """Fractions of clipped steps next to reported ones."""
    spreads, strategies, clipped, low, ratio, alarm, soft = measured
    percent = ("100", "67", "17", "5")
    half = list(strategies).index("g99 / 2")
    wide = list(spreads).index(0.5)
    names = [f"spread {spread:g}" for spread in spreads]
    guards = [
        (
            f"{name}, spread 0.5",
            said,
            clipped[list(strategies).index(name), wide],
        )
        for name, said in (("maximum", ".0011"), ("1.5 maximum", "6e-5"))
    ]
    tables = [
        beside(
            "Percent of the steps clipped by half the 99 % quantile",
            zip(names, percent, 100 * clipped[half], strict=True),
        ),
        beside(
            "Percent of these steps with a ratio below one half",
            zip(names, ["1"] * 4, 100 * low[half], strict=True),
        ),
        beside(
            "Mean ratio",
            zip(names, (".63", None, None, None), ratio[half], strict=True),
        ),
        beside("Fraction clipped by the largest norm before", guards),
        beside(
            "Mean ratio of the soft rule", zip(names, [None] * 4, soft, strict=True)
        ),
    ]
    figure = plot_lines(
        {str(s): clipped[k].mean(axis=1) for k, s in enumerate(strategies)},
        spreads,
        x_label="standard deviation of log norm",
        y_label="fraction of steps clipped",
        title="Thresholds from recorded norms",
        is_log=(True, True),
    )
    raised = int(alarm[half].sum())
    return Report(
        tables,
        [
            f"Half the 99 % quantile clips {clipped[half, 0].mean():.0%} of the steps "
            f"at the smallest spread, {clipped[half, -1].mean():.0%} at the largest. "
            "The alarm, a mean ratio below one half, sounds in "
            f"{raised} of {alarm[half].size} runs: report the fraction of clipped "
            "steps as well.",
            f"The largest norm clips {clipped[1].mean():.2%} of later steps, and 1.5 "
            f"times it {clipped[2].mean():.3%}: a guard against explosion, not a clip "
            "of ordinary steps.",
            "Under the soft rule a ratio below one half only says that the norm is "
            "above the threshold, which is ordinary operation.",
        ],
        figure,
    )
