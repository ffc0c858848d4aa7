"""The leaves of a tree as one real vector, in the accumulation dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.dtypes import narrow, safe_divisor, scaling_power, widen
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
        TypeError: they are not real numbers.
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


def flat(leaves: Leaves, arrays: Sequence[jax.Array]) -> jax.Array:
    """Join arrays as one vector, in the accumulation dtype of the leaves.

    One vector compiles faster than many leaves: on XLA:CPU a secant of a network with
    six leaves takes 0.8 s, where separate sums for each leaf took 2.5 s.
    """
    return jnp.concatenate([widen(array, leaves.dtype).ravel() for array in arrays])


def unflat(leaves: Leaves, vector: jax.Array) -> list[jax.Array]:
    """Cut a vector into arrays of the shapes and dtypes of the leaves."""
    ends = np.cumsum([leaf.size for leaf in leaves.arrays])
    parts = jnp.split(vector, ends[:-1])
    return leaves.map(lambda leaf, part: narrow(part.reshape(leaf.shape), leaf), parts)


def length(vector: jax.Array) -> jax.Array:
    """Return the L2 norm of an array of any magnitude; NaN and inf show in it."""
    power = scaling_power(jnp.max(jnp.abs(vector), initial=0))
    return jnp.sqrt(jnp.sum(jnp.square(vector * power))) / power


def unit(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return an array divided by its norm, and the norm; a zero array stays zero."""
    norm = length(vector)
    return vector / safe_divisor(norm), norm
