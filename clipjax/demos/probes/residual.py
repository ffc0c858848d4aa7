"""Products of Jacobians through 1,000 layers, plain, residual and scaled."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...diagnostics import jacobian_product_report
from ...plotting import plot_jacobian_norms
from ..options import Whole
from .arguments import require
from .base import Report, beside, number

# The reported products are those of 200 layers.
SHORT = 200


class Measured(NamedTuple):
    """The product of the Jacobians of (1 - beta) x + alpha f(x), by form.

    Attributes:
        layers: number of layers of the long network.
        log_norms: by form, `(seeds, layers)`: log of the spectral norm up to a layer.
        short: by form, `(seeds,)`: the same of a network of 200 layers, at its end.
        largest_step: by form, the largest norm of one layer's Jacobian.
    """

    layers: int
    log_norms: dict[str, np.ndarray]
    short: dict[str, np.ndarray]
    largest_step: dict[str, float]


def forms(layers: int) -> dict[str, tuple[float, float]]:
    """The factors (1 - beta, alpha) of each form."""
    return {
        "f(x)": (0.0, 1.0),
        "x + f(x)": (1.0, 1.0),
        "α = β = 1/2": (0.5, 0.5),
        "α = β = 1/L": (1 - 1 / layers, 1 / layers),
        "α = 1/L, β = 0": (1.0, 1 / layers),
    }


def measure(*, seeds: int = 3, layers: int = 1000, width: int = 32) -> Measured:
    """Multiply the Jacobians of layers with f(x) = tanh(W x).

    W is Gaussian, divided by its spectral norm: ‖f'‖ <= 1.

    Args:
        seeds: independent weights and inputs.
        layers: number of layers L of the long network.
        width: of each layer.
    """
    require(Whole(), seeds=seeds, layers=layers, width=width)

    def one(key: jax.Array, factors: jax.Array, count: int):
        drawn, start = jax.random.split(key)
        weights = jax.random.normal(drawn, (count, width, width))
        weights /= jnp.linalg.norm(weights, 2, axis=(1, 2), keepdims=True)

        def layer(hidden: jax.Array, weight: jax.Array) -> jax.Array:
            return factors[0] * hidden + factors[1] * jnp.tanh(weight @ hidden)

        chain = jacobian_product_report(
            layer, jax.random.normal(start, (width,)), weights
        )
        return chain.log_norms, chain.steps.spectral_norm.max()

    @jax.jit
    def long(keys: jax.Array, factors: jax.Array):
        return jax.lax.map(lambda key: one(key, factors, layers), keys)

    @jax.jit
    def short(keys: jax.Array, factors: jax.Array):
        return jax.lax.map(lambda key: one(key, factors, SHORT), keys)

    keys = jax.random.split(jax.random.key(0), seeds)
    log_norms, largest, ends = {}, {}, {}
    for name, factors in forms(layers).items():
        found, steps = long(keys, jnp.float32(factors))
        log_norms[name] = np.asarray(found, np.float64)
        largest[name] = float(steps.max())
    for name, factors in forms(SHORT).items():
        ends[name] = np.asarray(short(keys, jnp.float32(factors))[0][:, -1], np.float64)
    return Measured(layers, log_norms, ends, largest)


def report(measured: Measured) -> Report:
    """Norms after 200 and after all layers, next to reported ones."""
    said = {"α = β = 1/2": "2e-50", "α = 1/L, β = 0": "1.05"}
    rows = [
        (f"{name}, L = {SHORT}", said.get(name), np.exp(values))
        for name, values in measured.short.items()
    ]
    rows += [
        (f"{name}, L = {measured.layers}", None, np.exp(values[:, -1]))
        for name, values in measured.log_norms.items()
    ]
    norms = {name: np.exp(values) for name, values in measured.log_norms.items()}
    # What is below 1e-60 would take all of the axis; zeros are not drawn.
    drawn = {name: np.where(each > 1e-60, each, 0) for name, each in norms.items()}
    ends = {name: np.median(values[:, -1]) for name, values in norms.items()}
    kept = [name for name, end in ends.items() if 0.1 < end < 10]
    bounded = [name for name, step in measured.largest_step.items() if step < 1.00001]
    return Report(
        [beside("Norm of the product of all Jacobians", rows)],
        [
            f"No single Jacobian is longer than 1 for: {', '.join(bounded)}. This "
            "bounds the product by 1, and lets it vanish: of these the smallest "
            f"product is {number(min(ends[name] for name in bounded))}.",
            f"After {measured.layers} layers the product is between 0.1 and 10 for: "
            f"{', '.join(kept) or 'none'}.",
        ],
        plot_jacobian_norms(drawn, factor="layer"),
    )
