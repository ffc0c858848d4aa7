"""Bounds on rounding: how far a computed sum of products can be off.

The model is Higham's (*Accuracy and Stability of Numerical Algorithms*, chapters 2 and
3), with underflow: ``fl(a ∘ b) = (a ∘ b)(1 + δ) + η`` with ``|δ| ≤ u``, the unit
roundoff, and ``|η| ≤ tiny``, the smallest normal number, since XLA flushes what is
below it to zero. If no term of a sum of products passes through more than k roundings,
the computed sum is off by at most ``γ_k Σ|terms|``, with ``γ_k = k u / (1 - k u)``, in
whatever order XLA adds, and with or without fused multiply-adds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .direct import widened, without_unit_axes

# Longer sums are taken in stages, so that k grows with the logarithm of their length: a
# term of a million passes through 197 roundings, where XLA may add one after another.
STAGE = 64

# Sums of squares of biases and gains are left to XLA: the temporary buffers of a
# perceptron grew by a quarter with stages. Up to here γ_k is 6e-5 of their square.
SHORT = 1024

# Longer contractions are cut into blocks that are added up: k = 128 + 8 for 1024
# columns. A transformer's bound is then 5e-5 above the norm instead of 3e-4.
BLOCK = 128

# A single use has no cross terms, so that a longer block costs it less than the cut.
BLOCK_OF_SINGLE_USE = 1024


def unit_roundoff(dtype: Any) -> float:
    """Return u, half the distance from 1 to the next number."""
    return float(jnp.finfo(dtype).eps) / 2


def tiny(dtype: Any) -> float:
    """Return the smallest normal number."""
    return float(jnp.finfo(dtype).tiny)


def gamma(roundings: float, dtype: Any) -> float:
    """Return Higham's γ_k for one rounding more, which covers its own evaluation."""
    ku = (roundings + 1) * unit_roundoff(dtype)
    return ku / (1 - ku) if ku < 1 else math.inf


def root(square: jax.Array) -> jax.Array:
    """Return the square root, with derivative 0 at 0, where it would be infinite."""
    is_zero = square == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, square)))


def cast_toward_zero(array: jax.Array, dtype: Any) -> jax.Array:
    """Cast to a dtype, toward zero below its normal range, to nearest within it.

    Within the range, rounding to nearest lengthens by half an ulp at most. Below it the
    spacing of numbers is fixed, and rounding up lengthened results of float16 to 1.86 C
    for C = 3e-6 and 10⁴ entries.
    """
    info = jnp.finfo(dtype)
    if float(info.tiny) <= tiny(array.dtype) or jnp.iscomplexobj(array):
        return array.astype(dtype)
    spacing = float(info.smallest_subnormal)
    multiple = jnp.trunc(array / spacing) * spacing
    is_below = jnp.abs(array) < float(info.tiny)
    return jnp.where(is_below, multiple, array).astype(dtype)


