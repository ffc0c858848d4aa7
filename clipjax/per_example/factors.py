"""Norms and weighted sums of gradients that are products, without making them."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .direct import HIGHEST, dense_squares, widened
from .layouts import Factors, Layout, Lookup, layout_of
from .rounding import Reach, reach_of, safe_square
from .views import Site

Pieces = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Product:
    """The gradients of the examples at a site, as products.

    Attributes:
        layout: how the site was read; the first, where several are taken as one.
        factors: what was read there.
        read: the arrays that hold that.
        gradient: the gradients themselves, ``[B, S, n, m]`` in pieces along n, where
            they were made after all; those of examples that are not finite are zero.
        squares: where they were made, ‖G‖².
    """

    layout: Layout
    factors: Factors
    read: Pieces
    gradient: Pieces = ()
    squares: jax.Array | None = None

    @property
    def site(self) -> Site:
        """The site."""
        return self.layout.site

    @property
    def is_lookup(self) -> bool:
        """Whether ``left`` holds rows that were looked up."""
        return isinstance(self.layout, Lookup)

    @property
    def form(self) -> str:
        """How the norm is found."""
        if self.is_lookup:
            return "by equal rows"
        if self.gradient:
            return "from gradients made for norm and sum"
        return "by Gram matrices" if self.uses_gram else "from gradients made for norm"

    @property
    def uses_gram(self) -> bool:
        """Whether the factors' Gram matrices are smaller than the gradient."""
        uses, rows, columns = _sizes(self.factors)
        return 2 * uses * uses < rows * columns

    @property
    def reach(self) -> Reach:
        """How far rounding reaches where the norm is found by Gram matrices."""
        left = None if self.is_lookup else self.factors.left
        return reach_of(left, self.factors.right)

    def weighted(self, weights: jax.Array) -> jax.Array:
        """Sums the gradients with weights, arranged as the view."""
        if not self.gradient:
            return self.layout.write(self.factors, weights)
        sums = [
            jnp.tensordot(weights.astype(piece.dtype), piece, 1, precision=HIGHEST)
            for piece in self.gradient
        ]
        return self.layout.unsort(jnp.concatenate(sums, axis=1))


def product_of(
    sites: Sequence[Site], records: Sequence[Any], cotangents: Sequence[jax.Array]
) -> Product:
    """Sorts what was read at sites that are arranged alike.

    Where that is no larger than its factors, and cheaper than their Gram matrices, the
    gradient of each example is made after all, once for its norm and the sum.
    """
    layout, *others = map(layout_of, sites)
    if layout.site.kind != "lookup":
        records = [_floating(*read) for read in zip(records, cotangents, strict=True)]
    factors = layout.read(records[0], cotangents[0])
    for other, *read in zip(others, records[1:], cotangents[1:], strict=True):
        factors = factors.joined(other.read(*read))
    read = (*records, *cotangents)
    product = Product(layout, factors, read)
    if product.is_lookup:
        return product
    uses, rows, columns = _sizes(factors)
    is_small = rows * columns <= 2 * uses * (rows + columns)
    if not is_small or uses * uses * (rows + columns) <= 2 * rows * columns:
        return product
    # A weight of zero does not undo NaN. To leave it out here, where the factors are
    # copied anyway, saves a copy of the gradient. By Cauchy and Schwarz, no entry of
    # the gradient is beyond the product of the factors' norms.
    sizes = added(map(dense_squares, read))
    is_finite = jnp.isfinite(sizes)
    keep = lambda part: jnp.where(is_finite[:, None, None, None], part, 0)  # noqa: E731
    right = keep(factors.right)
    gradient = tuple(_gradient(keep(piece), right) for piece in factors.left)
    squares = jnp.where(is_finite, added(map(dense_squares, gradient)), sizes)
    return Product(layout, factors, read, gradient, squares)


def _floating(record: jax.Array, cotangent: jax.Array) -> jax.Array:
    """Casts integers, which some products take with floats."""
    is_floating = jnp.issubdtype(record.dtype, jnp.inexact)
    return record if is_floating else record.astype(widened(cotangent).dtype)


def squared_norm(product: Product) -> jax.Array:
    """Gives ‖G‖² of each example, the cheaper way."""
    factors = product.factors
    if product.squares is not None:
        return product.squares
    if product.is_lookup or product.uses_gram:
        return safe_square(inner(product, product), product.reach)
    pieces = (_gradient(piece, factors.right) for piece in factors.left)
    return added(map(dense_squares, pieces))


def inner(one: Product, two: Product, swapped: bool = False) -> jax.Array:
    """Gives ⟨G₁, G₂⟩ of each example, by Gram matrices of the uses.

    Args:
        one: a product.
        two: another, of the same arrangement of the same parameter.
        swapped: whether the second's arrangement is the first's transposed.
    """
    if two.is_lookup and not one.is_lookup:
        return inner(two, one, swapped)
    if one.gradient and two.gradient and not swapped:
        pairs = _paired(one.gradient, two.gradient, 2)
        return added(jnp.sum(first * second, (1, 2, 3)) for first, second in pairs)
    left, right = two.factors.left, two.factors.right
    if swapped:
        left, right = (right,), jnp.concatenate(left, -1)
    gram = _gram(one.factors.right, right)
    if one.is_lookup and two.is_lookup:
        rows, others = one.factors.left[0], left[0]
        same = rows[:, :, None] == others[:, None, :]
        return jnp.sum(jnp.where(same, gram[:, 0], 0), (1, 2))
    if one.is_lookup:
        columns = jnp.swapaxes(jnp.concatenate(left, -1)[:, 0], 1, 2)
        rows = jnp.minimum(one.factors.left[0], columns.shape[1] - 1)[:, :, None]
        picked = widened(jnp.take_along_axis(columns, rows, axis=1))
        return jnp.sum(picked * gram[:, 0], axis=(1, 2))
    lefts = added(_gram(*pair) for pair in _paired(one.factors.left, left, 3))
    return jnp.sum(lefts * gram, axis=(1, 2, 3))


def added(terms: Iterable[Any]) -> Any:
    """Sums arrays up."""
    return functools.reduce(operator.add, terms)


def _paired(one: Pieces, two: Pieces, axis: int) -> Iterator[tuple[jax.Array, ...]]:
    """Pairs the pieces of two sites, joined where they were cut differently."""
    if [piece.shape[axis] for piece in one] != [piece.shape[axis] for piece in two]:
        one, two = ((jnp.concatenate(pieces, axis),) for pieces in (one, two))
    return zip(one, two, strict=True)


def _sizes(factors: Factors) -> tuple[int, int, int]:
    """Gives T, n and m."""
    rows = sum(piece.shape[3] for piece in factors.left)
    return factors.right.shape[2], rows, factors.right.shape[3]


def _gradient(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(
        "bstn,bstm->bsnm", widened(left), widened(right), precision=HIGHEST
    )


def _gram(one: jax.Array, two: jax.Array) -> jax.Array:
    return jnp.einsum("bstn,bsun->bstu", widened(one), widened(two), precision=HIGHEST)
