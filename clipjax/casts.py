"""From a leaf's dtype to the one that sums are kept in, and back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .trees import NamedLeaves


def accumulation_dtype(leaves: NamedLeaves) -> Any:
    """Gives float64 where any leaf is in double precision, else float32."""
    widths = (jnp.finfo(leaf.dtype).bits for leaf in leaves.arrays.values())
    return jnp.float64 if any(width == 64 for width in widths) else jnp.float32


def widen(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Casts a leaf to the accumulation dtype, or to its complex counterpart."""
    if jnp.iscomplexobj(leaf):
        dtype = jnp.complex128 if dtype == jnp.float64 else jnp.complex64
    return leaf.astype(dtype)


def narrow(value: jax.Array, leaf: jax.Array) -> jax.Array:
    """Casts a result back to a leaf's dtype and weak type."""
    value = value.astype(leaf.dtype)
    if jax.typeof(leaf).weak_type:
        value = leaf.at[...].set(value)  # the way to a weak type in public JAX
    return value


def apart(tree: Any) -> Any:
    """Hides from XLA what else a tree is used for.

    XLA's CPU backend does not repeat a cast or a broadcast in front of two sums: it
    writes the result to memory for both.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        return jax.lax.optimization_barrier(tree)
    return tree
