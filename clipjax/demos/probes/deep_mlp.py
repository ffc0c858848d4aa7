"""A ReLU network of ten layers on MNIST: initialization, learning rate, clip."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...plotting import plot_lines, running_mean
from .. import presets
from ..options import Whole
from .arguments import require
from .base import Report, beside, number
from .training import SCALING, UNCLIPPED, Arm, Runs, digits, train, usable

RATES = (0.1, 0.3, 0.6)
TORCH_RATES = (0.01, 0.1)
ARMS = (UNCLIPPED, Arm("hard clip at 1", 1.0), Arm("soft clip at 1", 1.0, True))
WINDOW = 10  # losses in the running mean


class Measured(NamedTuple):
    """Runs by initialization.

    Attributes:
        rates: `(rates,)`, learning rates of the runs with He's initial weights.
        he: those runs, for `ARMS`.
        torch_rates: `(rates,)`, of the runs with PyTorch's default.
        torch: those runs, for `ARMS`.
    """

    rates: np.ndarray
    he: Runs
    torch_rates: np.ndarray
    torch: Runs


def measure(
    *,
    seeds: int = 3,
    steps: int = 250,
    torch_seeds: int = 1,
    torch_steps: int = 200,
    standardize: int = 1,
    watch: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Train with SGD, batches of 256, width 256.

    Args:
        seeds: with He's initial weights.
        steps: with them.
        torch_seeds: with PyTorch's default.
        torch_steps: with it; 2,350 were reported.
        standardize: 1 for pixels of mean 0 and variance 1, 0 for pixels from 0 to 1.
        watch: called with a text on the current run, every few steps.
    """
    require(Whole(1000), seeds=seeds, torch_seeds=torch_seeds)
    require(Whole(1_000_000, lowest=2), steps=steps, torch_steps=torch_steps)
    runs = {
        init: train(
            digits(presets.MLP(init=init), standardize),
            ARMS,
            rates,
            steps=count,
            seeds=how_many,
            watch=watch,
            label=f"{init}:",
        )
        for init, rates, count, how_many in (
            ("he", RATES, steps, seeds),
            ("torch", TORCH_RATES, torch_steps, torch_seeds),
        )
    }
    return Measured(np.array(RATES), runs["he"], np.array(TORCH_RATES), runs["torch"])


def report(measured: Measured) -> Report:
    """Steps, jumps and accuracies next to reported ones."""
    he, torch = measured.he, measured.torch
    # Of three reported seeds, the middle one; by arm and learning rate.
    texts = {
        "steps to a loss of 0.3": (
            ("65", None, None),
            ("103", "76", "80"),
            ("113", "71", "67"),
        ),
        "steps to a loss of 0.5": (
            ("32", "130", None),
            ("42", "29", None),
            ("45", None, None),
        ),
        "seeds that diverged": (("0", "3", "3"), ("0", "0", "0"), ("0", "0", "0")),
        "largest jump of the loss": (
            (None, "16", None),
            (None, ".32", None),
            [None] * 3,
        ),
        "held-out accuracy": (
            [None] * 3,
            (None, ".924", None),
            (None, ".925", ".931"),
        ),
    }
    values = {
        "steps to a loss of 0.3": he.steps_to(0.3, WINDOW),
        "steps to a loss of 0.5": he.steps_to(0.5, WINDOW),
        "seeds that diverged": he.has_diverged.sum(axis=-1, keepdims=True),
        "largest jump of the loss": he.largest_jump,
        "held-out accuracy": he.scores["accuracy"],
    }
    tables = [
        beside(
            f"{name[0].upper()}{name[1:]}, He's initial weights"
            + (" (nan: never)" if name.startswith("steps") else ""),
            [
                (f"{arm.label}, learning rate {rate:g}", texts[name][row][column], cell)
                for row, arm in enumerate(ARMS)
                for column, rate in enumerate(measured.rates)
                for cell in [values[name][row, column]]
            ],
        )
        for name in texts
    ]
    tables.append(_torch_table(measured))
    # The middle seed; infinite where it never gets there.
    reached = np.nan_to_num(he.steps_to(0.3, WINDOW)[:, 0], nan=math.inf)
    fast = np.median(reached, axis=-1)
    is_slower = "slower" if fast[1:].min() > fast[0] else "not slower"
    norms = torch.norm[0].max()
    acts = "never acts" if norms < 1 else "acts"
    smoothed = running_mean(he.loss, WINDOW)[:, 1]
    # A run that blows up to 1e21 before it overflows would flatten all others.
    smoothed = np.where(smoothed < 100, smoothed, np.inf)
    figure = plot_lines(
        {arm.label: row for arm, row in zip(ARMS, smoothed, strict=True)},
        np.arange(1, smoothed.shape[-1] + 1),
        x_label="step",
        y_label=f"loss in nats, mean of {WINDOW}",
        title=f"10 layers, learning rate {measured.rates[1]:g}",
        is_log=(False, True),
    )
    steps = torch.loss.shape[-1]
    return Report(
        tables,
        [
            usable(ARMS, RATES, he.has_diverged),
            f"At learning rate {measured.rates[0]:g} the middle seed takes these steps "
            "to a loss of 0.3: "
            + ", ".join(
                f"{number(count)} with {arm.label}"
                for arm, count in zip(ARMS, fast, strict=True)
            )
            + f": the clip is {is_slower} there.",
            f"With PyTorch's default initialization the largest gradient norm without "
            f"a clip is {number(norms)} in {steps} steps: a hard clip at 1 {acts}. At "
            f"learning rate {measured.torch_rates[0]:g} the loss goes from "
            f"{number(torch.loss[0, 0, :, 0].mean())} to "
            f"{number(torch.loss[0, 0, :, -1].mean())}; ln 10 is "
            f"{number(math.log(10))}.",
            SCALING,
            "A seed is a set of initial weights and an order of the batches. How the "
            f"reported loss was smoothed is not known; here it is a mean of {WINDOW}. "
            "A jump is the largest increase between two steps before the loss is no "
            "longer finite.",
        ],
        figure,
    )


def _torch_table(measured: Measured):
    torch = measured.torch
    is_reported = torch.loss.shape[-1] == 2350
    said = {
        (0, 0): ("2.302", ".084"),
        (0, 1): (".94", ".816"),
        (1, 1): ("1.07", ".667"),
        (2, 1): ("1.50", ".33"),
    }
    rows = []
    for row, arm in enumerate(ARMS):
        for column, rate in enumerate(measured.torch_rates):
            found = (
                torch.last(WINDOW)[row, column],
                torch.scores["accuracy"][row, column],
            )
            text = said.get((row, column), (None, None)) if is_reported else (None,) * 2
            for name, reported, cell in zip(
                ("loss", "accuracy"), text, found, strict=True
            ):
                rows.append((f"{name}, {arm.label}, {rate:g}", reported, cell))
    rows.append(
        (
            f"largest norm, no clip, {measured.torch_rates[0]:g}",
            ".13" if is_reported else None,
            torch.norm[0, 0].max(axis=-1),
        )
    )
    steps = torch.loss.shape[-1]
    return beside(f"PyTorch's default initialization, {steps:,} steps", rows)
