"""Adam on MNIST: thresholds over eight decades, and ε over seven."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optax

from ...plotting import plot_lines
from .. import presets
from ..options import Positive, Whole
from .arguments import require
from .base import Report, beside, number
from .training import SCALING, UNCLIPPED, Arm, digits, train

THRESHOLDS = (math.inf, 10.0, 1.0, 0.1, 0.01, 1e-4, 1e-6)
EPSILONS = (1e-8, 1e-3, 1e-2, 1e-1)
LAST = 20  # losses at the end of a run that are averaged


class Measured(NamedTuple):
    """Runs of a network with one hidden layer of 128.

    Attributes:
        learning_rate: of all runs, but for the rescaled ones.
        steps: of each run.
        thresholds: `(thresholds,)`, of the clip before Adam.
        loss: `(thresholds, seeds)`, mean of the last losses.
        accuracy: `(thresholds, seeds)`, on held-out images.
        epsilons: `(epsilons,)`, Adam's ε without a clip.
        epsilon_loss: `(epsilons, seeds)`, with the same learning rate.
        rescaled_loss: `(epsilons, seeds)`, with the learning rate times 1 + ε / 1e-3.
    """

    learning_rate: float
    steps: int
    thresholds: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    epsilons: np.ndarray
    epsilon_loss: np.ndarray
    rescaled_loss: np.ndarray


def measure(
    *,
    seeds: int = 3,
    steps: int = 400,
    learning_rate: float = 1e-3,
    standardize: int = 1,
    watch: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Train with each threshold and each ε.

    Args:
        seeds: initial weights and orders of the batches.
        steps: of each run.
        learning_rate: Adam's.
        standardize: 1 for pixels of mean 0 and variance 1, 0 for pixels from 0 to 1.
        watch: called with a text on the current run, every few steps.
    """
    require(Whole(1000), seeds=seeds)
    require(Whole(1_000_000), steps=steps)
    require(Positive(), learning_rate=learning_rate)
    model = presets.MLP(depth=2, width=128, init="torch")
    task = digits(model, standardize)
    run = functools.partial(train, task, steps=steps, seeds=seeds, watch=watch)
    arms = [Arm(f"threshold {threshold:g}", threshold) for threshold in THRESHOLDS]
    clipped = run(arms, [learning_rate], optimizer=optax.adam)
    both = [
        run(
            [UNCLIPPED],
            [learning_rate, learning_rate * (1 + epsilon / 1e-3)],
            optimizer=functools.partial(optax.adam, eps=epsilon),
            label=f"ε {epsilon:g}:",
        ).last(LAST)[0]
        for epsilon in EPSILONS
    ]
    same, rescaled = np.stack(both, axis=1)
    return Measured(
        float(learning_rate),
        steps,
        np.array(THRESHOLDS),
        clipped.last(LAST)[:, 0],
        clipped.scores["accuracy"][:, 0],
        np.array(EPSILONS),
        same,
        rescaled,
    )


def report(measured: Measured) -> Report:
    """Losses and accuracies next to reported ones."""
    is_reported = (measured.steps, measured.learning_rate) == (400, 1e-3)
    losses = (".037", ".037", ".020", ".013", ".013", ".015", ".096")
    accuracies = (".921", ".921", ".931", ".932", ".936", ".925", ".913")
    same = (".037", ".048", ".118", ".335")
    rescaled = (".037", ".019", ".006", ".016")

    def rows(names, texts, values):
        return [
            (name, said if is_reported else None, row)
            for name, said, row in zip(names, texts, values, strict=True)
        ]

    thresholds = [f"threshold {threshold:g}" for threshold in measured.thresholds]
    epsilons = [f"ε = {epsilon:g}" for epsilon in measured.epsilons]
    loss = measured.loss.mean(axis=1)
    by_epsilon = measured.epsilon_loss.mean(axis=1)
    grows = "grows with ε" if (np.diff(by_epsilon) > 0).all() else "varies with ε"
    # An infinite threshold has no place on a logarithmic axis.
    is_finite = np.isfinite(measured.thresholds)
    figure = plot_lines(
        {
            "clip before Adam": measured.loss[is_finite].T,
            "no clip": np.repeat(measured.loss[~is_finite], is_finite.sum(), 0).T,
        },
        measured.thresholds[is_finite],
        x_label="threshold",
        y_label=f"mean of the last {LAST} losses in nats",
        title="Adam on MNIST",
        is_log=(True, True),
    )
    return Report(
        [
            beside("Loss by threshold", rows(thresholds, losses, measured.loss)),
            beside(
                "Held-out accuracy by threshold",
                rows(thresholds, accuracies, measured.accuracy),
            ),
            beside("Loss by ε, no clip", rows(epsilons, same, measured.epsilon_loss)),
            beside(
                "The same, learning rate times 1 + ε/1e-3",
                rows(epsilons, rescaled, measured.rescaled_loss),
            ),
        ],
        [
            f"From a threshold of {measured.thresholds[1]:g} to one of "
            f"{measured.thresholds[-2]:g} the loss stays within a factor of "
            f"{number(loss[1:-1].max() / loss[1:-1].min())}; at "
            f"{measured.thresholds[-1]:g} it is {number(loss[-1] / loss[1:-1].min())} "
            "times the best. Adam divides a constant factor out until entries of the "
            "clipped gradient fall to the order of its ε = 1e-8.",
            f"At one learning rate the loss {grows}, from {number(by_epsilon[0])} to "
            f"{number(by_epsilon[-1])}; with the learning rate rescaled it ranges from "
            f"{number(measured.rescaled_loss.mean(axis=1).min())} to "
            f"{number(measured.rescaled_loss.mean(axis=1).max())}: a larger ε "
            "shortens the step.",
            SCALING,
            "Nor are their batch size and initialization known; here they are 256 and "
            "PyTorch's default.",
        ],
        figure,
    )