def block_size(length: int, uses: int) -> int:
    """Return how many terms of a contraction are added before the next block."""
    least = BLOCK if uses > 1 else BLOCK_OF_SINGLE_USE
    # Blocks of about √n minimize block + n / block; 50,000 columns make 197 blocks.
    return max(least, BLOCK * -(-math.isqrt(length) // BLOCK))


def dot_roundings(length: int, uses: int) -> int:
    """Return k for a contraction in blocks: the products, and the sums of both."""
    block = block_size(length, uses)
    return min(length, block) + -(-length // block)


def staged_sum(terms: jax.Array) -> jax.Array:
    """Return the sum over all axes but the first, in stages of at most `STAGE` terms.

    An axis is split, not joined to others: sharded axes stay where they are.
    """
    terms = without_unit_axes(terms)
    while terms.ndim > 1:
        count, length = _next_stage(terms.shape[1:])
        if count:
            sums = jnp.sum(terms, axis=tuple(range(-count, 0)))
        else:
            stages = terms[..., :length].reshape(*terms.shape[:-1], -1, STAGE)
            sums = jnp.sum(stages, axis=-1)
        # Without the barrier, XLA merges the stages into one sum.
        rest, terms = terms[..., length:], jax.lax.optimization_barrier(sums)
        if not count:
            terms = jnp.concatenate([terms, rest], axis=-1)
    return terms


def staged_sum_roundings(shape: Sequence[int]) -> int:
    """Return how many roundings a term of this shape passes through in `staged_sum`."""
    roundings, left = 0, list(shape)
    while left:
        count, length = _next_stage(left)
        if count:
            roundings += math.prod(left[-count:])
            del left[-count:]
        else:
            roundings += STAGE
            left[-1] += length // STAGE - length
    return roundings


def _next_stage(shape: Sequence[int]) -> tuple[int, int]:
    """Return how many of the last axes to add at once; if 0, how much of one to split.

    The length to split is the largest multiple of `STAGE` within the last axis.
    """
    count, terms = 0, 1
    for length in reversed(shape):
        terms *= length
        if terms > STAGE:
            break
        count += 1
    return count, shape[-1] // STAGE * STAGE


def sum_of_squares(array: jax.Array) -> jax.Array:
    """Return Σ|x|² of each example, in float32 or wider."""
    squares = jnp.square(widened(jnp.abs(array)))
    if math.prod(array.shape[1:]) > SHORT:
        return staged_sum(squares)
    return jnp.sum(squares, axis=tuple(range(1, array.ndim)))


def sum_of_squares_roundings(shape: Sequence[int]) -> int:
    """Return k for `sum_of_squares` of this shape: the modulus, the square, the sum."""
    size = math.prod(shape)
    return 3 + (staged_sum_roundings(shape) if size > SHORT else size)


class Uses(NamedTuple):
    """The lengths of the factors l_t, r_t of each use t, rounded up.

    Attributes:
        lefts: ``‖l_t‖``, of shape ``[B, S, T]``; 1 for the row of a look-up.
        rights: ``‖r_t‖``, likewise.
        reach: ``R = Σ_t ‖l_t‖‖r_t‖``, of shape ``[B]``: no gradient is longer.
        norm_underflow: the root of the largest underflow error of ‖G‖², ``[B]``.
        sum_underflow: the largest underflow error of the weighted sum, ``[B]``.
    """

    lefts: jax.Array
    rights: jax.Array
    reach: jax.Array
    norm_underflow: jax.Array
    sum_underflow: jax.Array


def uses_of(left: Sequence[jax.Array] | None, right: jax.Array) -> Uses:
    """Measure the factors of a product.

    Args:
        left: ``[B, S, T, n]``, in pieces along n; None for rows of the identity.
        right: ``[B, S, T, m]``.
    """
    left, right = jax.lax.stop_gradient((left, right))
    rights, columns = _lengths([right]), right.shape[-1]
    if left is None:
        lefts, rows = (rights > 0).astype(rights.dtype), 1
    else:
        lefts, rows = _lengths(left), sum(piece.shape[-1] for piece in left)
    smallest, uses = tiny(rights.dtype), rights.shape[1] * rights.shape[2]
    up = 1 + gamma(uses + 4, rights.dtype)

    def added(lengths: jax.Array) -> jax.Array:
        # A use without input or without cotangent adds nothing, not even by underflow.
        is_used = (lefts > 0) & (rights > 0)
        return up * jnp.sum(jnp.where(is_used, lengths, 0), axis=(1, 2))

    # Each entry of the Gram matrices l_t·l_u (of n products) and r_t·r_u (of m) loses
    # at most 2 tiny a product, and each product of two entries 2 tiny:
    #   2 tiny (n (Σ‖r_t‖)² + m (Σ‖l_t‖)² + T²).
    lost = [
        rows**0.5 * added(rights),
        columns**0.5 * added(lefts),
        added(jnp.ones_like(rights)),
    ]
    norm_underflow = up * (2 * smallest) ** 0.5 * functools.reduce(jnp.hypot, lost)
    # An entry of w l_t loses at most tiny, and r_t multiplies that; each product and
    # each sum after it loses tiny again.
    sum_underflow = (2 * smallest) * (
        rows**0.5 * added(rights) + uses * (rows * columns) ** 0.5
    )
    reach = added(lefts * rights)
    return Uses(lefts, rights, reach, norm_underflow, sum_underflow)


def _lengths(pieces: Sequence[jax.Array]) -> jax.Array:
    """Return upper bounds of the rows' norms, exactly zero for rows of zeros."""
    wide = [widened(piece) for piece in pieces]
    size, dtype = sum(piece.shape[-1] for piece in wide), wide[0].dtype
    squares = sum(jnp.sum(jnp.square(piece), -1) for piece in wide)
    sums = sum(jnp.sum(jnp.abs(piece), -1) for piece in wide)
    up = 1 + gamma(size + 4, dtype)
    # Squares that underflow are less than tiny each.
    return up * jnp.minimum(sums, jnp.sqrt(squares + size * tiny(dtype)))
