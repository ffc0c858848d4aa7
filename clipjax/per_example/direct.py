"""Per-example gradients made one by one: the plain way, for any loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..trees import NamedLeaves

HIGHEST = jax.lax.Precision.HIGHEST


class PerExample(NamedTuple):
    """What is known of the gradients of a batch of B examples.

    Attributes:
        squares: squared norms by parameter, each of shape ``[B]``, float32.
        values: losses, of shape ``[B]``.
        aux: auxiliary outputs, with the examples in front.
        weighted_sum: gives the sum of the gradients with weights of shape ``[B]`` by
            parameter, a tree like the parameters, in float32 or wider. An example of
            weight 0 adds exactly nothing, even if its gradient is NaN or infinite.
    """

    squares: dict[str, jax.Array]
    values: jax.Array
    aux: Any
    weighted_sum: Callable[[dict[str, jax.Array]], Any]


def direct(loss: Any, params: Any, batch: Any) -> PerExample:
    """Makes the gradient of every example, by vmap.

    Args:
        loss: gives from the parameters and one example its loss and an auxiliary tree.
        params: the parameters.
        batch: a tree whose leaves have the examples along their first axis.
    """
    leaves = NamedLeaves.of(params)

    def value(arrays: dict[str, jax.Array], example: Any) -> Any:
        return loss(leaves.replace(arrays).tree(), example)

    one = jax.value_and_grad(value, has_aux=True)
    (values, aux), gradients = jax.vmap(one, in_axes=(None, 0))(leaves.arrays, batch)

    def weighted_sum(weights: dict[str, jax.Array]) -> Any:
        sums = {
            name: dense_sum(gradients[name], weights[name]) for name in leaves.arrays
        }
        return leaves.replace(sums).tree()

    squares = {name: dense_squares(gradients[name]) for name in leaves.arrays}
    return PerExample(squares, values, aux, weighted_sum)


def dense_squares(gradient: jax.Array) -> jax.Array:
    """Gives the squared norm of each example's gradient."""
    sizes = widened(jnp.abs(gradient))
    return jnp.sum(jnp.square(sizes), axis=tuple(range(1, gradient.ndim)))


def dense_sum(gradient: jax.Array, weights: jax.Array) -> jax.Array:
    """Sums gradients with weights, in float32 or wider."""
    # On CPUs, a product is several times as fast as a sum over the first axis.
    kept = finite(gradient)
    return jnp.tensordot(weights.astype(kept.dtype), kept, 1, precision=HIGHEST)


def weighted(array: jax.Array, weights: jax.Array) -> jax.Array:
    """Scales by example, in float32 or wider; what is not finite becomes zero."""
    kept = _finite(_flat(array))
    beside = weights.reshape(-1, *[1] * (kept.ndim - 1))
    return (kept * beside.astype(kept.dtype)).reshape(array.shape)


def finite(array: jax.Array) -> jax.Array:
    """Puts zero for what is not finite, in float32 or wider.

    An example with NaN or inf has weight 0, and a product with that would keep them. To
    tell entry by entry needs no weights, so that XLA does it where the array is made.
    """
    return _finite(_flat(array)).reshape(array.shape)


def _finite(array: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(array), widened(array), 0)


def _flat(array: jax.Array) -> jax.Array:
    """Drops axes of one, so that XLA finds what is alike, and makes it once."""
    return array.reshape([n for i, n in enumerate(array.shape) if i == 0 or n != 1])


def widened(array: jax.Array) -> jax.Array:
    """Casts to float32, or leaves what is wider."""
    is_narrow = jnp.finfo(array.dtype).bits < 32
    return array.astype(jnp.float32) if is_narrow else array
