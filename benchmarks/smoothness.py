"""Local smoothness against the gradient norm while a network trains on digits.

    python -m benchmarks.smoothness [--probes 100] [--seeds 2]

A 784-256-128-10 network with weights of He's scale is trained by SGD with learning rate
0.1 and batches of 256, and probed at every tenth step by the three methods of
`clipjax.diagnostics.local_smoothness`. The table has the line L0 + L1 · norm that fits
them, and R²: how much of the variance of the smoothness the line explains.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.demos.tasks.mnist import default_digits
from clipjax.diagnostics import SmoothnessFit, fit_smoothness, local_smoothness

from .options import Parser, positive, table

WIDTHS = (784, 256, 128, 10)
BATCH, LEARNING_RATE, STEPS_PER_PROBE = 256, 0.1, 10
ACTIVATIONS = {"ReLU": jax.nn.relu, "tanh": jnp.tanh}


def initial(key: jax.Array) -> Any:
    """Return normal weights with variance 2 / inputs, and zero biases."""
    keys = jax.random.split(key, len(WIDTHS))
    return [
        (
            (2 / inputs) ** 0.5 * jax.random.normal(k, (inputs, outputs)),
            jnp.zeros(outputs),
        )
        for k, inputs, outputs in zip(keys, WIDTHS, WIDTHS[1:], strict=False)
    ]


def measure(
    activation: Callable[[jax.Array], jax.Array], probes: int, seed: int
) -> dict[str, SmoothnessFit]:
    """Train one network, and return the fit of each method."""
    images, labels = map(jnp.asarray, default_digits()[0])
    images = images.astype(jnp.float32) / 255

    def loss(params: Any, batch: Any) -> jax.Array:
        hidden, classes = batch
        for weight, bias in params[:-1]:
            hidden = activation(hidden @ weight + bias)
        logs = jax.nn.log_softmax(hidden @ params[-1][0] + params[-1][1])
        return -jnp.mean(jnp.take_along_axis(logs, classes[:, None], axis=1))

    def update(params: Any, key: jax.Array) -> tuple[Any, Any]:
        chosen = jax.random.randint(key, (BATCH,), 0, len(labels))
        batch = images[chosen], labels[chosen]
        grads = jax.grad(loss)(params, batch)
        step = jax.tree.map(lambda grad: -LEARNING_RATE * grad, grads)
        return jax.tree.map(jnp.add, params, step), (batch, step)

    def probe(params: Any, key: jax.Array) -> tuple[Any, Any]:
        *steps, direction = jax.random.split(key, STEPS_PER_PROBE + 1)
        _, (batch, step) = update(params, steps[0])
        found = {
            "hessian": local_smoothness(loss, params, batch),
            "secant": local_smoothness(loss, params, batch, "secant", step=step),
            "random": local_smoothness(loss, params, batch, "random", key=direction),
        }
        params, _ = jax.lax.scan(
            lambda p, k: (update(p, k)[0], None), params, jnp.stack(steps)
        )
        return params, found

    start, *keys = jax.random.split(jax.random.key(seed), probes + 1)
    run = jax.jit(lambda params, keys: jax.lax.scan(probe, params, keys))
    _, found = run(initial(start), jnp.stack(keys))
    return {
        method: fit_smoothness(each.grad_norm, each.value)
        for method, each in found.items()
    }


def main(arguments: list[str] | None = None) -> int:
    """Print one row per activation and method, with one number per seed."""
    parser = Parser("smoothness", __doc__)
    parser.add_argument("--probes", type=positive, default=100)
    parser.add_argument("--seeds", type=positive, default=2)
    options = parser.parse_args(arguments)
    rows = []
    for name, activation in ACTIVATIONS.items():
        runs = [measure(activation, options.probes, s) for s in range(options.seeds)]
        for method in runs[0]:
            fits = [run[method] for run in runs]
            columns = (
                [f"{fit.l0:.2f}" for fit in fits],
                [f"{fit.l1:.2f}" for fit in fits],
                [f"{fit.r2:.2f}" for fit in fits],
            )
            rows.append([name, method, *map(", ".join, columns)])
    print(table(["activation", "method", "L0", "L1", "R²"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
