"""Linear algebra of the clips of singular values, at any magnitude."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from ..core.blocks import Blocks
from ..core.dtypes import safe_divisor, scaling_power, widen
from ..core.meshes import gathered
from ..jax_internals import resharded, spec_of

matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def as_matrices(arrays: list[jax.Array], blocks: Blocks) -> list[jax.Array]:
    """Return leaves as matrices ``(layers…, rows, columns)``, accumulation dtype."""
    matrices = []
    for array, summed in zip(arrays, blocks.summed, strict=True):
        stack = array.ndim - len(summed)
        columns = array.shape[-1] if summed else 1
        rows = math.prod(array.shape[stack:]) // max(columns, 1)
        # A decomposition needs the whole matrix.
        array = gathered(widen(array, blocks.leaves.dtype), stack)
        matrices.append(array.reshape((*array.shape[:stack], rows, columns)))
    return matrices


def _scale(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the largest magnitude, and a power of two that brings it to [1, 4)."""
    matrix = jax.lax.stop_gradient(matrix)
    peak = jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True, initial=0)
    return peak, scaling_power(peak).astype(matrix.dtype)


def frobenius_norm(matrix: jax.Array) -> jax.Array:
    """Return the l2 norm, at any magnitude, with derivative 0 at 0."""
    peak, power = _scale(matrix)
    squares = jnp.sum(_absolute_square(matrix * power), axis=(-2, -1))
    positive = squares > 0
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
    peak, power = peak[..., 0, 0], jnp.real(power)[..., 0, 0]
    return jnp.where(jnp.isfinite(peak), root / power, peak)


def largest_singular_value(matrix: jax.Array, iterations: int) -> jax.Array:
    """Return σ₁ by power iteration; NaN or inf where an entry is."""
    if min(matrix.shape[-2:]) <= 1:
        return frobenius_norm(matrix)
    peak, power = _scale(matrix)
    usable = peak < jnp.inf
    matrix = jnp.where(usable, matrix, jnp.zeros_like(matrix)) * power
    adjoint = jnp.conj(jnp.swapaxes(matrix, -1, -2))
    # A fixed start keeps the clip a pure function; being random, it is almost surely
    # not orthogonal to the leading singular vector.
    start = jax.random.normal(jax.random.key(0), (matrix.shape[-1], 1))
    start = jnp.broadcast_to(start, (*matrix.shape[:-2], *start.shape))
    start = resharded(start, (*spec_of(matrix)[:-2], None, None))

    def step(_, vector):
        vector = adjoint @ (matrix @ vector)
        length = jnp.sqrt(jnp.sum(_absolute_square(vector), -2, keepdims=True))
        return vector / safe_divisor(length).astype(vector.dtype)

    # The first step is outside the loop, so that the carry has the loop's output type.
    vector = step(None, start.astype(matrix.dtype))
    vector = jax.lax.fori_loop(1, iterations, step, vector)
    vector = jax.lax.stop_gradient(vector)
    image = jnp.sum(_absolute_square(matrix @ vector), axis=(-2, -1))
    positive = image > 0
    sigma = jnp.where(positive, jnp.sqrt(jnp.where(positive, image, 1)), 0)
    peak, power = peak[..., 0, 0], jnp.real(power)[..., 0, 0]
    return jnp.where(jnp.isfinite(peak), sigma / power, peak)


def _absolute_square(leaf: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(leaf):
        return jnp.square(leaf.real) + jnp.square(leaf.imag)
    return jnp.square(leaf)


def decompose(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the SVD at any magnitude; the values are NaN or inf where an entry is."""
    peak, power = _scale(matrix)
    usable = (peak > 0) & (peak < jnp.inf)
    # LAPACK must not get NaN. The SVD of the zero matrix has no derivative, since its
    # singular values are equal: decompose a matrix with distinct ones in its place.
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
    r"""Map every singular value σ to ``σ / √(1 + (σ/c)²)`` by products alone.

    The result is c times the upper part of the polar factor of X stacked on c·I. The
    condition number of that stack is only the square root of the condition number of
    ``I + XᵀX/c²``, so that small singular values are accurate in float32 where σ₁/c is
    large. A step maps singular values x in [low, 1] to
    :math:`\tfrac a2 x (3 - a^2 x^2) \le 1`, with the a that increases the smallest one
    most (Chen, Chow, "A stable scaling of Newton-Schulz for improving the sign function
    computation of a Hermitian matrix", 2014). The result is 0 for a length of 0, and
    NaN for a length of NaN.
    """
    if matrix.shape[-2] < matrix.shape[-1]:  # work with the smaller Gram matrix
        tall = jnp.swapaxes(matrix, -1, -2)
        return jnp.swapaxes(soft_clip(tall, length, threshold, iterations), -1, -2)
    usable = (length > 0) & (threshold < jnp.inf)
    upper = jnp.where(usable, matrix, jnp.zeros_like(matrix))
    power = _scale(upper)[1]
    # A threshold above 2^30 times the peak clips nothing; up to there squares are in
    # range.
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
