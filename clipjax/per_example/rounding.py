"""How much too small rounding can have made a squared norm that is a sum of products.

Its terms may cancel, and squares of what is small underflow where the product with
something large does not. A norm that is too large is clipped to less than it could be;
one that is too small would let an example through.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .direct import widened

# Beyond this many times what rounding can have done, a square is good as it is.
MARGIN = 16


class Reach(NamedTuple):
    """What rounding can have done to the norm of a sum of gradients of single uses.

    Attributes:
        length: the sum of their lengths, of shape ``[B]``: no norm is beyond it.
        flushed: the root of what squares and their products lost by underflow.
        terms: how many terms are added up for an inner product.
    """

    length: jax.Array
    flushed: jax.Array
    terms: int = 0

    def __add__(self, other: Reach) -> Reach:  # type: ignore[override]
        """Takes other gradients of the same parameter in."""
        length, flushed = self.length + other.length, self.flushed + other.flushed
        return Reach(length, flushed, max(self.terms, other.terms))


def reach_of(left: Sequence[jax.Array] | None, right: jax.Array) -> Reach:
    """Sums up over the uses ``[B, S, T]`` of a product.

    Args:
        left: ``[B, S, T, n]``, in pieces along n; None for rows of the identity.
        right: ``[B, S, T, m]``.
    """
    left, right = jax.lax.stop_gradient((left, right))
    tiny = jnp.finfo(widened(right).dtype).tiny
    rights, columns = _lengths([right]), right.shape[-1]
    if left is None:
        lefts, rows = (rights > 0).astype(rights.dtype), 0
    else:
        lefts, rows = _lengths(left), sum(piece.shape[-1] for piece in left)
    used = (lefts > 0) & (rights > 0)
    total = lambda part: jnp.sum(jnp.where(used, part, 0), axis=(1, 2))  # noqa: E731
    lost = [
        rows**0.5 * total(rights),
        columns**0.5 * total(lefts),
        total(jnp.ones_like(rights)),
    ]
    flushed = tiny**0.5 * functools.reduce(jnp.hypot, lost)
    return Reach(total(lefts * rights), flushed, rows + columns)


def _lengths(pieces: Sequence[jax.Array]) -> jax.Array:
    """Gives no less than the lengths of rows, and zero for rows of zeros only."""
    wide = [widened(piece) for piece in pieces]
    size = sum(piece.shape[-1] for piece in wide)
    squares = sum(jnp.sum(jnp.square(piece), -1) for piece in wide)
    sums = sum(jnp.sum(jnp.abs(piece), -1) for piece in wide)
    return jnp.minimum(sums, jnp.sqrt(squares + size * jnp.finfo(wide[0].dtype).tiny))


def safe_square(square: jax.Array, reach: Reach) -> jax.Array:
    """Lets no square be less than it can be, where rounding is of its size."""
    rounding = jnp.finfo(square.dtype).eps * (2 + reach.terms**0.5)
    longest = jnp.square(reach.length)
    slack = rounding * longest + jnp.square(reach.flushed)
    lifted = jnp.minimum(jnp.maximum(square, 0) + slack, longest)
    return jnp.where(square < MARGIN * slack, lifted, square)
