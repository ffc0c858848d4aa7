"""Training runs by clip and learning rate, for the probes that need them."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import optax

from clipjax import recipes

from ...plotting import running_mean
from .. import presets
from ..summary import diverged
from ..tasks.base import Task
from ..tasks.build import build_task
from ..train import Loop
from .base import number

INTERVAL = 50  # steps between two calls of `watch`
NEVER = math.nan


class Arm(NamedTuple):
    """A clip by global norm: its `label`, its `threshold`, and whether it `is_soft`."""

    label: str
    threshold: float
    is_soft: bool = False


UNCLIPPED = Arm("no clip", math.inf)


def standardized(task: Task) -> Task:
    """Standardize the pixels of an MNIST task to mean 0 and variance 1."""

    def scaled(pixels):
        return (pixels - 0.1307) / 0.3081

    def sample(key, step, train):
        pixels, labels = task.sample(key, step, train)
        return scaled(pixels), labels

    def evaluate(model, held_out):
        return task.evaluate(lambda pixels: model(scaled(pixels)), held_out)

    return dataclasses.replace(task, sample=sample, evaluate=evaluate)


def digits(model: presets.MLP, standardize: int) -> Task:
    """Return MNIST with pixels between 0 and 1, or standardized if the number is 1."""
    if standardize not in (0, 1):
        raise ValueError(f"standardize must be 0 or 1, got {standardize!r}")
    task = build_task(model)
    return standardized(task) if standardize else task


SCALING = (
    "How the pixels behind the reported numbers were scaled is not known. Pixels of "
    "mean 0 and variance 1, the default here, come nearer to them than pixels between "
    "0 and 1 (standardize=0), with which the same networks learn more slowly."
)


class Runs(NamedTuple):
    """What was logged; the first axes are arms, learning rates and seeds.

    Attributes:
        loss: `(arms, rates, seeds, steps)`, the loss before each step.
        norm: `(arms, rates, seeds, steps)`, the norm of the gradient before the clip.
        scores: `(arms, rates, seeds)` by the name of the held-out score.
    """

    loss: np.ndarray
    norm: np.ndarray
    scores: dict[str, np.ndarray]

    @property
    def has_diverged(self) -> np.ndarray:
        """`(arms, rates, seeds)`: loss not finite, or above its first at the end."""
        return diverged(self.loss)

    def last(self, count: int) -> np.ndarray:
        """`(arms, rates, seeds)`: mean of the last losses."""
        return self.loss[..., -count:].mean(axis=-1, dtype=np.float64)

    def steps_to(self, goal: float, window: int = 10) -> np.ndarray:
        """`(arms, rates, seeds)`: steps until the running mean of the loss is lower.

        NaN where it never is.
        """
        is_there = running_mean(self.loss, window) < goal
        return np.where(is_there.any(-1), is_there.argmax(-1) + 1, NEVER)

    @property
    def largest_jump(self) -> np.ndarray:
        """`(arms, rates, seeds)`: largest increase from a loss to the next."""
        with np.errstate(invalid="ignore"):
            jumps = np.diff(self.loss.astype(np.float64), axis=-1)
        return np.where(np.isfinite(jumps), jumps, 0).max(axis=-1)


def train(
    task: Task,
    arms: Sequence[Arm],
    rates: Sequence[float],
    *,
    steps: int,
    seeds: int,
    watch: Callable[[str], None],
    optimizer: Callable[..., optax.GradientTransformation] = optax.sgd,
    label: str = "",
) -> Runs:
    """Train every arm at every learning rate from every seed.

    Args:
        task: what to train on.
        arms: the clips.
        rates: the learning rates.
        steps: of each run.
        seeds: initial weights and order of the batches, the same for all arms.
        watch: called with a text on the current run, every few steps.
        optimizer: maps the learning rate to the optimizer after the clip.
        label: the label of these runs, for `watch`.
    """

    def loop(is_soft: bool) -> Loop:
        clip = (
            recipes.soft_clip_by_global_norm if is_soft else recipes.clip_by_global_norm
        )

        def build(learning_rate, threshold):
            return optax.chain(clip(threshold), optimizer(learning_rate))

        watch(f"{label} compiles")
        return Loop(
            task,
            build,
            names=("learning_rate", "threshold"),
            steps=steps,
            interval=INTERVAL,
            is_scored=False,
        )

    # Threshold and learning rate are arguments of one program for all hard clips.
    loops = {is_soft: loop(is_soft) for is_soft in {arm.is_soft for arm in arms}}
    found = []
    for arm in arms:
        for rate in rates:
            for seed in range(seeds):
                name = f"{label} {arm.label}, learning rate {rate:g}, seed {seed}"
                history = loops[arm.is_soft].run(
                    seed,
                    lambda step, log, name=name: watch(f"{name}, step {step}"),
                    learning_rate=rate,
                    threshold=arm.threshold,
                )
                found.append(history)
    shape = (len(arms), len(rates), seeds)

    def stacked(values) -> np.ndarray:
        array = np.array(values)
        return array.reshape(shape + array.shape[1:])

    return Runs(
        stacked([history.log["loss"] for history in found]),
        stacked([history.log["grad_norm_raw"] for history in found]),
        {
            name: stacked([history.held_out[name] for history in found])
            for name in found[0].held_out
        },
    )


def highest_rate(is_bad: np.ndarray, rates: Sequence[float]) -> float | None:
    """Return the highest rate up to which no seed diverged.

    Args:
        is_bad: `(rates, seeds)`.
        rates: ascending.
    """
    is_usable = ~is_bad.any(axis=-1)
    count = len(rates) if is_usable.all() else int(np.argmin(is_usable))
    return rates[count - 1] if count else None


def usable(arms: Sequence[Arm], rates: Sequence[float], is_bad: np.ndarray) -> str:
    """Return a sentence on the highest usable learning rate of each arm.

    Args:
        arms: the clips.
        rates: ascending.
        is_bad: `(arms, rates, seeds)`, which runs diverged.
    """
    parts = []
    for arm, bad in zip(arms, is_bad, strict=True):
        rate = highest_rate(bad, rates)
        found = "none" if rate is None else number(rate)
        if rate == rates[-1]:
            found += " (the highest tried)"
        parts.append(f"{found} with {arm.label}")
    return "The highest learning rate up to which no seed diverged is " + (
        ", ".join(parts) + "."
    )
