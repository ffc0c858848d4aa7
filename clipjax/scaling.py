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

from .floats import reciprocal_power_of_two, split


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


def _remainder(length: jax.Array, factor: jax.Array, norm: jax.Array) -> jax.Array:
    """Gives ``length - factor · norm`` without rounding, by Dekker's product."""
    length, factor, norm = map(jax.lax.stop_gradient, (length, factor, norm))
    half = jnp.finfo(norm.dtype).nmant // 2 + 1  # products of halves are exact
    factor_high, factor_low = split(factor, half)
    norm_high, norm_low = split(norm, half)
    rest = length - factor_high * norm_high
    rest = rest - factor_high * norm_low
    rest = rest - factor_low * norm_high
    return rest - factor_low * norm_low
