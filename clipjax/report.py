"""What a clip leaves behind after a step: its state, and the numbers in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .distributed import Split, reduce_over_devices, shard_counts
from .granularity import Blocks, Granularity, Leaf
from .measurement import Measurement, count, measure
from .norms import Norm
from .order import Make
from .rules import ratio
from .sums import total
from .trees import NamedLeaves

RATIO_DECAY = 0.99


class BlockInfo(NamedTuple):
    """The last step, block by block, in the order of the sorted block names.

    One entry per block for ``leaf`` and ``group``. For ``unit`` and ``element`` one
    entry per leaf: the norm of the leaf before and after, and the mean of its blocks'
    thresholds, those of infinity aside.

    Attributes:
        norm: norms before the clip, shape ``(blocks,)``.
        threshold: thresholds in force.
        factor: norms after the clip divided by norms before; 1 at zero.
        clipped_norm: norms after the clip.
    """

    norm: Float[Array, " blocks"]
    threshold: Float[Array, " blocks"]
    factor: Float[Array, " blocks"]
    clipped_norm: Float[Array, " blocks"]


class ClipInfo(NamedTuple):
    """The last step in a few scalars, NaN before the first; counts are of all steps.

    Scalars are float32, or float64 where the parameters are; counts are int32.

    Attributes:
        names: the clip's name, and below it its blocks' names in order: keys without
            leaves, so that they travel with the state at no cost.
        leaves: the leaves' names, in the same way.
        norm: norm of the whole tree before the clip.
        threshold: the least of the thresholds in force; for ``unit`` and ``element``,
            of their means over each leaf.
        factor: ``clipped_norm / norm``; 1 where the gradient is zero.
        clipped_norm: norm of the whole tree after the clip.
        clipped_fraction: fraction of the blocks that were changed. What is NaN does not
            count, nor for ``unit`` and ``element`` the rest of that leaf.
        average_factor: exponential average of ``factor`` over finite steps, with
            decay 0.99, started at its first value.
        clipped_steps: in how many steps any block was changed.
        nonfinite_count: in how many steps there was a NaN or inf.
        nonfinite_leaf: position of the first leaf with NaN or inf in the latest of
            those steps, -1 before; `clipjax.nonfinite_path` gives its path.
        invalid_threshold_count: in how many finite steps a threshold was negative or
            NaN.
        blocks: a `BlockInfo`, or () where the tree is a single block.
    """

    names: dict[str, dict[str, tuple[()]]]
    leaves: dict[str, tuple[()]]
    norm: Float[Array, ""]
    threshold: Float[Array, ""]
    factor: Float[Array, ""]
    clipped_norm: Float[Array, ""]
    clipped_fraction: Float[Array, ""]
    average_factor: Float[Array, ""]
    clipped_steps: Int[Array, ""]
    nonfinite_count: Int[Array, ""]
    nonfinite_leaf: Int[Array, ""]
    invalid_threshold_count: Int[Array, ""]
    blocks: BlockInfo | tuple[()]


class ClipState(NamedTuple):
    """The state of every clip.

    Attributes:
        count: int32 number of updates so far.
        threshold: what the threshold source remembers. For a plain number it is that
            number, which may be edited between steps without a retrace.
        info: what the last step measured and did; nothing depends on it.
    """

    count: Int[Array, ""]
    threshold: Any
    info: ClipInfo

    @property
    def name(self) -> str:
        """The prefix of the clip's metrics."""
        return next(iter(self.info.names))

    @property
    def block_names(self) -> tuple[str, ...]:
        """The names of the blocks, in the order of ``info.blocks``."""
        return tuple(sorted(self.info.names[self.name]))


class Outcome(NamedTuple):
    """What the engine did to the blocks in one step.

    Attributes:
        norms: the blocks' norms before the clip, in the granularity's form.
        thresholds: the blocks' thresholds; where blocks are summarised, one number for
            several of them if the source gives no more.
        lengths: the blocks' norms after the clip.
        reported: the norms to report: of the blocks, or where those are summarised, of
            the leaves.
        is_finite: whether the step had no NaN, no inf and no overflowing norm.
        nonfinite_leaf: position of the first leaf with NaN or inf, or -1.
    """

    norms: Blocks
    thresholds: Blocks
    lengths: Blocks
    reported: jax.Array
    is_finite: jax.Array
    nonfinite_leaf: jax.Array


