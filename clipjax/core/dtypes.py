"""Dtypes: precision of sums, rounding of results, scaling by powers of two."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..jax_internals import is_weakly_typed


def accumulation_dtype(arrays: Iterable[Any]) -> Any:
    """Return float64 if any array is in double precision, else float32."""
    is_double = any(jnp.finfo(array.dtype).bits == 64 for array in arrays)
    return jnp.float64 if is_double else jnp.float32


def widen(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Cast a leaf to the accumulation dtype, or to its complex counterpart."""
    if jnp.iscomplexobj(leaf):
        dtype = jnp.complex128 if dtype == jnp.float64 else jnp.complex64
    return leaf.astype(dtype)


def narrow(value: jax.Array, leaf: jax.Array) -> jax.Array:
    """Round a result to a leaf's dtype, keeping the leaf's weak type."""
    value = value.astype(leaf.dtype)
    if is_weakly_typed(leaf):
        # Public JAX has no cast to a weak type. full_like keeps the weak type of its
        # first argument, for a scalar fill value: hence one vmap per axis.
        weaken = jax.lax.full_like
        for _ in range(leaf.ndim):
            weaken = jax.vmap(weaken)
        value = weaken(leaf, value)
    return value


def full_like(array: jax.Array, value: float) -> Any:
    """Return a constant of an array's shape and dtype."""
    # A scalar stays a NumPy constant, which takes no equation in the jaxpr.
    if not array.ndim:
        return np.asarray(value, array.dtype)
    return jnp.full_like(array, value)


def inverse_power(value: jax.Array) -> jax.Array:
    """Return the power of two that brings a positive, finite value to [1, 4).

    Multiplying by a power of two is exact; a division would not be, since XLA replaces
    it by a product with the rounded reciprocal. For 0 the result is the largest such
    power, for inf and NaN the smallest. Its derivative is zero.
    """
    info = jnp.finfo(value.dtype)
    integer = {32: jnp.int32, 64: jnp.int64}[info.bits]
    largest_exponent = 2 * (info.maxexp - 1)
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(value), integer)
    exponent = largest_exponent - (bits >> info.nmant)  # the sign bit is zero
    exponent = jnp.clip(exponent, 1, largest_exponent).astype(integer)
    return jax.lax.bitcast_convert_type(exponent << info.nmant, value.dtype)


def scaling_power(peak: jax.Array) -> jax.Array:
    """Return the power of two that scales numbers up to ``peak`` to at most 4.

    The power is 1 for a peak that is zero, infinite or NaN.
    """
    return inverse_power(safe_divisor(peak))


def safe_divisor(value: jax.Array) -> jax.Array:
    """Return the value where it is positive and finite, else 1, to divide by."""
    usable = (value > 0) & (value < jnp.inf)
    return jnp.where(usable, value, jnp.ones_like(value))


def format_limits(dtype: Any) -> tuple[float, float]:
    """Return the largest number of a narrow format, and the smallest above zero.

    Args:
        dtype: a signed integer or floating format of at most 16 bits. Integers are
            taken to be symmetric: the lowest number of int8 is -127.

    Raises:
        TypeError: dtype is none of those.
    """
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is not None and jnp.issubdtype(known, jnp.signedinteger):
        if jnp.iinfo(known).bits <= 16:
            return float(jnp.iinfo(known).max), 1.0
    elif known is not None and jnp.issubdtype(known, jnp.floating):
        info = jnp.finfo(known)
        if info.bits <= 16 and known != jnp.float8_e8m0fnu:
            return float(info.max), float(info.smallest_subnormal)
    raise TypeError(
        "dtype must be a signed integer or floating dtype of at most 16 bits, such as "
        f"jnp.int8 or jnp.float8_e4m3fn, got {dtype!r}"
    )
