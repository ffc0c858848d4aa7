"""Per-example gradients in the form of factors: what went into a site, what came back.

The gradient of one example at a site is ``G = Σ_t l_t r_tᵀ``, with a use t of the
parameter for each token, say. See `clipjax.per_example.layouts` for the arrays.
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
        layout: how the site was read; the first one, where several sites are joined.
        factors: what was read there.
        read: the arrays that hold the factors.
        gradient: the gradients G themselves, ``[B, S, n, m]`` in pieces along n, where
            they are smaller than the factors; zero for examples that are not finite.
        sizes: with those, ``[B]``, NaN or inf for examples that are not finite.
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
        """How the norm is found."""
        if self.is_lookup:
            return "by equal rows"
        return (
            "from gradients made for norm and sum"
            if self.gradient
            else ("by Gram matrices")
        )

    @functools.cached_property
    def uses(self) -> Uses:
        """The lengths of the factors, use by use."""
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
            other: a product whose gradients are there, as this one's are.
            swapped: whether it is arranged as this one is, transposed.
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
    """Sort what was read at sites that are arranged alike, one after the other."""
    layouts = [layout_of(site) for site in sites]
    if sites[0].kind != "lookup":
        records = list(map(_floating, records, cotangents))
    factors = [
        layout.read(record, cotangent)
        for layout, record, cotangent in zip(layouts, records, cotangents, strict=True)
    ]
    return functools.reduce(Factors.joined, factors)


def makes_gradient(sites: Sequence[Site], factors: Factors) -> bool:
    """Whether to compute each example's gradient, and keep it instead of its factors.

    It is computed where it is no larger than its factors, and costs less than their
    Gram matrices: T² (n + m) products for the two against T n m for the gradient, of
    which the forms by factors need another T n m for the sum.

    Args:
        sites: those of a product.
        factors: what was read there, or its shapes.
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
    # A weight of zero does not undo NaN. Leaving NaN out here, where the factors are
    # copied anyway, saves a copy of the gradient. By Cauchy and Schwarz, no entry of
    # the gradient is beyond the product of the factors' norms.
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
    """Add up the gradients of a parameter that are there, so that no pair is left.

    A pair ⟨G₁, G₂⟩ of gradients that cancel cannot be known from the gradients to more
    than their rounding; the norm of their sum can.

    Args:
        products: those of all parameters.
        pairs: by position, the pairs whose entries meet, and whether the second is
            arranged as the first, transposed.

    Returns:
        The products by position, and the pairs that are left.
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
    """Cast integers, which some products take with floats."""
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
