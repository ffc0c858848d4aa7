"""The results that every method returns, and sums of per-example gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST


class PerExample(NamedTuple):
    """Measurements of the gradients of a batch of B examples.

    Attributes:
        squares: squared norms by parameter, each of shape ``[B]``, float32, for the
            report.
        bounds: by parameter, an upper bound on the squared norm that ``weighted_sum``
            adds for an example of weight 1, including all rounding. Examples are
            clipped by these bounds.
        underflow: by parameter, how much an example's share can exceed weight times
            bound, since XLA flushes numbers below the normal range to zero.
        values: losses, of shape ``[B]``.
        aux: auxiliary outputs, with the examples as first axis.
        weighted_sum: maps weights by parameter, each of shape ``[B]``, to the weighted
            sum of gradients, a tree like the parameters, in float32 or wider. An
            example of weight 0 adds exactly nothing, even if its gradient is NaN or
            infinite.
    """

    squares: dict[str, jax.Array]
    bounds: dict[str, jax.Array]
    underflow: dict[str, jax.Array]
    values: jax.Array
    aux: Any
    weighted_sum: Callable[[dict[str, jax.Array]], Any]


def dense_sum(gradient: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the sum of gradients with weights, in float32 or wider."""
    # On CPUs, a matrix product is several times as fast as a sum over the first axis.
    kept = finite(gradient)
    return jnp.tensordot(weights.astype(kept.dtype), kept, 1, precision=HIGHEST)


def weighted(array: jax.Array, weights: jax.Array) -> jax.Array:
    """Scale each example, in float32 or wider; non-finite entries become zero."""
    kept = _finite(without_unit_axes(array))
    beside = weights.reshape(-1, *[1] * (kept.ndim - 1))
    return (kept * beside.astype(kept.dtype)).reshape(array.shape)


def finite(array: jax.Array) -> jax.Array:
    """Replace non-finite entries by zero, in float32 or wider.

    An example with NaN or inf has weight 0, but 0 times NaN is NaN. A selection by
    entry does not depend on the weights, so that XLA fuses it with the computation of
    the array.
    """
    return _finite(without_unit_axes(array)).reshape(array.shape)


def _finite(array: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(array), widened(array), 0)


def without_unit_axes(array: jax.Array) -> jax.Array:
    """Drop axes of length 1, so that XLA recognizes equal arrays and copies fewer.

    Layouts that differed only in such axes cost a copy of the gradients of an LSTM,
    40 % of its temporary buffers.
    """
    return array.reshape([n for i, n in enumerate(array.shape) if i == 0 or n != 1])


def widened(array: jax.Array) -> jax.Array:
    """Cast to float32, unless the array is wider."""
    is_narrow = jnp.finfo(array.dtype).bits < 32
    return array.astype(jnp.float32) if is_narrow else array
