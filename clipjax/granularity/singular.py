"""Singular values: the rule brings each of them from its size to its length."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from ..distributed import gathered, resharded
from ..floats import scaling_power
from ..norms import Axes, Norm, Spectral, l2
from ..rules import Rule, Skip, Sqrt, lengths
from ..trees import per_leaf
from .base import Block
from .few import Leaf

matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True, repr=False)
class Singular(Leaf):
    """The singular values of each leaf, reported by the largest; see `singular`."""

    iterations: int | None = None
    kind = "singular"
    scales = False

    def __post_init__(self):
        """Refuses what is no number of iterations, as the norm does."""
        if self.iterations is not None:
            Spectral(self.iterations)

    def block_norm(self, norm: Norm) -> Norm:
        """Measures by the SVD that clips, so that nothing above a threshold passes."""
        return Largest() if self.iterations is None else norm

    def rescale(self, leaf: jax.Array, block: Block) -> jax.Array:
        """Shortens the singular values and keeps the singular vectors."""
        matrix = as_matrices(leaf, block.norm.shape)
        if min(matrix.shape[-2:]) <= 1:  # a single singular value, or none
            return super().rescale(leaf, block)
        threshold = block.threshold.reshape((*matrix.shape[:-2], 1))
        if self.iterations is None:
            left, sigma, right = decompose(matrix)
            length = lengths(block.rule, sigma, threshold)[..., None, :]
            clipped = matmul(left * length.astype(left.dtype), right)
        else:
            length = block.length.reshape((*matrix.shape[:-2], 1, 1))
            clipped = soft_clip(matrix, length, threshold[..., None], self.iterations)
        return resharded(clipped.reshape(leaf.shape), jax.typeof(leaf).sharding.spec)

    def check(self, norm: Norm, rule: Rule) -> None:
        """Takes the spectral norm, and rules that shorten."""
        if not isinstance(norm, Spectral):
            raise ValueError(
                f"norm={norm!r} does not measure singular values: use "
                "granularity.singular() with norm=norms.spectral()"
            )
        # The engine reports and keeps a leaf by what becomes of the largest singular
        # value, which must stay the largest, and be cut before the others are.
        if not rule.contractive or isinstance(rule, Skip):
            raise ValueError(
                f"rule={rule!r} does not shorten the largest singular values most: use "
                "granularity.singular() with a rule such as rules.hard"
            )
        if self.iterations is not None and not isinstance(rule, Sqrt):
            raise ValueError(
                f"iterations must be None for rule={rule!r}, got {self.iterations!r}: "
                "they are for rules.sqrt"
            )


class Largest(Spectral):
    """The largest singular value, by SVD; there is no iteration."""

    def accumulate(self, leaf: jax.Array, axes: Axes) -> jax.Array:
        """Measures each stacked matrix."""
        kept = [1 if i in (axes or ()) else n for i, n in enumerate(leaf.shape)]
        kept = () if axes is None else tuple(kept)
        matrix = as_matrices(leaf, kept)
        if min(matrix.shape[-2:]) > 1:
            return decompose(matrix)[1][..., 0].reshape(kept)
        peak, power = _scale(matrix)
        both = (matrix.ndim - 2, matrix.ndim - 1)
        length = l2.finish(l2.accumulate(matrix * power, both), 1) / jnp.real(power)
        return jnp.where(jnp.isfinite(peak), length, peak).reshape(kept)


def as_matrices(leaf: jax.Array, kept: tuple[int, ...]) -> jax.Array:
    """Reads a leaf as matrices ``(…, rows, columns)``, the way `Spectral` does.

    ``kept`` is the shape of its norms, in which ones at the end stack nothing.
    """
    stack = len(kept)
    while stack and kept[stack - 1] == 1:
        stack -= 1
    columns = leaf.shape[-1] if stack < leaf.ndim else 1
    rows = leaf.size // max(math.prod(leaf.shape[:stack]) * columns, 1)
    leaf = gathered(leaf, stack)
    return leaf.reshape((*leaf.shape[:stack], rows, columns))


def _scale(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gives the largest magnitude, and a power of two that brings it to [1, 4)."""
    matrix = jax.lax.stop_gradient(matrix)
    peak = jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True, initial=0)
    return peak, scaling_power(peak).astype(matrix.dtype)


