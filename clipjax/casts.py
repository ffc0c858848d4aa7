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


def apart(array: jax.Array, *others: jax.Array) -> jax.Array:
    """Hides from XLA's CPU backend what else an array is used for.

    It does not repeat a cast or a broadcast in front of two sums, but writes the result
    to memory for both. Elsewhere XLA had better see, and read once for both.

    Args:
        array: what to give back.
        *others: what to tell two copies of one array apart by; any arrays that differ
            over no more devices.
    """
    if not isinstance(array, Tracer):
        return array
    return jax.lax.platform_dependent(
        (array, *others),
        cpu=lambda arrays: jax.lax.optimization_barrier(arrays)[0],
        default=lambda arrays: arrays[0],
    )
