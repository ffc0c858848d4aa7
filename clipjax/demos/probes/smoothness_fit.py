"""Smoothness against the gradient norm while a network trains on digits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...diagnostics import fit_smoothness, local_smoothness
from ...plotting import plot_smoothness
from ..models.mlp import INITIALISATIONS
from ..options import Whole
from ..tasks.mnist import default_digits
from .arguments import require
from .base import Report, Table, beside, over_seeds

WIDTHS = (784, 256, 128, 10)
PARAMETERS = sum((1 + a) * b for a, b in zip(WIDTHS, WIDTHS[1:], strict=False))
BATCH, LEARNING_RATE = 256, 0.1
METHODS = ("hessian", "secant", "random")


class Arm(NamedTuple):
    """A network: its activation and a key of `INITIALISATIONS`."""

    activation: Callable[[jax.Array], jax.Array]
    init: str


ARMS = {
    "ReLU, He": Arm(jax.nn.relu, "he"),
    "tanh, He": Arm(jnp.tanh, "he"),
    "tanh, LeCun": Arm(jnp.tanh, "lecun"),
}
# L0, L1 and R² of the lines, for two unnamed initializations.
RELU = {
    "hessian": ("10.8", "7.0", "0.30"),
    "secant": ("5.7", "7.6", "0.43"),
    "random": (None, None, "0.49"),
}
TANH = {
    "hessian": (None, "-1.6", "0.035"),
    "secant": (None, None, "0.002"),
    "random": (None, None, "0.62"),
}


class Measured(NamedTuple):
    """Smoothness along the runs, by arm ("ReLU, He", "tanh, He", "tanh, LeCun").

    Attributes:
        norms: gradient norms, `(seeds, probes)`.
        smoothness: of the three methods "hessian", "secant" and "random",
            `(3, seeds, probes)`.
        fits: of each method the lines L0 + L1 · norm, `(3, seeds, 3)`: L0, L1, R².
    """

    norms: dict[str, np.ndarray]
    smoothness: dict[str, np.ndarray]
    fits: dict[str, np.ndarray]


def measure(
    *,
    seeds: int = 2,
    probes: int = 30,
    every: int = 20,
    watch: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Train a 784-256-128-10 network by SGD, and measure every so many steps.

    The learning rate is 0.1, the batch 256, and biases are zero at first.

    Args:
        seeds: independent runs of each arm.
        probes: measurements per run, at least 4.
        every: steps from one to the next.
        watch: is called with a text before each run.
    """
    require(Whole(), seeds=seeds, every=every)
    require(Whole(lowest=4), probes=probes)
    measured = Measured({}, {}, {})
    for name, arm in ARMS.items():
        run = _runner(arm, probes, every)
        runs = []
        for seed in range(seeds):
            watch(f"{name}, seed {seed}")
            runs.append(jax.tree.map(np.asarray, run(jax.random.key(seed))))
        measured.norms[name] = np.stack([norms for norms, _ in runs])
        measured.smoothness[name] = np.stack([found for _, found in runs], axis=1)
        lines = [
            fit_smoothness(norms, found)
            for of_method in measured.smoothness[name]
            for norms, found in zip(measured.norms[name], of_method, strict=True)
        ]
        constants = np.array([[line.l0, line.l1, line.r2] for line in lines])
        measured.fits[name] = constants.reshape(len(METHODS), seeds, 3)
    return measured


