"""The leaves of a tree as one real vector: sums in the accumulation dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.dtypes import safe_divisor, scaling_power
from ..core.trees import Leaves


def real_leaves(name: str, tree: Any) -> Leaves:
    """Return the floating-point leaves of a tree.

    Raises:
        TypeError: a leaf is complex.
        ValueError: there is none.
    """
    leaves = Leaves.of(tree)
    if not leaves.arrays:
        raise ValueError(f"{name} must have a floating-point leaf, got none")
    for path, leaf in leaves.by_name.items():
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(f"{name} must be real, got {leaf.dtype} at {path!r}")
    return leaves


def real_array(name: str, values: Any) -> jax.Array:
    """Return measured numbers as an array of floats.

    Raises:
        TypeError: they are no real numbers.
    """
    try:
        array = jnp.asarray(values)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must be an array of real numbers, got {values!r}"
        ) from None
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(float)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be an array of real numbers, got dtype {array.dtype}"
        )
    return array


def dot(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> jax.Array:
    """Return the scalar product of two vectors."""
    products = [jnp.sum(a * b) for a, b in zip(one, other, strict=True)]
    return jnp.sum(jnp.stack(products))


def length(vector: Sequence[jax.Array]) -> jax.Array:
    """Return the L2 norm of a vector of any magnitude; NaN and inf show in it."""
    peaks = [jnp.max(jnp.abs(part), initial=0) for part in vector]
    power = scaling_power(jnp.max(jnp.stack(peaks)))
    scaled = [part * power for part in vector]
    return jnp.sqrt(dot(scaled, scaled)) / power


def unit(vector: Sequence[jax.Array], norm: jax.Array) -> list[jax.Array]:
    """Divide a vector by its norm; a zero vector stays zero."""
    divisor = safe_divisor(norm)
    return [part / divisor for part in vector]


def random_direction(key: jax.Array, leaves: Leaves) -> list[jax.Array]:
    """Return a unit vector, uniformly distributed over the sphere."""
    keys = jax.random.split(key, len(leaves.arrays))
    normal = [
        jax.random.normal(each, leaf.shape, leaves.dtype)
        for each, leaf in zip(keys, leaves.arrays, strict=True)
    ]
    return unit(normal, length(normal))
