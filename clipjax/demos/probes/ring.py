"""Modes that a GAN covers on a ring of eight, by the threshold of the generator."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

import clipjax

from ...plotting import plot_lines
from ..arms import ClipCall
from ..options import Positive, Whole
from ..tasks.base import Task
from ..tasks.players import each_with_its_clip
from ..tasks.ring import Ring, ring_task
from ..train import Loop
from .arguments import require
from .base import Report, Table, number, over_seeds

OPTIMIZERS = {"SGD": (optax.sgd, 0.1), "Adam": (optax.adam, 1e-3)}
THRESHOLDS = (float("inf"), 1.0, 0.1, 0.01)
REPORTED = {
    "SGD": ((1, 1, 1), (8, 8, 6), (3, 8, 8), (4, 5, 3)),
    "Adam": ((8, 8, 7), (8, 8, 6), (8, 8, 7), (8, 8, 8)),
}


class Measured(NamedTuple):
    """Arrays of shape `(optimizers, thresholds, seeds)`, after the last step.

    Attributes:
        thresholds: `(thresholds,)`, of the clip of the generator's gradient; the first
            one is infinite.
        modes: modes covered.
        quality: fraction of the points within 3 standard deviations of a mode.
        largest_norm: largest norm of the generator's gradient before the clip.
    """

    thresholds: np.ndarray
    modes: np.ndarray
    quality: np.ndarray
    largest_norm: np.ndarray


def measure(
    *,
    seeds: int = 3,
    steps: int = 4000,
    batch: int = 256,
    radius: float = 1.0,
    deviation: float = 0.1,
    watch: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Train the GAN with each optimizer and threshold.

    Args:
        seeds: runs of each.
        steps: of both players, at the same time.
        batch: real points, and generated points, per step.
        radius: of the ring.
        deviation: standard deviation of a mode.
        watch: called between runs.

    Raises:
        ValueError: for numbers that make no sense.
    """
    require(Whole(), seeds=seeds, steps=steps, batch=batch)
    require(Positive(), radius=radius, deviation=deviation)
    task = ring_task(Ring(radius, deviation), batch=batch)
    rows = [
        train(task, name, seeds=seeds, steps=steps, watch=watch) for name in OPTIMIZERS
    ]
    modes, quality, largest_norm = np.moveaxis(np.array(rows), -1, 0)
    return Measured(np.array(THRESHOLDS), modes, quality, largest_norm)


def train(
    task: Task,
    name: str,
    *,
    seeds: int,
    steps: int,
    watch: Callable[[str], None] = lambda text: None,
) -> np.ndarray:
    """Train with one optimizer and each threshold.

    Returns:
        `(thresholds, seeds, 3)`: modes covered, quality and the largest norm.
    """
    watch(f"{name}, compiling")
    optimizer, rate = OPTIMIZERS[name]

    def build(
        learning_rate: jax.Array, threshold: jax.Array
    ) -> optax.GradientTransformation:
        call = functools.partial(clipjax.clip_by_global_norm, threshold)
        clip = ClipCall("generator@clip_by_global_norm", "generator", call, {})
        return each_with_its_clip("generator")(clip, optimizer).chain(learning_rate)

    loop = Loop(
        task,
        build,
        names=("learning_rate", "threshold"),
        steps=steps,
        interval=500,
        is_scored=False,
    )

    def one(threshold: float, seed: int) -> tuple[float, ...]:
        text = f"{name}, {_named(threshold)}, seed {seed}, step"
        run = loop.run(
            seed,
            lambda step, log: watch(f"{text} {step}"),
            learning_rate=rate,
            threshold=threshold,
        )
        return *run.held_out.values(), run.log["grad_norm_raw"].max()

    return np.array(
        [[one(threshold, seed) for seed in range(seeds)] for threshold in THRESHOLDS]
    )


def _named(threshold: float) -> str:
    return "no clip" if threshold == float("inf") else f"threshold {threshold:g}"


def report(measured: Measured) -> Report:
    """Modes covered next to reported ones, quality, and what the clip changed."""
    names = [_named(threshold) for threshold in measured.thresholds]
    rows = []
    for of, optimizer in enumerate(OPTIMIZERS):
        for at, name in enumerate(names):
            reported, modes = REPORTED[optimizer][at], measured.modes[of, at]
            are_apart = min(reported) > modes.max() or max(reported) < modes.min()
            rows.append(
                (
                    f"{optimizer}, {name}",
                    ", ".join(map(str, reported)),
                    ", ".join(map(number, modes)),
                    "differs" if are_apart else "agrees",
                    over_seeds(measured.quality[of, at]),
                    over_seeds(measured.largest_norm[of, at]),
                )
            )
    header = ("", "reported", "measured", "", "quality", "largest gradient norm")
    title = (
        "Modes covered of 8, by seed, reported after 4,000 steps; they agree where "
        "their ranges overlap"
    )
    return Report(
        [Table(title, header, rows)],
        [
            "It is often said that too small a threshold makes the generator collapse "
            "onto few modes.",
            *(_finding(measured, of, name) for of, name in enumerate(OPTIMIZERS)),
            "The radius of the ring, the spread of its modes, the batch and the noise "
            "of the reported runs are not known, and the counts depend on them. Of the "
            "seven settings that were tried, the default is the one whose counts are "
            "nearest to those reported.",
        ],
        _figure(measured),
    )


def _finding(measured: Measured, of: int, optimizer: str) -> str:
    """What the clip changed with one optimizer, by comparison with the seeds."""
    means = measured.modes[of].mean(axis=1)
    spread = float(np.ptp(measured.modes[of], axis=1).max())

    def size(one: float, other: float) -> str:
        return "more" if abs(one - other) > spread else "no more"

    none, best, least = means[0], means[1:].max(), means[-1]
    said = (
        f"With {optimizer} the mean over seeds is {number(none)} modes without a clip, "
        f"{number(best)} at the best threshold and {number(least)} at the smallest."
    )
    if measured.modes.shape[-1] == 1:
        return f"{said} One seed does not tell which differences are chance."
    return (
        f"{said} The number of one setting varies by up to {number(spread)} over "
        f"seeds: the best threshold differs by {size(best, none)} than that from no "
        f"clip, and the smallest by {size(least, best)} than that from the best."
    )


def _figure(measured: Measured) -> Figure:
    at = measured.thresholds[1:]
    arms = {}
    for of, optimizer in enumerate(OPTIMIZERS):
        arms[optimizer] = measured.modes[of, 1:].T
        arms[f"{optimizer}, no clip"] = np.full(len(at), measured.modes[of, 0].mean())
    return plot_lines(
        arms,
        at,
        x_label="threshold of the generator's clip",
        y_label="modes covered, of 8",
        title="GAN on a ring of eight modes",
        is_log=(True, False),
    )
