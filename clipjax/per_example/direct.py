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
    scaled = weighted(gradient, weights)
    return jnp.tensordot(jnp.ones_like(weights), scaled, 1, precision=HIGHEST)


def weighted(array: jax.Array, weights: jax.Array) -> jax.Array:
    """Scales by example, in float32 or wider; NaN times a weight of 0 is 0."""
    # Without axes of one, so that XLA finds what is alike, and makes it once.
    flat = array.reshape(
        [size for i, size in enumerate(array.shape) if i == 0 or size > 1]
    )
    beside = weights.reshape(-1, *[1] * (flat.ndim - 1))
    chosen = widened(jnp.where(beside != 0, flat, 0))
    return (chosen * beside.astype(chosen.dtype)).reshape(array.shape)


def widened(array: jax.Array) -> jax.Array:
    """Casts to float32, or leaves what is wider."""
    is_narrow = jnp.finfo(array.dtype).bits < 32
    return array.astype(jnp.float32) if is_narrow else array
