"""The Jacobian norms of layer norm and batch norm, and their bound."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ...diagnostics import jacobian_report
from ...plotting import plot_lines
from ..options import Whole
from .arguments import require
from .base import Report, beside, number

EPSILON = 1e-5


class Measured(NamedTuple):
    """Spectral norms of Jacobians; `(seeds, gains, deviations)` where not said.

    Attributes:
        deviations: `(deviations,)`, standard deviation σ of what is normalized.
        gains: `(gains,)`, the gain of all features.
        layer: of layer norm.
        batch: of batch norm, with the statistics of the batch.
        layer_ratio: `(seeds, deviations)`, of layer norm with gains drawn from the
            normal distribution, divided by max|gain| / √(σ² + ε).
        batch_ratio: the same of batch norm.
    """

    deviations: np.ndarray
    gains: np.ndarray
    layer: np.ndarray
    batch: np.ndarray
    layer_ratio: np.ndarray
    batch_ratio: np.ndarray

    @property
    def bound(self) -> np.ndarray:
        """max|gain| / √(σ² + ε), `(gains, deviations)`."""
        return self.gains[:, None] / np.sqrt(self.deviations**2 + EPSILON)


def measure(*, seeds: int = 3, size: int = 32) -> Measured:
    """Differentiate both normalizations at inputs of a given standard deviation.

    Args:
        seeds: independent inputs and gains.
        size: features of layer norm, examples of batch norm (which has 4 features); at
            least 3.
    """
    require(Whole(), seeds=seeds)
    require(Whole(lowest=4), size=size)
    deviations = np.array([1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1, 3, 10])
    gains = np.array([0.5, 1.5, 3.0])

    def layer_norm(vector: jax.Array, gain: jax.Array) -> jax.Array:
        norm = nnx.LayerNorm(len(vector), epsilon=EPSILON, rngs=nnx.Rngs(0))
        assert norm.scale is not None
        norm.scale[...] = gain
        return norm(vector)

    def batch_norm(batch: jax.Array, gain: jax.Array) -> jax.Array:
        norm = nnx.BatchNorm(batch.shape[1], epsilon=EPSILON, rngs=nnx.Rngs(0))
        assert norm.scale is not None
        norm.scale[...] = gain
        return norm(batch)

    def norms(normalize, drawn: jax.Array, gain: jax.Array) -> jax.Array:
        standard = drawn - drawn.mean(axis=0, keepdims=True)
        standard = standard / drawn.std(axis=0, keepdims=True)

        def one(deviation: jax.Array) -> jax.Array:
            report = jacobian_report(
                lambda inputs: normalize(inputs, gain), deviation * standard
            )
            return report.spectral_norm

        return jax.lax.map(one, jnp.float32(deviations))

    @jax.jit
    def of_seed(key: jax.Array):
        vector_key, batch_key, gain_key = jax.random.split(key, 3)
        vector = jax.random.normal(vector_key, (size,))
        batch = jax.random.normal(batch_key, (size, 4))
        drawn = jax.random.normal(gain_key, (size,))
        equal = jnp.float32(gains)
        layer = jax.lax.map(
            lambda gain: norms(layer_norm, vector, jnp.full(size, gain)), equal
        )
        batches = jax.lax.map(
            lambda gain: norms(batch_norm, batch, jnp.full(4, gain)), equal
        )
        scale = jnp.sqrt(jnp.float32(deviations) ** 2 + EPSILON)
        ratios = [
            norms(normalize, inputs, gain) * scale / jnp.abs(gain).max()
            for normalize, inputs, gain in (
                (layer_norm, vector, drawn),
                (batch_norm, batch, drawn[:4]),
            )
        ]
        return layer, batches, *ratios

    keys = jax.random.split(jax.random.key(0), seeds)
    found = jax.lax.map(of_seed, keys)
    return Measured(deviations, gains, *map(np.asarray, found))


def report(measured: Measured) -> Report:
    """The norms against σ, and how far they are from the bound."""
    place = list(measured.gains).index(1.5)
    rows = [("batch norm, gain 1.5, σ → 0", "474", measured.batch[:, place, 0])]
    rows += [
        (f"layer norm, gain {gain:g}, σ = {measured.deviations[index]:g}", None, values)
        for number_of, gain in enumerate(measured.gains)
        for index, values in (
            (0, measured.layer[:, number_of, 0]),
            (7, measured.layer[:, number_of, 7]),
        )
    ]
    rows += [
        ("layer norm, norm / bound, drawn gains", None, measured.layer_ratio.max(1)),
        ("batch norm, norm / bound, drawn gains", None, measured.batch_ratio.max(1)),
    ]
    figure = plot_lines(
        {
            f"{name}, gain {gain:g}": values[:, index]
            for name, values in (("layer", measured.layer), ("batch", measured.batch))
            for index, gain in list(enumerate(measured.gains))[::2]
        },
        measured.deviations,
        x_label="standard deviation σ of what is normalized",
        y_label="norm of the Jacobian",
        title="max|gain| / √(σ² + ε) with ε = 1e-5",
        is_log=(True, True),
    )
    off = max(
        np.abs(values / measured.bound - 1).max()
        for values in (measured.layer, measured.batch)
    )
    return Report(
        [beside("Jacobian norms of normalizations", rows)],
        [
            "With one gain for all features the norm differs from "
            f"gain / √(σ² + ε) by at most {number(off)} of it.",
            "It is no absolute constant: it grows with the gain, and as σ falls up to "
            f"max|gain| / √ε, {number(measured.bound[-1, 0])} for a gain of "
            f"{measured.gains[-1]:g}.",
        ],
        figure,
    )
