"""Scaling of leaves: scalar work per block, two products per entry, one rounding."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .dtypes import full_like, narrow, widen


class Multiplier(NamedTuple):
    """The factors that bring a block from its norm to its length.

    The quotient ``length / norm`` can leave the range of float32 where the result does
    not, so that both of its parts are kept. Each entry then costs two multiplications
    and no division: cheap enough for XLA to repeat them in the optimizer's loop instead
    of writing the clipped gradient to memory.

    Attributes:
        inverse: one over the norm.
        length: the norm after the clip, NaN where the norm is infinite.
        keeps: not a bit of the block changes.
    """

    inverse: jax.Array
    length: jax.Array
    keeps: jax.Array


def multiplier(norm: jax.Array, length: jax.Array) -> Multiplier:
    """Return the multiplier that brings a block from a norm to a length."""
    keeps = length == norm
    # A selection, since 1/0, and 1/tiny in a maximum, have no finite derivative.
    divisor = jax.lax.select(keeps, full_like(norm, 1.0), norm)
    length = jax.lax.select(norm < jnp.inf, length, full_like(norm, jnp.nan))
    return Multiplier(1 / divisor, length, keeps)


def shorten(leaf: jax.Array, by: Multiplier) -> jax.Array:
    """Multiply in float32 or wider, and round once to the leaf's own dtype.

    Args:
        leaf: an array of any floating-point or complex dtype.
        by: the multiplier, each part a scalar or of the leaf's rank.
    """
    wide = widen(leaf, by.length.dtype)
    product = wide * by.inverse.astype(wide.dtype) * by.length.astype(wide.dtype)
    # A selection, since a product with 1 would flush subnormal entries to zero.
    if by.keeps.ndim:  # jnp.where broadcasts on Explicit meshes, too
        return narrow(jnp.where(by.keeps, wide, product), leaf)
    return narrow(jax.lax.select_n(by.keeps, product, wide), leaf)
