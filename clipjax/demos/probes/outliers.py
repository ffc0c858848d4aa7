"""How far wrong examples pull a regression whose examples are clipped one by one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import clipjax

from ...plotting import plot_lines
from ..options import Whole
from ..tasks.robust import half_squares, regression_data
from .arguments import require
from .base import Report, Table, beside, number

KINDS = ("shift", "symmetric", "leverage", "none")
THRESHOLDS = (np.inf, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
TITLES = {
    "shift": "targets +20",
    "symmetric": "targets ± 20 (standard deviation)",
    "leverage": "targets +20, inputs ×10",
    "none": "no wrong examples",
}
EXAMPLES, FEATURES, WRONG = 200, 5, 20
REPORTED = {
    "shift": (".968", ".286", ".086", ".031", ".016", ".017", None),
    "symmetric": (".814", ".179", ".060", ".027", ".019", ".020", None),
    "leverage": ("2.06", ".319", ".111", ".038", ".879", "1.91", "2.30"),
    "none": (".0161", None, None, ".0161", None, None, ".0178"),
}


class Measured(NamedTuple):
    """Distances ‖w − w*‖ of the learned weights to the true ones.

    Attributes:
        thresholds: `(thresholds,)`; the first one is infinite.
        distances: `(kinds, thresholds, seeds)`, in the order of `KINDS`.
        slow: `(thresholds, seeds)`, of leverage with a learning rate divided by
            `slower`.
        slower: that divisor.
    """

    thresholds: np.ndarray
    distances: np.ndarray
    slow: np.ndarray
    slower: float


def measure(
    *, seeds: int = 5, steps: int = 6000, rate: float = 1.0, slower: float = 16.0
) -> Measured:
    """Fit 200 examples in 5 dimensions, 20 of them wrong, by gradient descent.

    Args:
        seeds: data sets.
        steps: gradient steps, with all examples in each.
        rate: the learning rate times the largest eigenvalue of the Hessian of the
            mean loss, below 2.
        slower: what the learning rate is divided by where wrong inputs are too large,
            in a second run of these.

    Raises:
        ValueError: if an argument is out of range.
    """
    require(Whole(), seeds=seeds, steps=steps)
    if not 0 < rate < 2:
        raise ValueError(f"rate must be a number above 0 and below 2, got {rate!r}")
    if not 1 <= slower < np.inf:
        raise ValueError(f"slower must be a finite number from 1 on, got {slower!r}")
    thresholds = jnp.array(THRESHOLDS, jnp.float32)

    def data(seed: jax.Array, kind: str) -> tuple[jax.Array, jax.Array, jax.Array]:
        key = jax.random.key(seed)
        return regression_data(key, EXAMPLES, FEATURES, kind=kind, count=WRONG)

    def loss(weights, inputs, targets):
        return half_squares(lambda inputs: inputs @ weights[:, None], (inputs, targets))

    def fit(inputs, targets, fraction, threshold):
        gradient = clipjax.clipped_grad(
            loss,
            l2_clip_norm=threshold,
            batch_argnums=(1, 2),
            normalize_by=float(EXAMPLES),
        )
        largest = jnp.linalg.eigvalsh(inputs.T @ inputs / EXAMPLES)[-1]

        def step(weights, _):
            grads = gradient(weights, inputs, targets)
            return weights - fraction / largest * grads, None

        return jax.lax.scan(step, jnp.zeros(FEATURES), length=steps)[0]

    @jax.jit
    def run():
        drawn = [
            jax.vmap(lambda seed, kind=kind: data(seed, kind))(jnp.arange(seeds))
            for kind in (*KINDS, "leverage")
        ]
        truth, inputs, targets = jax.tree.map(lambda *kinds: jnp.stack(kinds), *drawn)
        fractions = jnp.full(len(drawn), rate).at[-1].divide(slower)
        over_seeds = jax.vmap(fit, (0, 0, None, None))
        over_thresholds = jax.vmap(over_seeds, (None, None, None, 0))
        over_kinds = jax.vmap(over_thresholds, (0, 0, 0, None))
        weights = over_kinds(inputs, targets, fractions, thresholds)
        return jnp.linalg.norm(weights - truth[:, None], axis=-1)

    distances = np.asarray(run())
    return Measured(np.array(THRESHOLDS), distances[:-1], distances[-1], slower)


def threshold_name(threshold: float) -> str:
    """How a table calls a threshold."""
    return "no clip" if np.isinf(threshold) else f"C = {threshold:g}"


def _table(title: str, kind: str, distances: np.ndarray) -> Table:
    rows = zip(map(threshold_name, THRESHOLDS), REPORTED[kind], distances, strict=True)
    return beside(f"‖w − w*‖: {title}", rows)


def report(measured: Measured) -> Report:
    """The distances by threshold, and where a lower threshold does not help."""
    by_kind = dict(zip(KINDS, measured.distances, strict=True))
    slow = f"{TITLES['leverage']}, learning rate divided by {measured.slower:g}"
    found = []
    for kind, distances in by_kind.items():
        means = distances.mean(axis=-1)
        best = int(means.argmin())
        found.append(
            f"{TITLES[kind]}: {number(means[0])} without a clip, lowest at "
            f"{threshold_name(THRESHOLDS[best])} with {number(means[best])}, and "
            f"{number(means[-1])} at {threshold_name(THRESHOLDS[-1])}."
        )
    fast, late = by_kind["leverage"].mean(axis=-1), measured.slow.mean(axis=-1)
    worse = [
        f"{threshold:g}"
        for threshold, one, other in zip(THRESHOLDS, fast, late, strict=True)
        if other > 2 * one
    ]
    if worse:
        found.append(
            f"With {slow}, training does not get to the end at C = {', '.join(worse)}: "
            "a clipped example moves the weights by at most C times the learning rate, "
            "and large inputs ask for a small one. The same thresholds are good where "
            "the learning rate is as large as the curvature allows, so that it is not "
            "the threshold alone that decides. The learning rates of the reported runs "
            "are not known."
        )
    figure = plot_lines(
        {TITLES[kind]: row[1:].T for kind, row in by_kind.items()}
        | {slow: measured.slow[1:].T},
        measured.thresholds[1:],
        x_label="threshold C of each example's gradient",
        y_label="‖w − w*‖",
        title="Regression with 10 % wrong examples",
        is_log=(True, True),
    )
    tables = [_table(TITLES[kind], kind, row) for kind, row in by_kind.items()]
    tables.append(_table(slow, "leverage", measured.slow))
    return Report(tables, found, figure)