class Step(NamedTuple):
    """One step in the numbers of `ClipInfo`."""

    norm: jax.Array
    threshold: jax.Array
    clipped_norm: jax.Array
    clipped_fraction: jax.Array
    threshold_is_valid: jax.Array
    blocks: BlockInfo | tuple[()]


def split_of_blocks(granularity: Granularity, split: Split) -> Split:
    """Gives the axes that blocks are split over once they are measured."""
    return dict.fromkeys(split, ()) if granularity.joins_devices else split


def summarise(
    granularity: Granularity,
    norm: Norm,
    leaves: Make,
    reader: int,
    blocks: Blocks,
    names: tuple[str, ...],
    split: Split,
) -> Measurement:
    """Measures the leaves, by their blocks where that is enough.

    Args:
        granularity: the clip's granularity.
        norm: the clip's norm.
        leaves: makes the leaves.
        reader: the number to make them for: see `clipjax.order.Make`.
        blocks: the norms of their blocks.
        names: the names to report under.
        split: the axes that each leaf is split over.
    """

    def source(made_before: jax.Array | None, copy: int) -> NamedLeaves:
        tree = leaves(made_before, copy + reader)
        return tree.replace(dict(granularity.summary(tree, blocks)))

    split = split_of_blocks(granularity, split)
    return measure(norm, Leaf(), Make(source, leaves.is_computed), names, split)


def describe(
    granularity: Granularity,
    norm: Norm,
    admitted: Make,
    clipped: Make,
    outcome: Outcome,
    names: tuple[str, ...],
    split: Split,
) -> Step:
    """Sums a step up.

    Args:
        granularity: the clip's granularity.
        norm: the clip's norm.
        admitted: makes the updates before the clip.
        clipped: makes those after it.
        outcome: what was done to the blocks.
        names: the names to report under.
        split: the axes that each leaf is split over.
    """
    before = admitted()
    thresholds, lengths, norms = outcome.thresholds, outcome.lengths, outcome.reported
    if granularity.summarised:
        per_leaf = Leaf()
        sizes = per_leaf.sizes(names, before, shard_counts(split))
        blocks_split = split_of_blocks(granularity, split)
        copies = shard_counts(blocks_split)
        limits = granularity.spread(thresholds, names, before)
        old = granularity.summary(admitted(copy=2), outcome.norms)
        new = granularity.summary(clipped(copy=2), lengths)
        sums = {
            (name, key): one.astype(norms.dtype)
            for name, limit in limits.items()
            for key, one in _sums(old[name], new[name], limit, copies[name]).items()
        }
        axes = {(name, key): blocks_split[name] for name, key in sums}
        sums = reduce_over_devices(sums, axes, jax.lax.psum)

        def line_up(key: str) -> jax.Array:
            parts = {name: sums[name, key] for name in limits}
            return per_leaf.fold(parts, names, max, before)

        counts = {
            name: jnp.float32(copies[name] * block.size)
            for name, block in outcome.norms.items()
        }
        counts = per_leaf.fold(counts, names, max, before)
        lengths = summarise(granularity, norm, clipped, 3, lengths, names, split).norms
        changed, invalid, share = map(line_up, ("changed", "invalid", "share"))
        changed = jnp.where(jnp.isnan(changed), 0, changed)
        mean = line_up("limit") / jnp.where(share == 0, 1, share)
        is_infinite = (share == 0) & ~jnp.isnan(mean)
        thresholds = jnp.where(is_infinite, jnp.inf, mean)
    else:
        sizes = granularity.sizes(names, before, shard_counts(split))
        changed = jax.tree.map(
            lambda norm, length: jnp.isfinite(norm) & (length != norm), norms, lengths
        )
        counts = sizes > 0
        invalid = ~(thresholds >= 0)
    fraction = _count(changed) / jnp.maximum(_count(counts), 1)

    is_single = jnp.ndim(norms) == 0
    return Step(
        norm=norms if is_single else norm.combine(norms, sizes),
        threshold=_least(thresholds),
        clipped_norm=lengths if is_single else norm.combine(lengths, sizes),
        clipped_fraction=fraction,
        threshold_is_valid=count(invalid) == 0,
        blocks=()
        if is_single or not names
        else BlockInfo(norms, thresholds, ratio(lengths, norms), lengths),
    )


