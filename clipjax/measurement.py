"""Measures every block of a tree: one read, safe at any magnitude, on any mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .casts import accumulation_dtype, apart, widen
from .distributed import Split, beside, reduce_over_devices, shard_counts
from .floats import scaling_power
from .granularity import Blocks, Granularity
from .norms import Axes, Linf, Norm, l2, linf
from .order import Make, at_hand
from .sums import largest
from .trees import NamedLeaves


class Measurement(NamedTuple):
    """The norms of the blocks, and which leaf is the first with NaN or inf.

    Attributes:
        norms: one per block, float32, or float64 where any leaf is.
        nonfinite_leaf: int32 position among the clippable leaves, or -1.
    """

    norms: Blocks
    nonfinite_leaf: jax.Array


def measure(
    norm: Norm,
    granularity: Granularity,
    leaves: Make,
    names: tuple[str, ...],
    split: Split,
) -> Measurement:
    """Measures the blocks of a tree.

    Args:
        norm: how a block is measured.
        granularity: which entries form a block.
        leaves: makes the tree, and makes it again for the second read that extreme
            magnitudes take, in a branch.
        names: the blocks' names, from ``granularity.names``.
        split: the axes over which each leaf is split, inside ``shard_map`` and
            ``pmap``; see `clipjax.distributed.split_over`.
    """
    if norm.derivative is None:
        return _measure(norm, granularity, leaves, names, split)
    tree = leaves()

    def by(norm: Norm, arrays: dict[str, jax.Array]) -> Measurement:
        return _measure(norm, granularity, at_hand(tree.replace(arrays)), names, split)

    own = jax.custom_jvp(functools.partial(by, norm))
    other = functools.partial(by, norm.derivative)
    own.defjvp(lambda at, along: (own(*at), jax.jvp(other, at, along)[1]))
    return own(tree.arrays)


class _Peak(Linf):
    """Finds a scale for sums that show NaN themselves, so that it may be lost here."""

    def accumulate(self, leaf: jax.Array, axes: Axes) -> jax.Array:
        """Takes the largest magnitude."""
        return largest(jnp.abs(leaf), axes, self.is_computed)


def _measure(
    norm: Norm,
    granularity: Granularity,
    make: Make,
    names: tuple[str, ...],
    split: Split,
) -> Measurement:
    leaves = make()
    dtype = accumulation_dtype(leaves)

    def partials(
        norm: Norm, leaves: NamedLeaves, powers: Mapping[str, jax.Array] | None = None
    ):
        summing = norm.of_computed() if make.is_computed else norm
        sums = {}
        for name, leaf in leaves.arrays.items():
            wide = widen(leaf, dtype)
            if powers is not None:
                wide = wide * beside(powers[name], leaf).astype(wide.dtype)
            with norm.precision():
                axes = granularity.axes(name, leaf)
                sums[name] = summing.accumulate(wide, axes)
        with norm.precision():
            if granularity.joins_devices:
                sums = reduce_over_devices(sums, split, norm.collective)
            sums = {name: norm.settle(total) for name, total in sums.items()}
        return {name: total.astype(dtype) for name, total in sums.items()}

    def fold(norm: Norm, sums: Mapping[str, jax.Array]) -> Blocks:
        blocks = granularity.fold(sums, names, norm.merge, leaves)
        return jax.tree.map(lambda block: block.astype(dtype), blocks)

    shards = shard_counts(split) if granularity.joins_devices else None
    sizes = granularity.sizes(names, leaves, shards)

    def plainly() -> Measurement:
        # None is bad here; in shard_map, both branches must vary over the same axes.
        nonfinite_leaf = -1 - bad.astype(jnp.int32)
        return Measurement(jax.tree.map(norm.finish, totals, sizes), nonfinite_leaf)

    def rescaled() -> Measurement:
        peaks = partials(linf if norm.at_scale else _Peak(), make(copy=1))
        peak = fold(linf, peaks)
        power = jax.tree.map(scaling_power, peak)
        # A number that leaves share would be written in the shape of a leaf.
        powers = granularity.spread(power, names, leaves)
        powers = {name: apart(powers[name], peaks[name]) for name in powers}
        sums = partials(norm, make(count(peak), copy=2), powers)
        totals = fold(norm, sums)
        norms = jax.tree.map(
            lambda length, peak, power: jnp.where(
                jnp.isfinite(peak),
                length / power,
                jnp.where(jnp.isnan(length), length, peak),
            ),
            jax.tree.map(norm.finish, totals, sizes),
            peak,
            power,
        )
        # No maximum loses inf, and no sum NaN; but at no scale a sum may overflow.
        flags = [
            jnp.any(~jnp.isfinite(peaks[name])) | jnp.any(jnp.isnan(total))
            for name, total in sums.items()
        ]
        return Measurement(norms, _first(flags))

    if norm.at_scale:
        return rescaled()
    sums = partials(norm, leaves)
    totals = fold(norm, sums)
    if not norm.needs_rescaling:
        norms = jax.tree.map(norm.finish, totals, sizes)
        flags = [norm.tally(total) != 0 for total in sums.values()]
        return Measurement(norms, _first(flags))
    out_of_range = jax.tree.map(
        lambda total, size: ~norm.in_range(total) & (size > 0), totals, sizes
    )
    bad = count(out_of_range)
    return branch(bad == 0, plainly, rescaled)


def count(flags: Blocks) -> jax.Array:
    """Counts flags as a float32: one all-reduce can join that with other sums."""
    counts = [jnp.sum(flag, dtype=jnp.float32) for flag in jax.tree.leaves(flags)]
    total = jnp.float32(0)
    for one in counts:
        total = total + beside(one, counts[0])
    return total


def first_nonfinite_leaf(
    leaves: NamedLeaves, split: Split, norm: Norm = l2
) -> jax.Array:
    """Gives the position of the first leaf with NaN or inf on any device, or -1.

    Flags are joined as the sums of ``norm`` are, so that one all-reduce can join both.
    """
    flags = {name: norm.tally(leaf) for name, leaf in leaves.arrays.items()}
    flags = reduce_over_devices(flags, split, norm.collective)
    return _first([flag != 0 for flag in flags.values()])


def _first(flags: list[jax.Array]) -> jax.Array:
    """Gives the position of the first flag that is raised, or -1."""
    if not flags:
        return jnp.int32(-1)
    raised = jnp.stack([beside(flag, flags[0]) for flag in flags])
    first = jnp.argmax(raised).astype(jnp.int32)
    return jnp.where(jnp.any(raised), first, jnp.int32(-1))


def branch(
    predicate: jax.Array | bool, on_true: Callable[[], Any], on_false: Callable[[], Any]
) -> Any:
    """Runs one of two functions; without tracing, no conditional is compiled."""
    if isinstance(predicate, Tracer):
        return jax.lax.cond(predicate, on_true, on_false)
    return on_true() if predicate else on_false()
