"""Learning rates that recurrent networks bear, with and without a clip."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...plotting import plot_lines
from .. import presets
from ..options import Whole
from ..tasks.build import build_task
from .arguments import require
from .base import Report, beside, number
from .training import UNCLIPPED, Arm, Runs, train, usable

HARD = (UNCLIPPED, Arm("hard clip at 1", 1.0), Arm("hard clip at 5", 5.0))
ARMS = (*HARD, Arm("soft clip at 1", 1.0, True))
RATES = (0.1, 0.3, 1.0, 3.0)
LSTM_RATES = (*RATES, 10.0)
LAST = 10  # losses at the end of a run that are averaged
GAINS = (1.0, 1.5)

REPORTED = {
    "tanh, gain 1": (
        ("2.55", "2.24", "18.9", "36.8"),
        ("2.55", "2.26", "1.95", "5.30"),
        ("2.55", "2.24", "4.91", "36.3"),
        (None,) * 4,
    ),
    "tanh, gain 1.5": (
        ("2.61", "2.31", "13.9", "53.8"),
        ("2.62", "2.35", "2.02", "4.61"),
        ("2.61", "2.31", "4.72", "48.6"),
        ("2.67", "2.52", "2.14", "5.40"),
    ),
    "LSTM": (
        ("3.42", "3.04", "2.79", "2.69", "26.1"),
        ("3.42", "3.04", "2.79", "2.69", "2.44"),
        (None, None, None, "2.69", "2.30"),
    ),
}


class Measured(NamedTuple):
    """Runs on character text; 96 units, batches of 32 sequences of 100, SGD.

    Attributes:
        rates: `(rates,)`, learning rates of the tanh networks.
        gain: runs of a tanh network with gain 1, for `ARMS`.
        large_gain: with gain 1.5.
        lstm_rates: `(rates,)`, learning rates of the LSTM.
        lstm: runs of an LSTM of two layers, for `HARD`.
    """

    rates: np.ndarray
    gain: Runs
    large_gain: Runs
    lstm_rates: np.ndarray
    lstm: Runs


def measure(
    *,
    seeds: int = 2,
    steps: int = 250,
    lstm_steps: int = 150,
    watch: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Train three networks at each learning rate with each clip.

    Args:
        seeds: initial weights and orders of the batches.
        steps: of each run of a tanh network.
        lstm_steps: of each run of the LSTM.
        watch: called with a text on the current run, every few steps.
    """
    require(Whole(1000), seeds=seeds)
    require(Whole(1_000_000), steps=steps, lstm_steps=lstm_steps)

    def runs(model, arms, rates, count, label) -> Runs:
        return train(
            build_task(model),
            arms,
            rates,
            steps=count,
            seeds=seeds,
            watch=watch,
            label=label,
        )

    gain, large_gain = (
        runs(presets.RNN(gain=gain), ARMS, RATES, steps, f"gain {gain:g}:")
        for gain in GAINS
    )
    model = presets.RNN(cell="lstm", layers=2)
    lstm = runs(model, HARD, LSTM_RATES, lstm_steps, "LSTM:")
    return Measured(np.array(RATES), gain, large_gain, np.array(LSTM_RATES), lstm)


def report(measured: Measured) -> Report:
    """Final losses next to reported ones, and the highest rates that can be used."""
    networks = {
        "tanh, gain 1": (measured.gain, ARMS, RATES, 250),
        "tanh, gain 1.5": (measured.large_gain, ARMS, RATES, 250),
        "LSTM": (measured.lstm, HARD, LSTM_RATES, 150),
    }
    tables, findings = [], []
    for name, (runs, arms, rates, reported_steps) in networks.items():
        is_reported = runs.loss.shape[-1] == reported_steps
        final = runs.last(LAST)
        rows = [
            (
                f"{arm.label}, learning rate {rate:g}",
                REPORTED[name][row][column] if is_reported else None,
                final[row, column],
            )
            for row, arm in enumerate(arms)
            for column, rate in enumerate(rates)
        ]
        tables.append(beside(f"{name}: mean of the last {LAST} losses", rows))
        mean = np.where(np.isfinite(final), final, np.inf).mean(axis=-1)
        findings.append(
            f"{name}. {usable(arms, rates, runs.has_diverged)} The learning rate with "
            "the lowest final loss is "
            + ", ".join(
                f"{rates[np.argmin(row)]:g} with {arm.label} ({number(row.min())})"
                for arm, row in zip(arms, mean, strict=True)
            )
            + "."
        )
    at = LSTM_RATES.index(1.0)
    largest = measured.lstm.norm[0, at].max()
    verdict = "never acts" if largest < 5 else "acts"
    findings.append(
        f"The gradient norm of the LSTM at learning rate 1 without a clip is at most "
        f"{number(largest)} (reported: .94): a clip at 5 {verdict} there."
    )
    findings.append(
        "The text is not that of the reported numbers, which have one seed: losses "
        "differ for this reason, and what can be compared is their order."
    )
    figure = plot_lines(
        {
            arm.label: row.T
            for arm, row in zip(ARMS, measured.gain.last(LAST), strict=True)
        },
        measured.rates,
        x_label="learning rate",
        y_label=f"mean of the last {LAST} losses in nats",
        title="Tanh network, gain 1",
        is_log=(True, True),
    )
    return Report(tables, findings, figure)
