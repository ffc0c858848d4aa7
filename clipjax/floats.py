"""Powers of two, short mantissas and the limits of formats: exact by construction."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def _layout(dtype: jnp.dtype) -> tuple[type, int, int]:
    """Gives the integer type, the mantissa's bits and the exponent's bias."""
    info = jnp.finfo(dtype)
    return {32: jnp.uint32, 64: jnp.uint64}[info.bits], info.nmant, info.maxexp - 1


def reciprocal_power_of_two(value: jax.Array) -> jax.Array:
    """Gives a power of two that brings a positive, finite value to [1, 4).

    Below the smallest normal number, where XLA flushes to zero anyway, it is 2^126 for
    float32. It is a constant for differentiation.
    """
    integer, mantissa_bits, bias = _layout(value.dtype)
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(value), integer)
    exponent = bits >> mantissa_bits  # the sign bit is zero
    reciprocal = jnp.clip(2 * bias - exponent, 1, 2 * bias).astype(integer)
    return jax.lax.bitcast_convert_type(reciprocal << mantissa_bits, value.dtype)


def safe_scale(peak: jax.Array) -> jax.Array:
    """Replaces zero and non-finite peaks by one, for dividing by."""
    usable = (peak > 0) & (peak < jnp.inf)
    return jnp.where(usable, peak, jnp.ones_like(peak))


def scaling_power(peak: jax.Array) -> jax.Array:
    """Gives a power of two that brings what is as large as ``peak`` near one.

    To multiply by it is exact. XLA divides by a number by multiplying with its
    reciprocal, which it takes for zero if the number is beyond 2^126 in float32.
    """
    return reciprocal_power_of_two(safe_scale(peak))


def split(value: jax.Array, dropped: int) -> tuple[jax.Array, jax.Array]:
    """Splits a value in two that sum up to it, the first with a short mantissa.

    Args:
        value: float32 or float64.
        dropped: how many of the mantissa's bits the first part lacks.
    """
    integer, _, _ = _layout(value.dtype)
    bits = jax.lax.bitcast_convert_type(value, integer)
    every_bit = 2 ** (8 * integer.dtype.itemsize) - 1
    mask = jnp.asarray(every_bit - ((1 << dropped) - 1), integer)
    high = jax.lax.bitcast_convert_type(bits & mask, value.dtype)
    return high, value - high


def format_limits(dtype: Any) -> tuple[float, float]:
    """Gives the largest number of a narrow format, and the smallest above zero.

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
