"""Forces of the Lennard-Jones wall and of the main region, by threshold of the clip."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

import clipjax

from ...plotting.arms import read_arms
from ...plotting.canvas import log_axis, open_canvas
from ...plotting.curves import draw_arms
from ..models.potential import Potential
from ..options import Whole
from ..tasks.base import Task
from ..tasks.potential import force_errors, potential_task, regions
from ..train import Loop, begin
from .arguments import require
from .base import Report, Table, beside, number, over_seeds

QUANTILES = (0.5, 0.9, 0.99, 1.0)
THRESHOLDS = ("none", "max", "q99", "q90", "q50", "q50 / 10")
BATCHES = 1000  # whose gradient norms are measured at the initial parameters
REPORTED_NORMS = ("3.2", "30", "68", "126")
REPORTED_MAIN = ("2.31", "1.79", "1.15", ".90", ".197", ".337")
REPORTED_WALL = ("120", "137", "207", "314", "372", "422")


class Measured(NamedTuple):
    """Arrays with an entry for each seed and more.

    Attributes:
        rates: `(rates,)`, the learning rates.
        norms: `(seeds, quantiles)`, quantiles of the gradient's norm over batches at
            the initial parameters: 50 %, 90 %, 99 % and the largest.
        thresholds: `(seeds, thresholds)`, in the order of `THRESHOLDS`.
        main: `(seeds, thresholds, rates)`, root mean square error of the forces in the
            main region at the end; NaN where training diverged.
        wall: `(seeds, thresholds, rates)`, the same of the wall.
    """

    rates: np.ndarray
    norms: np.ndarray
    thresholds: np.ndarray
    main: np.ndarray
    wall: np.ndarray


def measure(
    *,
    seeds: int = 2,
    steps: int = 6000,
    batch: int = 32,
    watch: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Train by SGD with each threshold at each learning rate.

    Args:
        seeds: runs of each, which differ in initial parameters and batches.
        steps: steps of SGD.
        batch: pairs per step.
        watch: called before each run with a text that says which.

    Raises:
        ValueError: a number is below 1.
    """
    require(Whole(), seeds=seeds, steps=steps, batch=batch)
    rates = np.array([3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1])
    watch("compiling")
    loop = make_loop(steps, batch)
    norms = np.array([_initial_norms(loop.task, seed) for seed in range(seeds)])
    half, most, nearly_all, largest = norms.T
    free = np.full(seeds, np.inf)
    thresholds = np.stack([free, largest, nearly_all, most, half, half / 10], axis=1)
    errors = np.zeros((2, *thresholds.shape, len(rates)))
    for seed, threshold, rate in np.ndindex(errors.shape[1:]):
        watch(f"seed {seed}, {THRESHOLDS[threshold]}, learning rate {rates[rate]:g}")
        found = loop.run(
            seed,
            threshold=float(thresholds[seed, threshold]),
            learning_rate=float(rates[rate]),
        ).held_out
        errors[:, seed, threshold, rate] = found["F-rmse main"], found["F-rmse wall"]
    return Measured(rates, norms, thresholds, *errors)


def make_loop(steps: int, batch: int) -> Loop:
    """Return SGD after a clip, to be run with `threshold` and `learning_rate`."""
    return Loop(
        potential_task(lambda key: Potential(rngs=nnx.Rngs(params=key)), batch=batch),
        lambda learning_rate, threshold: optax.chain(
            clipjax.clip_by_global_norm(threshold), optax.sgd(learning_rate)
        ),
        names=("learning_rate", "threshold"),
        steps=steps,
        interval=2000,
        is_scored=False,
    )


def _initial_norms(task: Task, seed: int) -> np.ndarray:
    (graph, rest), params, key = begin(task, seed)

    @jax.jit
    @jax.vmap
    def norm(step: jax.Array) -> jax.Array:
        def loss(params: nnx.State) -> jax.Array:
            model = nnx.merge(graph, params, rest)
            return task.loss(model, task.sample(key, step, task.train))

        return optax.tree.norm(jax.grad(loss)(params))

    return np.quantile(norm(jnp.arange(BATCHES)), QUANTILES)


def best_rates(errors: np.ndarray) -> np.ndarray:
    """Return, for each threshold, the index of the rate with the lowest mean error.

    Rates at which a seed diverged come last.
    """
    mean = errors.mean(axis=0)
    return np.where(np.isfinite(mean), mean, np.inf).argmin(axis=-1)


