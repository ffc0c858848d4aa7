"""The final loss of a deep network by learning rate and threshold."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...plotting import plot_sweep
from .. import heat_map, presets
from ..options import Whole
from .arguments import require
from .base import Report, beside, number
from .training import SCALING, digits

REPORTED = {
    0.01: ("2.03", ".767", ".403", ".125", ".108"),
    0.03: ("1.24", ".289", ".185", ".020", ".022"),
    0.1: (".402", ".137", ".060", ".003", ".004"),
    0.3: (".186", ".037", ".026", ".012", ".206"),
}
THRESHOLDS = (0.1, 0.5, 1.0, 5.0)
LAST = 50  # losses at the end of a run that are averaged


class Measured(NamedTuple):
    """The cells of the heat map.

    Attributes:
        learning_rates: `(rates,)`.
        thresholds: `(thresholds,)`, the last of them infinite: no clip.
        loss: `(rates, thresholds, seeds)`, mean of the last losses.
        diverged: `(rates, thresholds, seeds)`.
        steps: of each run.
    """

    learning_rates: np.ndarray
    thresholds: np.ndarray
    loss: np.ndarray
    diverged: np.ndarray
    steps: int


def measure(
    *,
    seeds: int = 2,
    steps: int = 300,
    standardize: int = 1,
    watch: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Train a ReLU network of ten layers from He's initial weights with SGD.

    Args:
        seeds: runs per cell.
        steps: of each run.
        standardize: 1 for pixels of mean 0 and variance 1, 0 for pixels from 0 to 1.
        watch: called with a text on the current run, every few steps.
    """
    require(Whole(1000), seeds=seeds)
    require(Whole(1_000_000), steps=steps)
    settings = presets.Tuning(
        "mlp",
        presets.MLP(),
        lr=tuple(REPORTED),
        thresholds=THRESHOLDS,
        steps=steps,
        seeds=seeds,
        last=min(LAST, steps),
    )
    runs = heat_map.train(
        settings,
        digits(settings.model, standardize),
        heat_map.keys_of(settings),
        lambda key, step, log: watch(
            f"learning rate {key[0]:g}, threshold {key[1]:g}, step {step}"
        ),
    )
    found = heat_map.gather(settings, {run.key: run for run in runs})
    return Measured(
        found.learning_rates, found.thresholds, found.loss, found.diverged, steps
    )


def report(measured: Measured) -> Report:
    """The cells next to reported ones, the best one, and what small thresholds cost."""
    rates, thresholds = measured.learning_rates, measured.thresholds
    is_reported = measured.steps == 300
    rows = [
        (
            f"learning rate {rate:g}, {_name(threshold)}",
            REPORTED[rate][column] if is_reported else None,
            measured.loss[row, column],
        )
        for row, rate in enumerate(rates)
        for column, threshold in enumerate(thresholds)
    ]
    mean, is_bad = measured.loss.mean(axis=-1), measured.diverged.any(axis=-1)
    loss = np.where(is_bad | ~np.isfinite(mean), np.inf, mean)
    best = np.unravel_index(np.argmin(loss), loss.shape)
    gains = [
        f"{rate:g} ({number(row[:-1].min())} against "
        + ("divergence" if np.isinf(row[-1]) else number(row[-1]))
        + ")"
        for rate, row in zip(rates, loss, strict=True)
        if row[:-1].min() < 0.9 * row[-1]
    ]
    figure = plot_sweep(
        mean,
        rates,
        thresholds,
        diverged=is_bad,
        label=f"mean of the last {LAST} losses in nats",
    )
    helps = ", ".join(gains) if gains else "none"
    seeds = measured.loss.shape[-1]
    said = np.array([list(map(float, REPORTED[rate])) for rate in rates.tolist()])
    near = int((np.abs(np.log(loss / said)) < np.log(1.25)).sum())
    return Report(
        [beside(f"Mean of the last {LAST} losses", rows)],
        [
            f"The lowest loss is at learning rate {rates[best[0]]:g} with "
            f"{_name(thresholds[best[1]])}.",
            f"The best threshold is more than 10 % better than no clip at learning "
            f"rates: {helps}.",
            f"At learning rate {rates[0]:g} a threshold of {thresholds[0]:g} gives "
            f"{number(loss[0, 0])}, and no clip {number(loss[0, -1])}.",
            *(
                [
                    f"{near} of the {said.size} cells lie within 25 % of the reported "
                    "numbers, which have one seed each; seeds here: "
                    f"{seeds}."
                ]
                if is_reported
                else []
            ),
            SCALING,
        ],
        figure,
    )


def _name(threshold: float) -> str:
    return "no clip" if np.isinf(threshold) else f"threshold {threshold:g}"