def decompose(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives the SVD at any magnitude; the values are NaN or inf where an entry is.

    The norm and the clip of a leaf call this alike, and XLA then computes it once.
    """
    peak, power = _scale(matrix)
    usable = (peak > 0) & (peak < jnp.inf)
    # LAPACK must not see NaN, nor a derivative the equal singular values of zero.
    columns = matrix.shape[-1]
    other = jnp.eye(matrix.shape[-2], columns) * jnp.arange(1.0, columns + 1)[None]
    scaled = jnp.where(usable, matrix * power, other.astype(matrix.dtype))
    left, sigma, right = jnp.linalg.svd(scaled, full_matrices=False)
    sigma = sigma / jnp.real(power)[..., 0]
    return left, jnp.where(usable[..., 0], sigma, peak[..., 0]), right


def _gram(matrix: jax.Array) -> jax.Array:
    return matmul(jnp.conj(jnp.swapaxes(matrix, -1, -2)), matrix)


def soft_clip(
    matrix: jax.Array, length: jax.Array, threshold: jax.Array, iterations: int
) -> jax.Array:
    r"""Brings every singular value σ to ``σ / √(1 + (σ/c)²)`` by products alone.

    The result is c times the upper part of the polar factor of X stacked on c·I,
    whose condition number is only the root of that of ``I + XᵀX/c²``: small singular
    values stay right in float32 where σ₁/c is large. A step maps singular values x in
    [low, 1] by :math:`\tfrac a2 x (3 - a^2 x^2) \le 1`, with the a that lifts the least
    most (Chen, Chow, "A stable scaling of Newton-Schulz for improving the sign function
    computation of a Hermitian matrix", 2014). A length of 0 gives zeros, and NaN NaN.
    """
    if matrix.shape[-2] < matrix.shape[-1]:  # take the smaller of the Gram matrices
        tall = jnp.swapaxes(matrix, -1, -2)
        return jnp.swapaxes(soft_clip(tall, length, threshold, iterations), -1, -2)
    usable = (length > 0) & (threshold < jnp.inf)
    upper = jnp.where(usable, matrix, jnp.zeros_like(matrix))
    power = _scale(upper)[1]
    # From 2^30 times the peak on nothing is clipped, and until there squares fit.
    limit = jnp.where(usable, threshold, jnp.ones_like(threshold))
    limit = jnp.minimum(limit, 2.0**30 / jnp.real(power))
    upper, low = upper * power, limit * jnp.real(power)
    # The Frobenius norm of the Gram matrix is at least its largest eigenvalue.
    largest = jnp.linalg.norm(_gram(upper), axis=(-2, -1), keepdims=True)
    bound = jax.lax.stop_gradient(jnp.sqrt(largest + low**2))
    identity = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    identity = jnp.broadcast_to(identity, (*matrix.shape[:-2], *identity.shape))

    def step(_, carry):
        upper, lower, low = carry
        # Rounding takes x beyond 1, where an a of √3 would turn its sign.
        safe = jnp.maximum(low, 1e-3)
        a = jnp.sqrt(3 / (1 + safe + safe**2))
        low = jnp.minimum(a / 2 * low * (3 - (a * low) ** 2), 1)
        a = a.astype(upper.dtype)
        factor = a / 2 * (3 * identity - a**2 * (_gram(upper) + _gram(lower)))
        return matmul(upper, factor), matmul(lower, factor), low

    low, upper = low / bound, upper / bound.astype(matrix.dtype)
    lower = low.astype(matrix.dtype) * identity
    start = upper, lower, jax.lax.stop_gradient(low)
    clipped = jax.lax.fori_loop(0, iterations, step, start)[0]
    clipped = limit.astype(matrix.dtype) * clipped
    return jnp.where(length > 0, clipped, length.astype(matrix.dtype))


def singular(stacked: Any = None, iterations: int | None = None) -> Singular:
    """Every singular value by itself; the singular vectors are kept.

    Goes with ``norm=norms.spectral()`` and a rule that shortens. A leaf of shape
    ``(…, columns)`` is the matrix ``(rest, columns)``, and a vector a single row, whose
    one singular value is its l2 norm. The report has the largest of each leaf.

    Args:
        stacked: how many leading axes of a leaf stack separate layers, as in `leaf`.
        iterations: None for an SVD, whose derivative is not defined where singular
            values are equal. Or, for ``rules.sqrt``, how many steps of a Newton-Schulz
            iteration to take: see `clipjax.recipes.spectral.spectral_soft_clip`.
    """
    return Singular(per_leaf(stacked, None), iterations)