def _at(errors: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Return `(thresholds, seeds)`, the errors of each threshold at its own rate."""
    return errors[:, np.arange(len(rates)), rates].T


def report(measured: Measured) -> Report:
    """Norms and errors next to reported ones, and what each region costs the other."""
    names = ("median", "90 %", "99 %", "largest")
    norms = zip(names, REPORTED_NORMS, measured.norms.T, strict=True)
    for_main, for_wall = best_rates(measured.main), best_rates(measured.wall)
    rows = [
        (f"{region}, {threshold}", said[index], _at(errors, for_main)[index])
        for region, said, errors in (
            ("main region", REPORTED_MAIN, measured.main),
            ("wall", REPORTED_WALL, measured.wall),
        )
        for index, threshold in enumerate(THRESHOLDS)
    ]
    chosen = [
        (
            threshold,
            over_seeds(measured.thresholds[:, index]),
            *(
                cell
                for rates in (for_main, for_wall)
                for cell in (
                    number(float(measured.rates[rates[index]])),
                    over_seeds(_at(measured.main, rates)[index]),
                    over_seeds(_at(measured.wall, rates)[index]),
                )
            ),
        )
        for index, threshold in enumerate(THRESHOLDS)
    ]
    header = ("", "threshold", "rate", "main", "wall", "rate", "main", "wall")
    return Report(
        [
            beside("Gradient norms of the loss at the initial parameters", norms),
            beside(
                "Error of the forces (RMSE in ε/σ) at the learning rate that is best "
                "for the main region",
                rows,
            ),
            Table(
                "The same at the rate that is best for the main region, and at the "
                "rate that is best for the wall",
                header,
                chosen,
            ),
        ],
        _findings(measured, for_main, for_wall),
        _draw(measured),
    )


def _findings(
    measured: Measured, for_main: np.ndarray, for_wall: np.ndarray
) -> list[str]:
    main = _at(measured.main, for_main).mean(axis=1)
    best = 1 + int(main[1:].argmin())
    change = "smaller" if main[best] < main[0] else "larger"
    ratio = max(main[0] / main[best], main[best] / main[0])
    said = [
        f"At its best learning rate for the main region, training without a clip has "
        f"an error of {main[0]:.3g} there, and the best clip, {THRESHOLDS[best]}, one "
        f"of {main[best]:.3g}, {ratio:.1f} times {change}.",
    ]
    walls = _at(measured.wall, for_main)
    against = f"{walls[best].mean():.3g} against {walls[0].mean():.3g} without a clip"
    if walls[best].min() > walls[0].max():
        said.append(
            f"The wall pays for it: its error is {against}. The clip makes the steps "
            "from close contacts as short as the others, and these are too few to fit "
            "the wall."
        )
    elif walls[best].max() < walls[0].min():
        said.append(f"The error of the wall is smaller there, too: {against}.")
    else:
        said.append(
            f"The error of the wall is {against}, a difference within the range over "
            "seeds."
        )
    of_wall = _at(measured.wall, for_wall).mean(axis=1)
    steepest = int(np.nanargmin(of_wall))
    rate = measured.rates[for_wall[steepest]]
    there = _at(measured.main, for_wall)[steepest].mean()
    said.append(
        f"The smallest error of the wall is {of_wall[steepest]:.3g}, by "
        f"{THRESHOLDS[steepest]} at learning rate {rate:g}; the error of the main "
        f"region there is {there:.3g}, {there / np.nanmin(main):.1f} times the "
        "smallest one."
    )
    if (steepest, for_wall[steepest]) != (best, for_main[best]):
        said.append("No threshold and rate is best for both regions.")
    nothing = force_errors(jnp.zeros_like, regions())
    level = float(nothing["F-rmse wall"])
    reached = measured.wall[:, 0].mean(axis=0)
    dead = measured.rates[~(reached < 0.98 * level)]
    if dead.size:
        listed = ", ".join(f"{rate:g}" for rate in dead)
        said.append(
            "Without a clip the network diverges or is no better on the wall than a "
            f"constant energy ({level:.0f}) at {listed}."
        )
    said.append(
        "Batch size, activation and initial weights of the reported runs are not "
        "known. Here they are tanh, PyTorch's default weights and 32 pairs unless "
        "another batch is given: of the 24 settings that were tried, one of those "
        "whose initial norms are nearest to the reported ones. Equal errors cannot be "
        "expected."
    )
    return said


def _draw(measured: Measured) -> Figure:
    canvas = open_canvas(2, None, 2.4, is_shared=False)
    canvas.label("learning rate", "", "Error of the forces, RMSE in ε/σ")
    for panel, name in zip(canvas.panels, ("main", "wall"), strict=True):
        errors = getattr(measured, name)
        by_threshold = {
            threshold: errors[:, index] for index, threshold in enumerate(THRESHOLDS)
        }
        draw_arms(panel, read_arms(name, by_threshold, name, measured.rates))
        panel.set_ylabel({"main": "main region", "wall": "wall"}[name])
        log_axis([panel])
    log_axis(canvas.panels, "x")
    canvas.legend(canvas.panels[:1])
    return canvas.figure