def _runner(arm: Arm, probes: int, every: int) -> Callable[[jax.Array], Any]:
    """A run by its key: gradient norms `(probes,)`, and smoothness `(3, probes)`."""
    digits, _ = default_digits()
    images = jnp.asarray(digits.images).astype(jnp.float32) / 255
    labels = jnp.asarray(digits.labels)

    def loss(params: Any, batch: Any) -> jax.Array:
        hidden, classes = batch
        for weight, bias in params[:-1]:
            hidden = arm.activation(hidden @ weight + bias[None])
        logs = jax.nn.log_softmax(hidden @ params[-1][0] + params[-1][1][None])
        return -jnp.mean(jnp.take_along_axis(logs, classes[:, None], axis=1))

    def update(params: Any, key: jax.Array) -> tuple[Any, Any]:
        chosen = jax.random.randint(key, (BATCH,), 0, len(labels))
        batch = images[chosen], labels[chosen]
        grads = jax.grad(loss)(params, batch)
        step = jax.tree.map(lambda grad: -LEARNING_RATE * grad, grads)
        return jax.tree.map(jnp.add, params, step), (batch, step)

    def probe(params: Any, key: jax.Array) -> tuple[Any, Any]:
        *steps, direction = jax.random.split(key, every + 1)
        _, (batch, step) = update(params, steps[0])
        found = (
            local_smoothness(loss, params, batch),
            local_smoothness(loss, params, batch, "secant", step=step),
            local_smoothness(loss, params, batch, "random", key=direction),
        )
        params, _ = jax.lax.scan(
            lambda params, key: (update(params, key)[0], None), params, jnp.stack(steps)
        )
        return params, (found[0].grad_norm, jnp.stack([each.value for each in found]))

    def run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights, steps = jax.random.split(key)
        initial = INITIALISATIONS[arm.init]
        layers = zip(jax.random.split(weights, 3), WIDTHS, WIDTHS[1:], strict=False)
        params = [
            (initial(key, (inputs, outputs)), jnp.zeros(outputs))
            for key, inputs, outputs in layers
        ]
        _, (norms, found) = jax.lax.scan(probe, params, jax.random.split(steps, probes))
        return norms, found.T

    return jax.jit(run)


def report(measured: Measured) -> Report:
    """The lines next to reported ones, and how far apart the methods are."""
    tables = []
    for name, fits in measured.fits.items():
        reported = RELU if name.startswith("ReLU") else TANH
        rows = [
            (f"{method}: {constant}", said, fits[which][:, column])
            for which, method in enumerate(METHODS)
            for column, (constant, said) in enumerate(
                zip(("L0", "L1", "R²"), reported[method], strict=True)
            )
        ]
        tables.append(beside(f"{name}: smoothness = L0 + L1·norm", rows))
    medians = [
        (name, *(over_seeds(np.median(each, axis=1)) for each in found))
        for name, found in measured.smoothness.items()
    ]
    tables.append(Table("Median smoothness", ("", *METHODS), medians))
    hessian = {name: fits[0] for name, fits in measured.fits.items()}
    r2 = np.concatenate([fits[:, 2] for fits in hessian.values()])
    he, lecun = (hessian[name][:, 2].mean() for name in ("tanh, He", "tanh, LeCun"))
    rest = [
        float(fit_smoothness(norms[1:], found[1:]).r2)
        for norms, found in zip(
            measured.norms["tanh, He"], measured.smoothness["tanh, He"][0], strict=True
        )
    ]
    negative = sum(int((fits[:, 1] < 0).sum()) for fits in hessian.values())
    apart = [np.median(found[0] / found[2]) for found in measured.smoothness.values()]
    return Report(
        tables,
        [
            "It is said that this line explains more than 85 % of the variance for "
            f"every network. Here R² of the largest eigenvalue is from {r2.min():.2g} "
            f"to {r2.max():.2g}, and the slope is negative in {negative} of {len(r2)} "
            "runs: print R² before you use a threshold such as L0/L1.",
            f"With tanh R² is {he:.2g} with He's initialization and {lecun:.2g} with "
            "LeCun's, whose gradients are smaller at the start; that of the reported "
            "numbers is not stated. One point can make R²: without the measurement at "
            f"the start, that with He's is {np.mean(rest):.2g}.",
            "A random direction measures the Frobenius norm of the Hessian over √P, "
            f"P = {PARAMETERS:,}: the largest eigenvalue is {min(apart):.0f} to "
            f"{max(apart):.0f} times larger in the median. An estimator that divides "
            "by the length it meant to step, with a direction that is not normalized, "
            f"is too large by √P = {PARAMETERS**0.5:.0f}.",
        ],
        _figure(measured),
    )


def _figure(measured: Measured):
    norms = {name: each[0] for name, each in measured.norms.items()}
    values = {name: found[0, 0] for name, found in measured.smoothness.items()}
    fits = {name: fit_smoothness(norms[name], values[name]) for name in norms}
    return plot_smoothness(norms, values, fits)
