"""A quadratic with heavy-tailed gradient noise, by threshold."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import clipjax

from ...plotting import plot_lines
from ..options import Positive, Whole
from .arguments import require
from .base import Report, Table, beside, number
from .descend import descend

THRESHOLDS = (np.inf, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
REPORTED = ("46.1", "13.7", "6.3", "2.6", ".83", ".25", None, None)

# Of Student's t noise in every entry: the mean is finite, and the variance is not.
DEGREES = 1.5


class Measured(NamedTuple):
    """Losses f(x) = |x|²/2 of noisy gradient descent.

    Attributes:
        thresholds: `(thresholds,)`, the thresholds C; inf is no clip.
        tail_mean: `(thresholds, repeats, seeds)`, the mean of f over the second half of
            the steps.
        early: likewise over the second half of the first quarter, as in a run of a
            quarter as many steps.
        path: `(thresholds, steps)`, f of the first seed.
    """

    thresholds: np.ndarray
    tail_mean: np.ndarray
    early: np.ndarray
    path: np.ndarray


def measure(
    *,
    repeats: int = 5,
    seeds: int = 5,
    steps: int = 4000,
    width: int = 20,
    learning_rate: float = 0.1,
) -> Measured:
    """Descend from (1, …, 1), with the same noise for all thresholds.

    Args:
        repeats: how often the median over seeds is taken.
        seeds: independent runs of each repeat.
        steps: number of steps, at least 100.
        width: number of parameters.
        learning_rate: the learning rate.
    """
    require(Whole(), repeats=repeats, seeds=seeds, width=width)
    require(Whole(lowest=100), steps=steps)
    require(Positive(), learning_rate=learning_rate)
    noise = np.random.default_rng(0).standard_t(DEGREES, (repeats, seeds, steps, width))

    def losses(threshold: jax.Array, noise: jax.Array) -> jax.Array:
        optimizer = optax.chain(
            clipjax.clip_by_global_norm(threshold), optax.sgd(learning_rate)
        )
        path = descend(
            optimizer, lambda x, step: x + noise[step], jnp.ones(width), steps
        )
        return jnp.square(path).sum(axis=1) / 2

    over = jax.vmap(jax.vmap(losses, (None, 0)), (None, 0))
    over = jax.jit(jax.vmap(over, (0, None)))
    thresholds = np.array(THRESHOLDS)
    found = over(jnp.asarray(thresholds, jnp.float32), jnp.asarray(noise, jnp.float32))
    found = np.asarray(found, np.float64)
    tail = found[..., steps // 2 :].mean(axis=-1)
    early = found[..., steps // 8 : steps // 4].mean(axis=-1)
    return Measured(thresholds, tail, early, found[:, 0, 0])


def report(measured: Measured) -> Report:
    """Medians next to reported ones, and the spread over single runs."""
    thresholds, tail, early, path = measured
    names = ["no clip" if np.isinf(c) else f"C = {c:g}" for c in thresholds]
    medians = np.median(tail, axis=2)
    single = tail.reshape(len(tail), -1)
    tables = [
        beside(
            f"Mean of f over the second half, median of {tail.shape[2]} seeds",
            zip(names, REPORTED, medians, strict=True),
        ),
        Table(
            f"The same over {single.shape[1]} single runs",
            ("", "lowest", "median", "highest"),
            [
                (name, *map(number, (runs.min(), np.median(runs), runs.max())))
                for name, runs in zip(names, single, strict=True)
            ],
        ),
    ]
    shown = [0, 2, 4, 6, 7]
    bins = path[shown][:, : path.shape[1] // 50 * 50].reshape(len(shown), -1, 50)
    figure = plot_lines(
        {
            names[index]: line
            for index, line in zip(shown, bins.mean(axis=2), strict=True)
        },
        np.arange(bins.shape[1]) * 50 + 25,
        x_label="step",
        y_label="f, mean of 50 steps",
        title="A quadratic with Student t noise",
        is_log=(False, True),
    )
    middle = np.median(single, axis=1)
    lowest = int(np.argmin(middle))
    moving = np.median(early, axis=(1, 2)) > 2 * middle
    unsettled = [name for name, one in zip(names, moving, strict=True) if one]
    return Report(
        tables,
        [
            f"The lowest loss is {number(middle[lowest])}, with {names[lowest]}, "
            f"against {number(middle[0])} without a clip. The noise is "
            "symmetric, so that a clip adds no bias; it bounds every step by ηC, and a "
            "smaller threshold takes longer. Still falling, to less than half since "
            f"the first quarter of the steps: {', '.join(unsettled) or 'none'}.",
            f"Single runs without a clip lie between {number(single[0].min())} and "
            f"{number(single[0].max())}, since the noise has no finite variance: the "
            "median of a few is itself uncertain, and depends on the length of the "
            f"run: a quarter of the steps gives {number(np.median(early[0]))} in place "
            f"of {number(middle[0])}.",
        ],
        figure,
    )
