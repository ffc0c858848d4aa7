"""Norms of the blocks of a tree: one read, and a second for extreme magnitudes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..guards import Guard, propagate
from ..jax_internals import Tracer
from ..norms import Norm, linf
from .blocks import Blocks, Values
from .dtypes import full_like, scaling_power, widen

Arrays = Sequence[jax.Array]


def reread(leaf: jax.Array, value: Any) -> tuple[jax.Array, Any]:
    """Return both unchanged, behind one barrier: XLA reads ``leaf`` after ``value``.

    The barrier has three effects. XLA shares no cast of the leaf with an earlier read,
    and so writes no float32 copy of a bfloat16 leaf. It does not overwrite a donated
    leaf before that earlier read. And it does not broadcast a scalar ``value`` to an
    array in memory that is as large as the leaf.
    """
    return jax.lax.optimization_barrier((leaf, value))


class Measured(NamedTuple):
    """The norms of the blocks of a tree.

    Attributes:
        norms: one value per block, in the accumulation dtype, never NaN: inf for a
            block with NaN or inf, or with a norm of 2^126 or more.
        lined_up: the norms in one array of shape ``(blocks,)``, for reports; None
            unless there are several norms and all are scalars. It is computed from the
            stacked sums: to stack the norms, XLA would compile a kernel for each.
        first_bad: position of the first leaf with NaN or inf, int32, or -1; None where
            each norm belongs to one leaf, so that the infinite norms say which it is.
    """

    norms: Values
    lined_up: jax.Array | None
    first_bad: jax.Array | None


def measure(
    norm: Norm,
    blocks: Blocks,
    arrays: Arrays,
    guard: Guard = propagate,
    stand_in: Callable[[list[jax.Array]], Arrays] | None = None,
) -> Measured:
    """Measure each block, and find the first leaf with NaN or infinity.

    Sums of squares are accurate between 2^-69 and 2^126 in float32. If the sum of any
    block lies outside, all leaves are read a second time, multiplied by 2^64 or 2^-64.
    A scale that is safe from the start would need the largest magnitude first, and so
    another read at every step.

    Args:
        norm: how a block is measured.
        blocks: which entries are measured together.
        arrays: one array per leaf.
        guard: entries that it does not admit are measured as zeros.
        stand_in: maps the arrays to the arrays that are measured in their place.
    """
    dtype = blocks.leaves.dtype
    limits = jnp.finfo(dtype)
    largest = 1 / float(limits.tiny)
    least = [norm.least(dtype) if size else 0.0 for size in blocks.sizes]

    def sums(norm: Norm, guard: Guard, scales: Values | None = None) -> Arrays:
        own: Any = [None] * len(arrays)
        leaves: Any = list(arrays)
        if scales is not None:
            pairs = map(reread, leaves, blocks.spread(scales))
            leaves, own = zip(*pairs, strict=True) if leaves else ((), ())
        if not guard.admits_all:
            leaves = [guard.admit(leaf) for leaf in leaves]
        if stand_in is not None:
            leaves = list(stand_in(leaves))
        found = []
        for i, leaf in enumerate(leaves):
            wide = widen(leaf, dtype)
            if own[i] is not None:
                wide = wide * blocks.shaped(own[i], i).astype(wide.dtype)
            found.append(norm.accumulate(wide, blocks.summed[i]))
        return blocks.over_devices(norm, found)

    def scale_for(total: jax.Array, least: Any) -> jax.Array:
        # 2^64 in float32: it brings the squares into range, and keeps derivatives in
        # range.
        up = 2.0 ** (limits.maxexp // 2)
        one, high, low = (full_like(total, x) for x in (1.0, up, 1 / up))
        down = jax.lax.select(total < largest, one, low)
        return jax.lax.select(total < least, high, down)

    def finish(total: jax.Array, scale: jax.Array, size: Any) -> jax.Array:
        length = norm.finish(total, np.maximum(size, 1)) / scale
        if not np.all(size):
            length = jnp.where(np.equal(size, 0), 0, length)
        return jax.lax.select(length < largest, length, full_like(length, jnp.inf))

    first = totals = blocks.join(norm, sums(norm, propagate))
    scales = blocks.map(scale_for, totals, least)
    is_extreme = _any_outside(totals, least, largest)
    # Where each block has one leaf, an infinite norm identifies the non-finite leaf.
    tells = guard.admits_all and all(len(m) == 1 for m in blocks.members)
    has_other_scales = norm.scales_by_largest or not guard.admits_all

    def measured_again() -> tuple[Values, Values, Any]:
        used = scales
        if norm.scales_by_largest:
            peaks = blocks.join(linf, sums(linf, guard))
            used = [scaling_power(peak) for peak in peaks]
        found = sums(norm, propagate, used)
        first_bad = () if tells else first_not_finite(found)
        if not guard.admits_all:
            if not norm.scales_by_largest:
                ones = blocks.map(jnp.ones_like, totals)
                admitted = blocks.join(norm, sums(norm, guard, ones))
                used = blocks.map(scale_for, admitted, least)
            found = sums(norm, guard, used)
        return blocks.join(norm, found), used if has_other_scales else [], first_bad

    def as_it_was() -> tuple[Values, Values, Any]:
        # -1, computed from is_extreme to have the other branch's type in shard_map.
        first_bad = () if tells else -1 - is_extreme.astype(jnp.int32)
        return totals, scales if has_other_scales else [], first_bad

    # The branches return sums only, so that the scalar work is compiled once.
    totals, other_scales, first_bad = branch(is_extreme, measured_again, as_it_was)
    norms = blocks.map(finish, totals, other_scales or scales, blocks.sizes)
    lined_up = None
    if len(norms) > 1 and not any(blocks.shapes):
        used = (
            jnp.stack(other_scales)
            if other_scales
            else scale_for(jnp.stack(first), np.asarray(least, dtype))
        )
        lined_up = finish(jnp.stack(totals), used, np.asarray(blocks.sizes, dtype))
    return Measured(norms, lined_up, None if tells else first_bad)


def measure_plainly(norm: Norm, blocks: Blocks, arrays: Arrays) -> Values:
    """Return the norm of each block, without a second read for extreme magnitudes.

    Meant for parameters. In float32, a norm below 1e-19 comes out as 0 and one above
    1e19 as inf; NaN stays NaN.
    """
    sums = [
        norm.accumulate(widen(leaf, blocks.leaves.dtype), axes)
        for leaf, axes in zip(arrays, blocks.summed, strict=True)
    ]
    totals = blocks.join(norm, blocks.over_devices(norm, sums))
    return [
        norm.finish(total, size or 1)
        for total, size in zip(totals, blocks.sizes, strict=True)
    ]


def first_true(flags: jax.Array) -> jax.Array:
    """Return the position of the first flag that is true, int32, or -1."""
    positions = np.arange(flags.size, dtype=np.int32)
    first = jnp.min(jnp.where(flags, positions, flags.size), initial=flags.size)
    return jnp.where(first < flags.size, first, -1)


def first_not_finite(arrays: Arrays) -> jax.Array:
    """Return the position of the first array with NaN or inf, or -1."""
    if not arrays:
        return jnp.int32(-1)
    if any(array.ndim for array in arrays):
        # With `all`: XLA would merge a sum of sums into a second read of the leaf.
        return first_true(~jnp.stack([jnp.all(jnp.isfinite(a)) for a in arrays]))
    return first_true(~jnp.isfinite(jnp.stack(arrays)))


def first_nonfinite_leaf(blocks: Blocks) -> jax.Array:
    """Return the position of the first leaf with NaN or inf on any device, or -1."""
    # NaN where the leaf has NaN or inf. XLA's CPU backend reads a leaf once for a sum
    # of products; a mask of its entries would be written to memory first.
    dtype = blocks.leaves.dtype
    sums = [jnp.sum(widen(leaf, dtype) * 0) for leaf in blocks.leaves.arrays]
    flags = [(~jnp.isfinite(total)).astype(jnp.float32) for total in sums]
    if not flags:
        return jnp.int32(-1)
    return first_true(jnp.stack(blocks.over_devices(linf, flags)) > 0)


def _any_outside(totals: Values, least: Sequence[float], largest: float) -> jax.Array:
    """Return whether any sum is NaN or outside its range.

    Flags are added, and not or-ed: on a mesh XLA then combines their all-reduce with
    that of the other sums.
    """
    arrays: list[tuple[jax.Array, Any]] = [
        (total, limit) for total, limit in zip(totals, least, strict=True) if total.ndim
    ]
    scalars = [i for i, total in enumerate(totals) if not total.ndim]
    if scalars:
        stacked = jnp.stack([totals[i] for i in scalars])
        arrays.append((stacked, [least[i] for i in scalars]))
    counts = []
    for total, limit in arrays:
        low = np.asarray(limit, total.dtype)
        # NaN is not equal to itself, and so counts.
        is_outside = jax.lax.clamp(low, total, np.full_like(low, largest)) != total
        counts.append(jnp.sum(is_outside.astype(total.dtype)))
    return sum(counts[1:], counts[0]) > 0 if counts else jnp.asarray(False)


def branch(
    predicate: Any, on_true: Callable[[], Any], on_false: Callable[[], Any]
) -> Any:
    """Call one of two functions: by a conditional under jit, in Python outside it."""
    if isinstance(predicate, Tracer):
        return jax.lax.cond(predicate, on_true, on_false)
    return on_true() if predicate else on_false()
