"""Brings a leaf from the norms of its blocks to their new lengths.

The multiplier ``length / norm`` may leave the range of float32 where the result does
not, and rounding it costs up to an ulp of the result. So the norm is brought near one
by a power of two, and the multiplier is kept as a sum of two floats. Each entry then
costs multiplications and no division, which XLA is willing to repeat inside the loops
of the optimizer that follows, rather than write the clipped gradient to memory for it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, inline=True)  # FMA also where the caller is not compiled
def rescale(leaf: jax.Array, norm: jax.Array, length: jax.Array) -> jax.Array:
    """Multiplies a leaf by ``length / norm``, within 0.51 ulp where FMA is there.

    Args:
        leaf: float32, float64 or complex entries.
        norm: real, positive and finite, broadcasting against the leaf.
        length: real, at least 0 or NaN, of the norm's shape.
    """
    if jnp.iscomplexobj(leaf):
        parts = (rescale(part, norm, length) for part in (leaf.real, leaf.imag))
        return jax.lax.complex(*parts)
    power = reciprocal_power_of_two(norm)
    mantissa = norm * power
    factor = length / mantissa
    correction = _remainder(length, factor, mantissa) / mantissa
    # Where the remainder is out of range there is nothing left to correct.
    correction = jnp.where(jnp.isfinite(correction), correction, 0 * mantissa)
    leaf = leaf * power
    return leaf * factor + leaf * jax.lax.stop_gradient(correction)


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


def _remainder(length: jax.Array, factor: jax.Array, norm: jax.Array) -> jax.Array:
    """Gives ``length - factor · norm`` without rounding, by Dekker's product."""
    length, factor, norm = map(jax.lax.stop_gradient, (length, factor, norm))
    factor_high, factor_low = _halves(factor)
    norm_high, norm_low = _halves(norm)
    rest = length - factor_high * norm_high
    rest = rest - factor_high * norm_low
    rest = rest - factor_low * norm_high
    return rest - factor_low * norm_low


def _halves(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits the mantissa in two, so that products of halves are exact."""
    integer, mantissa_bits, _ = _layout(value.dtype)
    mask = ~((1 << (mantissa_bits // 2 + 1)) - 1)
    bits = jax.lax.bitcast_convert_type(value, integer)
    mask = jnp.asarray(mask & (2 ** (8 * integer.dtype.itemsize) - 1), integer)
    high = jax.lax.bitcast_convert_type(bits & mask, value.dtype)
    return high, value - high
