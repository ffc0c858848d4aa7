"""Sums and maxima of what is computed on the fly, which no backend writes down first.

XLA's CPU backend leaves sums and maxima of float32 to a library, and writes to memory
whatever it selects, compares or clamps before. Sums of complex numbers it makes itself,
and so it does maxima that it does not know for what they are; but not of more than
32 entries at a time, nor of an array that is split over devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .order import IS_REMADE

Axes = tuple[int, ...] | None
Reduce = Callable[[jax.Array, Axes], jax.Array]

# The library takes arrays from about this size on.
LARGE = 1 << 14
# As many entries are added up one after another: few enough to stay exact to 1e-6.
ROW = (4, 32)


def total(array: jax.Array, axes: Axes = None, is_computed: bool = True) -> jax.Array:
    """Sums up over ``axes`` (None: all of them), keeping them as 1."""
    by_rows = _row_totals if is_computed else None
    return _reduced(_plain_total, by_rows, array, axes)


def largest(array: jax.Array, axes: Axes = None, is_computed: bool = True) -> jax.Array:
    """Gives the largest of entries of which none is negative, 0 of none; NaN stays."""
    by_rows = _row_maxima if is_computed else None
    return _reduced(_plain_largest, by_rows, array, axes)


def _plain_total(array: jax.Array, axes: Axes) -> jax.Array:
    return jnp.sum(array, axis=axes, keepdims=axes is not None)


def _plain_largest(array: jax.Array, axes: Axes) -> jax.Array:
    return jnp.max(array, axis=axes, keepdims=axes is not None, initial=0)


def _row_totals(rows: jax.Array) -> jax.Array:
    parts = jax.lax.complex(rows, jnp.zeros_like(rows))
    return jnp.real(jnp.sum(parts, axis=(-2, -1)))


def _row_maxima(rows: jax.Array) -> jax.Array:
    def larger(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.abs(left), jnp.abs(right))

    zero = jnp.zeros((), rows.dtype)
    return jax.lax.reduce(rows, zero, larger, (rows.ndim - 2, rows.ndim - 1))


def _reduced(
    plainly: Reduce,
    by_rows: Callable[[jax.Array], jax.Array] | None,
    array: jax.Array,
    axes: Axes,
) -> jax.Array:
    if by_rows is None:
        return plainly(array, axes)
    mesh = jax.sharding.get_abstract_mesh()
    is_own = set(mesh.axis_names) == set(mesh.manual_axes)
    reduced = tuple(range(array.ndim)) if axes is None else axes
    kept = array.ndim - len(reduced)
    is_handed_on = array.size >= LARGE and array.dtype == jnp.float32
    is_inner = reduced == tuple(range(kept, array.ndim))
    if not (isinstance(array, Tracer) and is_own and is_handed_on and is_inner):
        return plainly(array, axes)

    def in_rows(array: jax.Array) -> jax.Array:
        flat = array.reshape(*array.shape[:kept], -1)
        end = flat.shape[-1] - flat.shape[-1] % math.prod(ROW)
        rows = by_rows(flat[..., :end].reshape(*flat.shape[:-1], -1, *ROW))
        rest = by_rows(flat[..., None, end:])
        parts = jnp.concatenate([rows, rest[..., None]], axis=-1)
        return plainly(parts, (kept,)).reshape(jax.eval_shape(all_at_once, array).shape)

    def all_at_once(array: jax.Array) -> jax.Array:
        return plainly(array, axes)

    def on_cpus(array: jax.Array) -> jax.Array:
        return jax.lax.cond(IS_REMADE.bind(), in_rows, all_at_once, array)

    @jax.custom_jvp
    def reduce(array: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(array, cpu=on_cpus, default=all_at_once)

    @reduce.defjvp
    def _(at: Any, along: Any) -> Any:
        return reduce(*at), jax.jvp(all_at_once, at, along)[1]

    return reduce(array)
