"""Bounds on the share of an example in the sum, including all rounding errors.

Both the norm, from the parts of `clipjax.per_example.gram`, and the weighted sum, which
is computed again from the factors, are rounded:

    ĉ = fl(Σ_t fl(w l_t) r_tᵀ),  ‖ĉ - w G‖ ≤ γ_k w R,  R = Σ_t ‖l_t‖‖r_t‖,         (3)

with k = T + P + 2 roundings for T uses and P sites of the parameter. It is T, not B T:
what other examples add is counted for them, and adding zeros is exact. With
Ŝ and E of (1) and (2) for each parameter,

    N̄² = Σ (√min(Ŝ + E, R²) + γ_k R)²,  w = rule(N̄, C - f) / N̄                    (4)

gives ``‖ĉ‖ ≤ w (‖G‖ + γ_k R) + f ≤ rule(N̄, C - f) + f ≤ C`` for each bounded rule,
where f is what underflow can add.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .factors import Product, added
from .gram import Measured, inner, squared_norm
from .rounding import (
    gamma,
    root,
    staged_sum,
    staged_sum_roundings,
    sum_of_squares,
    sum_of_squares_roundings,
    tiny,
)

# A square larger than its rounding error by this factor is reported unchanged.
MARGIN = 16


class Bounded(NamedTuple):
    """The squared norm of a parameter's gradient, for each example.

    Attributes:
        square: the squared norm to report; see `PerExample`.
        bound: no less than the squared norm of an example's share of the sum.
        underflow: what underflow can add to that share.
    """

    square: jax.Array
    bound: jax.Array
    underflow: jax.Array


def of_gradients(gradient: jax.Array) -> Bounded:
    """Bound the share of each example from its whole gradient, ``[B, ...]``."""
    square = sum_of_squares(gradient)
    error = gamma(sum_of_squares_roundings(gradient.shape[1:]), square.dtype)
    measured = Measured(square, error * jax.lax.stop_gradient(square))
    return _of_one_gradient(measured, math.prod(gradient.shape[1:]))


def of_parameter(
    products: Mapping[int, Product], pairs: Mapping[tuple[int, int], bool]
) -> Bounded:
    """Bound the share of one parameter, whose gradient is a sum of products.

    Products without a common pair belong to different entries, such as layers that are
    slices of one parameter, and add up like the squares of different parameters.

    Args:
        products: those of the parameter, by position.
        pairs: pairs of products of the same entries, and whether the second is arranged
            as the transpose of the first.
    """
    meeting = {i: {i} for i in products}
    for i, j in pairs:
        if i in meeting and j in meeting:
            meeting[i] |= meeting[j]
            meeting |= dict.fromkeys(meeting[i], meeting[i])
    found = []
    for members in {min(members): members for members in meeting.values()}.values():
        own = {pair: pairs[pair] for pair in pairs if set(pair) <= members}
        found.append(_of_products({i: products[i] for i in sorted(members)}, own))
    return Bounded(*map(added, zip(*found, strict=True)))


def _of_products(
    products: Mapping[int, Product], pairs: Mapping[tuple[int, int], bool]
) -> Bounded:
    """Bound the sum of products of the same entries."""
    first, *others = products.values()
    if first.gradient and not others:
        return _of_one_gradient(squared_norm(first), _entries(first))
    parts = [squared_norm(product) for product in products.values()]
    for (i, j), swapped in pairs.items():
        parts += [inner(products[i], products[j], swapped)] * 2
    square = added(part.value for part in parts)
    error = norm_error(parts) + jnp.square(
        added(map(_norm_underflow, products.values()))
    )
    longest = jnp.square(added(map(_reach, products.values())))
    longest *= 1 + gamma(len(products) + 2, square.dtype)
    highest = jnp.minimum(jnp.maximum(square, 0) + error, longest)
    return Bounded(
        jnp.where(square < MARGIN * error, highest, square),
        jnp.square(root(highest) + sum_error(list(products.values()))),
        added(map(_sum_underflow, products.values())),
    )


def _of_one_gradient(measured: Measured, size: int) -> Bounded:
    square, error = measured
    smallest = tiny(square.dtype)
    # A square that underflows is below tiny.
    highest = square + error + size * smallest
    # The weight multiplies each entry once, and zeros of other examples are added.
    bound = highest * (1 + gamma(2, square.dtype)) ** 2
    return Bounded(square, bound, jnp.full_like(error, 2 * smallest * size**0.5))


def norm_error(parts: Sequence[Measured]) -> jax.Array:
    """Return E of (2) for a squared norm that is a sum of parts."""
    sizes = added(jnp.abs(jax.lax.stop_gradient(part.value)) for part in parts)
    few = gamma(len(parts), sizes.dtype)
    return (1 + few) * added(part.error for part in parts) + few * sizes


def sum_error(products: Sequence[Product]) -> jax.Array:
    """Return γ_k R of (3), the error bound of the sum of products, for weight 1."""
    dtype = _reach(products[0]).dtype
    own = len(products) + 2
    return added(
        gamma(own, dtype) * _reach(product)
        if product.gradient
        else gamma(own + math.prod(product.uses.rights.shape[2:]), dtype)
        * _spread(product)
        for product in products
    )


def _spread(product: Product) -> jax.Array:
    """Return an upper bound of ‖Σ_t |l_t||r_t|ᵀ‖, which scales the sum's rounding.

    It is at most R. For look-ups, only uses of the same row are added up.
    """
    uses = product.uses
    if not product.is_lookup:
        return uses.reach
    rows, rights = product.factors.left[0], uses.rights[:, 0]
    same = rows[:, :, None] == rows[:, None, :]
    products = jnp.where(same, rights[:, :, None] * rights[:, None, :], 0)[:, None]
    room = 1 + gamma(8 + staged_sum_roundings(products.shape[1:]), rights.dtype)
    return room * root(staged_sum(products))


def _reach(product: Product) -> jax.Array:
    """Return an upper bound of the norm of the product's gradient."""
    if not product.gradient:
        return product.uses.reach
    square, error = squared_norm(product)
    return root(jax.lax.stop_gradient(square) + error)


def _norm_underflow(product: Product) -> jax.Array:
    """Return the root of the underflow error of squares and inner products."""
    if not product.gradient:
        return product.uses.norm_underflow
    # Of n m squares, and of up to n m T products with another's factors.
    lost = (2 * tiny(product.gradient[0].dtype)) ** 0.5 * _entries(product)
    return jnp.full_like(_reach(product), lost)


def _sum_underflow(product: Product) -> jax.Array:
    if not product.gradient:
        return product.uses.sum_underflow
    lost = 2 * tiny(product.gradient[0].dtype) * _entries(product) ** 0.5
    return jnp.full_like(_reach(product), lost)


def _entries(product: Product) -> int:
    return sum(math.prod(piece.shape[1:]) for piece in product.gradient)