def _sums(
    old: jax.Array, new: jax.Array, limit: jax.Array, copies: int
) -> Mapping[str, jax.Array]:
    """Sums a leaf's blocks up; nothing but sums, which one all-reduce can join.

    And nothing but arithmetic: XLA's CPU backend writes comparisons and selections to
    memory before it sums them up.
    """
    largest = jnp.finfo(limit.dtype).max
    is_below_infinity = jnp.abs(jnp.sign(largest / limit))
    weight = jnp.asarray(1 / max(copies * limit.size, 1), limit.dtype)
    return {
        "changed": total(jnp.sign(jnp.abs(new - old)).astype(jnp.float32)),
        "invalid": total(jnp.abs(jnp.sign(limit)) - jnp.sign(limit)),
        "share": total(weight * is_below_infinity),
        "limit": total(weight * is_below_infinity * jnp.minimum(limit, largest)),
    }


def _least(values: jax.Array) -> jax.Array:
    return jnp.min(values, initial=jnp.inf)


def _count(values: jax.Array) -> jax.Array:
    return jnp.sum(values, dtype=np.float32)


def empty_info(
    name: str, blocks: tuple[str, ...], leaves: NamedLeaves, dtype: Any
) -> ClipInfo:
    """Makes the report before the first step."""

    def no_data(shape: tuple[int, ...] = ()) -> jax.Array:
        return jnp.full(shape, jnp.nan, dtype)

    def no_steps(value: int = 0) -> jax.Array:
        return jnp.full((), value, jnp.int32)

    shape = (len(blocks),)
    return ClipInfo(
        names={name: {block: () for block in blocks}},
        leaves={leaf: () for leaf in leaves.arrays},
        norm=no_data(),
        threshold=no_data(),
        factor=no_data(),
        clipped_norm=no_data(),
        clipped_fraction=no_data(),
        average_factor=no_data(),
        clipped_steps=no_steps(),
        nonfinite_count=no_steps(),
        nonfinite_leaf=no_steps(-1),
        invalid_threshold_count=no_steps(),
        blocks=BlockInfo(*(no_data(shape) for _ in BlockInfo._fields))
        if blocks
        else (),
    )


def next_info(info: ClipInfo, step: Step, outcome: Outcome) -> ClipInfo:
    """Brings the report up to date, in the dtypes that it had."""
    factor = ratio(step.clipped_norm, step.norm).astype(info.factor.dtype)
    average = RATIO_DECAY * info.average_factor + (1 - RATIO_DECAY) * factor
    average = jnp.where(jnp.isnan(info.average_factor), factor, average)
    clipped = outcome.is_finite & (step.clipped_fraction > 0)
    # A threshold made of today's norm is NaN where that is; it is not to blame.
    invalid = outcome.is_finite & ~step.threshold_is_valid
    new = info._replace(
        norm=step.norm,
        threshold=step.threshold,
        factor=factor,
        clipped_norm=step.clipped_norm,
        clipped_fraction=step.clipped_fraction,
        average_factor=jnp.where(outcome.is_finite, average, info.average_factor),
        clipped_steps=info.clipped_steps + clipped.astype(jnp.int32),
        nonfinite_count=info.nonfinite_count + (~outcome.is_finite).astype(jnp.int32),
        nonfinite_leaf=jnp.where(
            outcome.nonfinite_leaf >= 0, outcome.nonfinite_leaf, info.nonfinite_leaf
        ),
        invalid_threshold_count=info.invalid_threshold_count
        + invalid.astype(jnp.int32),
        blocks=step.blocks,
    )
    return jax.tree.map(lambda value, old: value.astype(old.dtype), new, info)
