"""Maps that keep volume and stretch: determinant 1 with a large norm."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...diagnostics import jacobian_product_report, jacobian_report
from ...plotting import plot_jacobian_norms
from ..options import Positive, Whole
from .arguments import require
from .base import Report, beside, number


class Measured(NamedTuple):
    """Determinants and norms.

    Attributes:
        stretch_determinant: of diag(100, 0.01).
        stretch_norm: its spectral norm.
        log_determinant: `(seeds,)`, log |det| of the Jacobian of a whole flow.
        log_norms: `(seeds, layers)`, log of its spectral norm up to each layer.
    """

    stretch_determinant: float
    stretch_norm: float
    log_determinant: np.ndarray
    log_norms: np.ndarray


def measure(
    *, seeds: int = 3, layers: int = 12, width: int = 8, gain: float = 1.0
) -> Measured:
    """Differentiate a diagonal map, and flows of additive coupling layers.

    A coupling layer adds tanh(W a) to the other half b of its input (a, b) and swaps
    the halves. Its Jacobian is triangular up to the swap, with ones on the diagonal
    (Dinh, Krueger, Bengio, `NICE <https://arxiv.org/abs/1410.8516>`_).

    Args:
        seeds: independent weights and inputs.
        layers: coupling layers of a flow.
        width: of each half.
        gain: W is Gaussian with variance gain² / width.
    """
    require(Whole(), seeds=seeds, layers=layers, width=width)
    require(Positive(), gain=gain)
    diagonal = jnp.array([100.0, 0.01])

    @jax.jit
    def flow(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn, start = jax.random.split(key)
        weights = jax.random.normal(drawn, (layers, width, width)) * gain * width**-0.5

        def couple(hidden: jax.Array, weight: jax.Array) -> jax.Array:
            first, second = jnp.split(hidden, 2)
            return jnp.concatenate([second + jnp.tanh(weight @ first), first])

        def whole(x: jax.Array) -> jax.Array:
            return jax.lax.scan(lambda x, w: (couple(x, w), None), x, weights)[0]

        x = jax.random.normal(start, (2 * width,))
        log_determinant = jnp.linalg.slogdet(jax.jacobian(whole)(x))[1]
        return log_determinant, jacobian_product_report(couple, x, weights).log_norms

    found = [flow(key) for key in jax.random.split(jax.random.key(0), seeds)]
    log_determinant, log_norms = zip(*found, strict=True)
    return Measured(
        float(jnp.prod(diagonal)),
        float(jacobian_report(lambda x: diagonal * x, jnp.ones(2)).spectral_norm),
        np.asarray(log_determinant, np.float64),
        np.asarray(log_norms, np.float64),
    )


def report(measured: Measured) -> Report:
    """Determinant and norm side by side."""
    layers = measured.log_norms.shape[1]
    norms = np.exp(measured.log_norms)
    rows = [
        ("diag(100, 0.01), determinant", "1", measured.stretch_determinant),
        ("diag(100, 0.01), norm", "100", measured.stretch_norm),
        (f"{layers} couplings, determinant", "1", np.exp(measured.log_determinant)),
        (f"{layers} couplings, norm", None, norms[:, -1]),
    ]
    return Report(
        [beside("Volume and stretch", rows)],
        [
            "The determinant is 1 throughout and says nothing about gradients: after "
            f"{layers} volume-preserving layers the norm is "
            f"{number(np.median(norms[:, -1]))}."
        ],
        plot_jacobian_norms({"coupling layers": norms}, factor="layer"),
    )
