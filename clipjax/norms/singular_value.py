"""The largest singular value of a matrix."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from ..distributed import gathered, resharded
from ..floats import safe_scale, scaling_power
from .base import Axes, positive_root
from .largest import Linf


@dataclasses.dataclass(frozen=True, repr=False)
class Spectral(Linf):
    """The largest singular value of a matrix, by power iteration.

    A leaf of shape ``(…, columns)`` is read as the matrix ``(rest, columns)``,
    after the stacked axes that its granularity names; vectors are single rows.
    The estimate approaches the singular value from below, so that the result of a
    clip exceeds its threshold by the error that is left. The error shrinks with
    the square of the ratio of the two largest singular values at each iteration.
    """

    iterations: int = 16
    per_leaf_only = True

    def __post_init__(self):
        """Refuses a number of iterations that measures nothing."""
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int):
            raise TypeError(f"iterations must be an integer, got {self.iterations!r}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations!r}")

    def __repr__(self) -> str:
        """Prints ``spectral``."""
        return "spectral"

    def accumulate(self, leaf: jax.Array, axes: Axes) -> jax.Array:
        """Estimates σ₁ of each stacked matrix."""
        rank = leaf.ndim
        reduced = tuple(range(rank)) if axes is None else axes
        stack = tuple(n for i, n in enumerate(leaf.shape) if i not in reduced)
        kept = tuple(1 if i in reduced else n for i, n in enumerate(leaf.shape))
        columns = leaf.shape[-1] if reduced else 1
        rows = math.prod(leaf.shape[i] for i in reduced) // max(columns, 1)
        if rows * columns == 0:
            return jnp.zeros(kept, jnp.real(leaf).dtype)
        leaf = gathered(leaf, len(stack))
        sigma = self._power_iteration(leaf.reshape((*stack, rows, columns)))
        return sigma.reshape(kept) if axes is not None else sigma

    def _power_iteration(self, matrix: jax.Array) -> jax.Array:
        peak = jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True)
        power = scaling_power(peak)
        matrix = matrix * power.astype(matrix.dtype)
        adjoint = jnp.conj(jnp.swapaxes(matrix, -1, -2))
        # A fixed start keeps the clip a pure function; being random, it is almost
        # surely not orthogonal to the leading singular vector.
        start = jax.random.normal(jax.random.key(0), (matrix.shape[-1], 1))
        start = jnp.broadcast_to(start, (*matrix.shape[:-2], *start.shape))
        start = resharded(start, (*jax.typeof(matrix).sharding.spec[:-2], None, None))

        def step(_, vector):
            vector = adjoint @ (matrix @ vector)
            length = jnp.sqrt(jnp.sum(_absolute_square(vector), -2, keepdims=True))
            return vector / safe_scale(length).astype(vector.dtype)

        # The first step outside gives the carry the type that the loop leaves it with.
        vector = step(None, start.astype(matrix.dtype))
        vector = jax.lax.fori_loop(1, self.iterations, step, vector)
        vector = jax.lax.stop_gradient(vector)
        image = jnp.sum(_absolute_square(matrix @ vector), axis=(-2, -1))
        sigma = positive_root(image, 2) / power[..., 0, 0]
        return jnp.where(jnp.isfinite(peak[..., 0, 0]), sigma, peak[..., 0, 0])


def _absolute_square(leaf: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(leaf):
        return jnp.square(leaf.real) + jnp.square(leaf.imag)
    return jnp.square(leaf)


def spectral(iterations: int = 16) -> Spectral:
    """Makes the spectral norm; see `Spectral`. Goes with ``granularity.leaf()``.

    Args:
        iterations: steps of power iteration, each two products with the leaf.
    """
    return Spectral(iterations)
