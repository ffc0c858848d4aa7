"""What one example adds to a clipped gradient, and what it does to the result."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import clipjax
from clipjax.diagnostics import influence, leave_one_out

from ...plotting import plot_lines
from ..options import Whole
from ..tasks.robust import half_squares, regression_data
from .arguments import require
from .base import Report, Table, number, over_seeds
from .outliers import KINDS, THRESHOLDS, TITLES, threshold_name

FEATURES, WRONG = 2, 0.1  # inputs of the regression, and the fraction that is wrong


class Measured(NamedTuple):
    """Of each kind, threshold and seed: arrays `(kinds, thresholds, seeds)`.

    Attributes:
        thresholds: `(thresholds,)`; the first one is infinite.
        bounds: `(thresholds,)`, C/m.
        first: the largest contribution to the gradient of the first step, as
            `clipjax.diagnostics.influence` tells it from the norms.
        last: the largest contribution to that of the last step, likewise.
        alone: the same measured: the norm of what `clipjax.clipped_grad` returns where
            all examples but one are padding.
        changes: the largest change of the trained weights when an example is left out.
        is_wrong: whether the example of the largest change is a wrong one.
        distances: ‖w − w*‖ of the trained weights, with all examples.
    """

    thresholds: np.ndarray
    bounds: np.ndarray
    first: np.ndarray
    last: np.ndarray
    alone: np.ndarray
    changes: np.ndarray
    is_wrong: np.ndarray
    distances: np.ndarray


def measure(*, seeds: int = 3, examples: int = 40, steps: int = 5000) -> Measured:
    """Train a small regression without each example in turn, by gradient descent.

    The learning rate is the reciprocal of the largest curvature of the loss of all
    examples, and the clipped sum is divided by their number, whether one is left out
    or not.

    Args:
        seeds: data sets.
        examples: examples of each, of which a tenth is wrong.
        steps: gradient steps, with all examples in each.

    Raises:
        ValueError: if an argument is out of range.
    """
    require(Whole(), seeds=seeds, steps=steps)
    require(Whole(lowest=10), examples=examples)
    count = round(WRONG * examples)

    def loss(weights, inputs, targets):
        return half_squares(lambda inputs: inputs @ weights[:, None], (inputs, targets))

    norms_of = clipjax.per_example_grad_norms(loss, batch_argnums=(1, 2))

    def of_data(truth, inputs, targets, threshold):
        gradient = clipjax.clipped_grad(
            loss,
            l2_clip_norm=threshold,
            batch_argnums=(1, 2),
            normalize_by=float(examples),
        )
        rate = 1 / jnp.linalg.eigvalsh(inputs.T @ inputs / examples)[-1]
        start = jnp.zeros(FEATURES)

        def train(kept):
            def step(weights, _):
                grads = gradient(weights, inputs, targets, is_padding_example=kept == 0)
                return weights - rate * grads, None

            return jax.lax.scan(step, start, length=steps)[0]

        trained = train(jnp.ones(examples))
        first, last = (
            influence(norms_of(weights, inputs, targets), threshold)
            for weights in (start, trained)
        )
        others = 1 - jnp.eye(examples)
        each = jax.vmap(
            lambda others: gradient(
                trained, inputs, targets, is_padding_example=others == 1
            )
        )(others)
        left_out = leave_one_out(train, examples)
        return (
            first.largest,
            last.largest,
            jnp.linalg.norm(each, axis=-1).max(),
            left_out.largest,
            left_out.example < count,
            jnp.linalg.norm(trained - truth),
        )

    @jax.jit
    def run(thresholds):
        def data(seed, kind):
            key = jax.random.key(seed)
            return regression_data(key, examples, FEATURES, kind=kind, count=count)

        drawn = [
            jax.vmap(lambda seed, kind=kind: data(seed, kind))(jnp.arange(seeds))
            for kind in KINDS
        ]
        truth, inputs, targets = jax.tree.map(lambda *kinds: jnp.stack(kinds), *drawn)
        over_seeds = jax.vmap(of_data, (0, 0, 0, None))
        over_thresholds = jax.vmap(over_seeds, (None, None, None, 0))
        over_kinds = jax.vmap(over_thresholds, (0, 0, 0, None))
        return over_kinds(truth, inputs, targets, thresholds)

    found = jax.device_get(run(jnp.array(THRESHOLDS, jnp.float32)))
    first, last, alone, changes, is_first, distances = found
    has_wrong = np.array([kind != "none" for kind in KINDS])[:, None, None]
    thresholds = np.array(THRESHOLDS)
    return Measured(
        thresholds,
        thresholds / examples,
        first,
        last,
        alone,
        changes,
        is_first & has_wrong,
        distances,
    )


def _table(measured: Measured, at: int) -> Table:
    header = (
        "",
        "C/m",
        "largest share, first step",
        "last step",
        "largest change of w, one left out",
        "by a wrong one",
        "‖w − w*‖",
    )
    rows = [
        (
            threshold_name(threshold),
            number(measured.bounds[row]),
            over_seeds(measured.first[at, row]),
            over_seeds(measured.last[at, row]),
            over_seeds(measured.changes[at, row]),
            f"{measured.is_wrong[at, row].sum()} of {measured.is_wrong.shape[-1]}",
            over_seeds(measured.distances[at, row]),
        )
        for row, threshold in enumerate(measured.thresholds)
    ]
    return Table(TITLES[KINDS[at]], header, rows)


def report(measured: Measured) -> Report:
    """The contributions beside their bound, and the changes of the trained weights."""
    bounds = measured.bounds[1:, None]
    most = (measured.alone[:, 1:] / bounds).max()
    ratios = (measured.changes[:, 1:] / bounds).mean(axis=-1)
    found = [f"No example adds more than {most:.6g} C/m to the last step."]
    for at, kind in enumerate(KINDS):
        changes = measured.changes[at].mean(axis=-1)
        best = int(changes.argmin())
        found.append(
            f"{TITLES[kind]}: leaving one example out moves the trained weights by "
            f"{number(changes[0])} at most without a clip, and least, "
            f"{number(changes[best])}, with "
            f"{threshold_name(measured.thresholds[best])}; from C = "
            f"{measured.thresholds[1]:g} to {measured.thresholds[-1]:g} that is "
            f"{number(ratios[at].min())} to {number(ratios[at].max())} times C/m."
        )
    found.append(
        "The clip bounds the share of an example in a step. What the example does to "
        "the trained weights is that share times the inverse of the curvature that the "
        "other examples have left: those that are clipped themselves have none, so "
        "that below some threshold the change no longer falls with C."
    )
    figure = plot_lines(
        {TITLES[kind]: measured.changes[at, 1:].T for at, kind in enumerate(KINDS)}
        | {"C/m": measured.bounds[1:]},
        measured.thresholds[1:],
        x_label="threshold C of each example's gradient",
        y_label="largest change of w, one left out",
        title="What one example does to the trained weights",
        is_log=(True, True),
    )
    return Report([_table(measured, at) for at in range(len(KINDS))], found, figure)
