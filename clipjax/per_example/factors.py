"""Per-example gradients in factored form: the operands and cotangents of a site.

The gradient of one example at a site is ``G = Σ_t l_t r_tᵀ``, where t counts the uses
of the parameter, such as tokens. `clipjax.per_example.layouts` defines the arrays.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .barriers import read_once
from .direct import HIGHEST, widened
from .layouts import Factors, Layout, Lookup, layout_of
from .rounding import Uses, sum_of_squares, uses_of
from .views import Site

Pieces = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Product:
    """The gradients of the examples at a site, as products.

    Attributes:
        layout: the site's layout; the first site's, where several are joined.
        factors: the factors.
        read: the original operands and cotangents, which hold the factors' entries.
        gradient: the gradients G themselves, ``[B, S, n, m]`` in pieces along n, if
            computing them is cheaper; zero for examples that are not finite. Otherwise
            empty.
        sizes: set together with ``gradient``: ``[B]``, NaN or inf for examples that are
            not finite.
    """

    layout: Layout
    factors: Factors
    read: Pieces
    gradient: Pieces = ()
    sizes: Any = None

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
        """How the norm is computed, in words, for `describe`."""
        if self.is_lookup:
            return "by equal rows"
        return (
            "from gradients made for norm and sum"
            if self.gradient
            else ("by Gram matrices")
        )

    @functools.cached_property
    def uses(self) -> Uses:
        """The norms of the factors, use by use."""
        left = None if self.is_lookup else self.factors.left
        return uses_of(left, self.factors.right)

    @property
    def squares(self) -> jax.Array:
        """‖G‖² from the gradients themselves; NaN or inf where not finite."""
        squares = added(map(sum_of_squares, self.gradient))
        return jnp.where(jnp.isfinite(self.sizes), squares, self.sizes)

    def plus(self, other: Product, swapped: bool) -> Product:
        """Add another gradient of the same parameter to this one.

        Args:
            other: a product that has its ``gradient``, as this one has.
            swapped: whether its arrangement is the transpose of this one's.
        """
        more = other.gradient
        if swapped:
            more = (jnp.swapaxes(jnp.concatenate(more, 2), 2, 3),)
        return dataclasses.replace(
            self,
            read=(*self.read, *other.read),
            gradient=tuple(map(_finite_sum, *paired(self.gradient, more, 2))),
            sizes=self.sizes + other.sizes,
        )

    def weighted(self, weights: jax.Array) -> jax.Array:
        """Sum the gradients with weights, arranged as the view."""
        if not self.gradient:
            return self.layout.write(self.factors, weights)
        sums = [
            jnp.tensordot(weights.astype(piece.dtype), piece, 1, precision=HIGHEST)
            for piece in self.gradient
        ]
        return self.layout.unsort(jnp.concatenate(sums, axis=1))


def read_factors(
    sites: Sequence[Site], records: Sequence[Any], cotangents: Sequence[jax.Array]
) -> Factors:
    """Return the factors of sites with one arrangement, use after use.

    Args:
        sites: the sites.
        records: the other operand of each.
        cotangents: the cotangent of each.
    """
    layouts = [layout_of(site) for site in sites]
    if sites[0].kind != "lookup":
        records = list(map(_floating, records, cotangents))
    factors = [
        layout.read(record, cotangent)
        for layout, record, cotangent in zip(layouts, records, cotangents, strict=True)
    ]
    return functools.reduce(Factors.joined, factors)


def makes_gradient(sites: Sequence[Site], factors: Factors) -> bool:
    """Return whether to compute each example's gradient, and keep it, not its factors.

    The gradient is computed where it is no larger than its factors and costs less than
    their Gram matrices. The two Gram matrices take T² (n + m) products, and the sum
    then another T n m; the gradient takes T n m.

    Args:
        sites: the sites of a product.
        factors: their factors, or the factors' shapes.
    """
    if sites[0].kind == "lookup":
        return False
    uses, rows, columns = _sizes(factors)
    if 2 * uses * uses >= rows * columns:
        return True
    is_small = rows * columns <= 2 * uses * (rows + columns)
    return is_small and uses * uses * (rows + columns) > 2 * rows * columns


def product_of(
    sites: Sequence[Site], records: Sequence[Any], cotangents: Sequence[jax.Array]
) -> Product:
    """Return the gradients at sites that are arranged alike, as a product."""
    factors = read_factors(sites, records, cotangents)
    read = (*records, *cotangents)
    product = Product(layout_of(sites[0]), factors, read)
    if not makes_gradient(sites, factors):
        return product
    # An example that is not finite gets the weight zero, but zero times NaN is NaN. Its
    # entries are replaced here, where the factors are copied anyway, which saves a copy
    # of the gradient. If the squares of the factors are finite, so is the gradient: by
    # Cauchy-Schwarz no entry is larger than the product of the factors' norms.
    sizes = added(map(_plain_sum_of_squares, read))
    is_finite = jnp.isfinite(sizes)[:, None, None, None]
    right = jnp.where(is_finite, factors.right, 0)
    gradient = tuple(
        _gradient(jnp.where(is_finite, piece, 0), right) for piece in factors.left
    )
    return dataclasses.replace(product, gradient=gradient, sizes=sizes)


def joined(
    products: Sequence[Product], pairs: Mapping[tuple[int, int], bool]
) -> tuple[dict[int, Product], dict[tuple[int, int], bool]]:
    """Add the gradients of one parameter, where they are computed.

    Adding them replaces the cross term 2⟨G₁, G₂⟩, whose error is the rounding of the
    gradients, larger than the norm itself where they cancel. The norm of their sum has
    a small relative error there, too.

    Args:
        products: the products of all parameters.
        pairs: the pairs of products with a cross term; see `Plan.pairs`.

    Returns:
        The remaining products by position, and the remaining pairs.
    """
    left = dict(enumerate(products))
    for (i, j), swapped in pairs.items():
        if i in left and j in left and left[i].gradient and left[j].gradient:
            left[i] = left[i].plus(left.pop(j), swapped)
    for i, product in left.items():
        if product.gradient:
            gradient, sizes = read_once((product.gradient, product.sizes))
            left[i] = dataclasses.replace(product, gradient=gradient, sizes=sizes)
    return left, {pair: pairs[pair] for pair in pairs if set(pair) <= set(left)}


def added(terms: Iterable[Any]) -> Any:
    """Return the sum of some arrays."""
    return functools.reduce(operator.add, terms)


def paired(one: Pieces, two: Pieces, axis: int) -> tuple[Pieces, Pieces]:
    """Return the pieces of two sites, each joined where they were cut differently."""
    if [piece.shape[axis] for piece in one] == [piece.shape[axis] for piece in two]:
        return one, two
    return (jnp.concatenate(one, axis),), (jnp.concatenate(two, axis),)


def _floating(record: jax.Array, cotangent: jax.Array) -> jax.Array:
    """Cast an operand of integers, which XLA multiplies with floats."""
    is_floating = jnp.issubdtype(record.dtype, jnp.inexact)
    return record if is_floating else record.astype(widened(cotangent).dtype)


def _finite_sum(one: jax.Array, two: jax.Array) -> jax.Array:
    """Add, and replace overflow by zero: that example's ``sizes`` overflow as well."""
    total = one + two
    return jnp.where(jnp.isfinite(total), total, 0)


def _sizes(factors: Factors) -> tuple[int, int, int]:
    """Return T, n and m."""
    rows = sum(piece.shape[3] for piece in factors.left)
    return factors.right.shape[2], rows, factors.right.shape[3]


def _plain_sum_of_squares(array: jax.Array) -> jax.Array:
    is_floating = jnp.issubdtype(array.dtype, jnp.inexact)
    wide = widened(array) if is_floating else array.astype(jnp.float32)
    return jnp.sum(jnp.square(wide), axis=tuple(range(1, array.ndim)))


def _gradient(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(
        "bstn,bstm->bsnm", widened(left), widened(right), precision=HIGHEST
    )
