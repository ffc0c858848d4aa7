"""Inner products of per-example gradients by factors, and bounds on their rounding.

With ``L_tu = l_t · l_u`` and ``M_tu = r_t · r_u``, the Gram matrices of the uses,

    ⟨G₁, G₂⟩ = Σ_tu L_tu M_tu.                                                      (1)

Computed matrices, with hats, are off by ``|L̂ - L| ≤ a ‖l_t‖‖l_u‖`` and
``|M̂ - M| ≤ b ‖r_t‖‖r_u‖``, where a and b are γ_k of the two contractions. Expanding
``L M = (L̂ - δ)(M̂ - ε)``, and with the γ_s of the sum in (1), the computed value is off
by at most

    E = Σ_tu a ‖l_t‖‖l_u‖ |M̂_tu| + b ‖r_t‖‖r_u‖ |L̂_tu| + γ_s |L̂_tu M̂_tu|
        + a b ‖l_t‖‖l_u‖‖r_t‖‖r_u‖.                                                 (2)

All of (2) is known after (1). Bounding it by (a + b + γ_s + ab) R², with
``R = Σ_t ‖l_t‖‖r_t‖``, would cost less, and be 2 to 5 times as much: R² is 17.5 times
the squared norm for a transformer at initialization; the first three sums of (2),
divided by a, b and γ_s, are 2.7, 7.0 and 1.2 times it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .direct import HIGHEST, widened
from .factors import Product, added, paired
from .rounding import (
    block_size,
    dot_roundings,
    gamma,
    staged_sum,
    staged_sum_roundings,
    sum_of_squares_roundings,
)

# From here on a loop adds the blocks of a contraction, which compiles in constant time.
MOST_UNROLLED_BLOCKS = 16


class Measured(NamedTuple):
    """A computed number for each example, and a bound on its rounding error.

    Attributes:
        value: what was computed, of shape ``[B]``.
        error: an upper bound of its error, except for underflow; no derivative.
    """

    value: jax.Array
    error: jax.Array


def squared_norm(product: Product) -> Measured:
    """Return ‖G‖² of each example."""
    if not product.gradient:
        return by_factors(product, product)
    squares = product.squares
    shapes = [piece.shape[1:] for piece in product.gradient]
    roundings = len(shapes) + max(map(sum_of_squares_roundings, shapes))
    known = jax.lax.stop_gradient(squares)
    return Measured(squares, gamma(roundings, squares.dtype) * known)


def inner(one: Product, two: Product, swapped: bool) -> Measured:
    """Return ⟨G₁, G₂⟩ of each example, where at most one of them has been formed.

    Args:
        one: a product.
        two: another, of the same arrangement of the same parameter.
        swapped: whether the second is arranged as the first, transposed.
    """
    if one.gradient or (two.is_lookup and not one.is_lookup):
        one, two = two, one
    return (against_gradient if two.gradient else by_factors)(one, two, swapped)


def by_factors(one: Product, two: Product, swapped: bool = False) -> Measured:
    """Return (1) and (2); the first product is a look-up if any of them is."""
    left, right = two.factors.left, two.factors.right
    lefts, rights = two.uses.lefts, two.uses.rights
    if swapped:
        left, right = (right,), jnp.concatenate(left, -1)
        lefts, rights = rights, lefts
    uses, others = one.uses.rights.shape[-1], rights.shape[-1]
    most = max(uses, others)
    gram_right = _gram(one.factors.right, right)
    dtype = gram_right.dtype
    b = gamma(dot_roundings(right.shape[-1], most), dtype)
    a = 0.0  # positions are compared, and entries picked, without rounding
    if one.is_lookup and two.is_lookup:
        same = one.factors.left[0][:, :, None] == left[0][:, None, :]
        gram_left = same[:, None].astype(dtype)
    elif one.is_lookup:
        columns = jnp.swapaxes(jnp.concatenate(left, -1)[:, 0], 1, 2)
        gram_left = widened(_picked(columns, one.factors.left[0], 1))[:, None]
    else:
        pieces = paired(one.factors.left, left, 3)
        gram_left = added(map(_gram, *pieces))
        lengths = [dot_roundings(piece.shape[-1], most) for piece in pieces[0]]
        a = gamma(len(lengths) + max(lengths), dtype)
    value = staged_sum(gram_left * gram_right)
    roundings = 1 + staged_sum_roundings(gram_right.shape[1:])
    sizes = jax.lax.stop_gradient((jnp.abs(gram_left), jnp.abs(gram_right)))
    gram_left, gram_right = sizes
    left_left = one.uses.lefts[..., :, None] * lefts[..., None, :]
    right_right = one.uses.rights[..., :, None] * rights[..., None, :]
    # (2), term by term.
    error = gram_left * (b * right_right + gamma(roundings, dtype) * gram_right)
    if a:
        error += left_left * (a * gram_right + a * b * right_right)
    # The error is itself a sum of so many terms, each a product of up to 4 roundings.
    return Measured(value, (1 + gamma(roundings + 8, dtype)) * staged_sum(error))


def against_gradient(one: Product, two: Product, swapped: bool) -> Measured:
    """Return ⟨G₁, G₂⟩ = Σ_t l_tᵀ G₂ r_t, where G₂ has been formed.

    With the products ``p_t = l_tᵀ G₂``, off by ``γ_n ‖l_t‖‖G₂‖``, the error is at most
    ``γ_s Σ|p_tj r_tj| + γ_n R₁ ‖G₂‖``. For a look-up, p_t is a row of G₂,
    without error.
    """
    matrix = jnp.concatenate(two.gradient, 2)
    right = widened(one.factors.right)
    dtype, uses = right.dtype, right.shape[2]
    roundings = 1 + staged_sum_roundings(right.shape[1:])
    if one.is_lookup:
        # Picking columns copies less than transposing the matrix would.
        products = _picked(matrix[:, 0], one.factors.left[0], 2 if swapped else 1)
        products = jnp.swapaxes(products, 1, 2) if swapped else products
        products, longest = products[:, None], jnp.zeros_like(right[:, 0, 0, 0])
    else:
        left = jnp.concatenate([widened(piece) for piece in one.factors.left], -1)
        transposed = matrix if swapped else jnp.swapaxes(matrix, 2, 3)
        products = _contracted(left, transposed, uses)
        room = 1 + gamma(8 + sum_of_squares_roundings(matrix.shape[1:]), dtype)
        longest = (
            gamma(dot_roundings(left.shape[-1], uses), dtype)
            * room
            * (one.uses.reach * jnp.sqrt(two.squares))
        )
    terms = products * right
    error = gamma(roundings, dtype) * staged_sum(jnp.abs(terms)) + longest
    error = (1 + gamma(roundings + 8, dtype)) * jax.lax.stop_gradient(error)
    return Measured(staged_sum(terms), error)


def _picked(table: jax.Array, positions: jax.Array, axis: int) -> jax.Array:
    """Pick rows (or columns) of ``[B, n, m]``; a position beyond n picks the last."""
    nearest = jnp.minimum(positions, table.shape[axis] - 1)
    return jnp.take_along_axis(table, jnp.expand_dims(nearest, 3 - axis), axis=axis)


def _gram(one: jax.Array, two: jax.Array) -> jax.Array:
    return _contracted(widened(one), widened(two), max(one.shape[2], two.shape[2]))


def _contracted(one: jax.Array, two: jax.Array, uses: int) -> jax.Array:
    """Contract ``[B, S, T, n]`` with ``[B, S, U, n]``, in blocks of the last axis."""
    width = one.shape[-1]
    block = block_size(width, uses)
    cuts = range(0, width, block)
    if len(cuts) <= MOST_UNROLLED_BLOCKS:
        return added(
            _dots(one[..., start : start + block], two[..., start : start + block])
            for start in cuts
        )
    count = width // block

    def step(i: jax.Array, sums: jax.Array) -> jax.Array:
        cut = [
            jax.lax.dynamic_slice_in_dim(array, i * block, block, axis=3)
            for array in (one, two)
        ]
        return sums + _dots(*cut)

    rest = _dots(one[..., count * block :], two[..., count * block :])
    return jax.lax.fori_loop(0, count, step, rest)


def _dots(one: jax.Array, two: jax.Array) -> jax.Array:
    return jnp.einsum("bstn,bsun->bstu", one, two, precision=HIGHEST)
