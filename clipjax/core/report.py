"""The report of a step in the state, computed from the norms alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..norms import Norm
from ..rules import Rule, valid
from .blocks import Blocks, Values
from .measure import Measured, first_true
from .state import ClipInfo

# The average is over about the last 1 / (1 - 0.99) = 100 steps.
RATIO_DECAY = 0.99


class Step(NamedTuple):
    """One step in the numbers of `ClipInfo`."""

    norm_before: jax.Array
    norm_after: jax.Array
    clip_threshold: jax.Array
    clipped_fraction: jax.Array
    is_finite: jax.Array
    first_nonfinite_leaf: jax.Array
    threshold_is_valid: jax.Array
    block_norms_before: jax.Array | None = None
    block_norms_after: jax.Array | None = None
    block_thresholds: jax.Array | None = None


def summarize(
    norm: Norm,
    rule: Rule,
    blocks: Blocks,
    measured: Measured,
    thresholds: Values,
    lengths: Values,
    reports_blocks: bool,
) -> Step:
    """Summarize a step of a clip of blocks, without another read of the leaves.

    Args:
        norm: how blocks are measured.
        rule: the map from norm and threshold to length.
        blocks: the blocks.
        measured: their norms before the clip.
        thresholds: their thresholds, not yet made valid.
        lengths: their norms after the clip.
        reports_blocks: whether to report the blocks one by one.
    """
    dtype = blocks.leaves.dtype
    norms, old, first_bad = measured
    limits = new = None
    if len(norms) == 1 and not norms[0].ndim:
        before, after = norms[0], lengths[0]
        changed, bad = (after != before).astype(dtype), (before == jnp.inf)[None]
        old, new = before[None], after[None]
    elif old is not None:
        # Once, for all blocks in one array: block by block, these few operations would
        # take most of the compilation.
        limits = blocks.vector([jnp.asarray(limit, dtype) for limit in thresholds])
        new = rule.lengths(old, valid(limits))
        sizes = [np.asarray(blocks.sizes, dtype)]
        before, after, changed, _ = _reduced(norm, [old], [new], sizes)
        bad = old == jnp.inf
    elif norms:
        before, after, changed, bad = _reduced(norm, norms, lengths, blocks.sizes)
    else:
        before = after = changed = jnp.zeros((), dtype)
        bad = jnp.zeros(0, bool)
    if first_bad is None:
        first_bad = first_true(bad)
    least, is_valid = summary_of_thresholds(thresholds, dtype)
    step = Step(
        norm_before=before,
        norm_after=after,
        clip_threshold=least,
        clipped_fraction=changed / max(blocks.count, 1),
        # Tested block by block: the norm of the whole can overflow although every block
        # is finite.
        is_finite=(first_bad < 0) & ~jnp.any(bad),
        first_nonfinite_leaf=first_bad,
        threshold_is_valid=is_valid,
    )
    if not reports_blocks:
        return step
    if limits is None:
        limits = blocks.vector([jnp.asarray(limit, dtype) for limit in thresholds])
    old = blocks.vector(norms) if old is None else old
    new = blocks.vector(lengths) if new is None else new
    return step._replace(
        block_norms_before=old,
        block_norms_after=jnp.where(old < jnp.inf, new, old),
        block_thresholds=limits,
    )


def _reduced(
    norm: Norm, norms: Values, lengths: Values, sizes: Sequence[Any]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return norms before and after, the number of changed blocks, and bad values.

    Everything is reduced in one sum per value: XLA compiles that to one kernel and, on
    a mesh, to a share of one all-reduce.
    """
    rows = []
    for old, new, size in zip(norms, lengths, sizes, strict=True):
        pair = jnp.stack([old, new])
        each_size = size[None] if np.ndim(size) else size
        terms = norm.terms(pair, each_size) if norm.sums_terms else []
        flags = (pair[1:] != pair[:1]).astype(pair.dtype)
        axes = tuple(range(1, pair.ndim))
        rows.append(jnp.sum(jnp.concatenate([flags, *terms]), axis=axes))
    each = jnp.stack(rows)
    changed, *totals = jnp.sum(each, axis=0)
    if norm.sums_terms:
        count = sum(
            float(np.sum(np.broadcast_to(size, old.shape)))
            for size, old in zip(sizes, norms, strict=True)
        )
        before, after = (
            norm.of_terms(totals[::2], count),
            norm.of_terms(totals[1::2], count),
        )
        # A block is bad where its last term is infinite: for any norm in the term's
        # range, that means that the norm is.
        return before, after, changed, each[:, -2] == jnp.inf
    before, after = norm.combine(norms, sizes), norm.combine(lengths, sizes)
    bad = jnp.stack([jnp.any(old == jnp.inf) for old in norms])
    return before, after, changed, bad


def summary_of_thresholds(
    thresholds: Values, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Return the threshold to report, and whether all thresholds are valid."""
    different = list({id(limit): limit for limit in thresholds}.values())
    if not different:
        return jnp.asarray(jnp.inf, dtype), jnp.asarray(True)
    if not any(jnp.ndim(limit) for limit in different):
        limits = jnp.stack([jnp.asarray(limit, dtype) for limit in different])
        return jnp.min(limits), jnp.all(limits >= 0)
    # The mean, since a minimum over sharded units takes an all-reduce of its own.
    sums = list(map(jnp.sum, different))
    mean = sum(sums[1:], sums[0]) / max(1, sum(map(jnp.size, different)))
    return mean, mean >= 0


def next_info(info: ClipInfo, step: Step, steps: jax.Array) -> ClipInfo:
    """Return the report after one more step, in unchanged dtypes.

    Args:
        info: the report before the step.
        step: the step.
        steps: int32 number of earlier steps.
    """
    is_finite, before = step.is_finite, step.norm_before
    is_known = is_finite | (before < jnp.inf)
    after = jnp.where(is_known, step.norm_after, before)
    usable = (before > 0) & (before < jnp.inf)
    ratio = jnp.where(usable, after / jnp.where(usable, before, 1), 1)
    average = RATIO_DECAY * info.average_clip_ratio + (1 - RATIO_DECAY) * ratio
    average = jnp.where(steps == info.nonfinite_steps, ratio, average)
    clipped = is_finite & (step.clipped_fraction > 0)
    invalid = is_finite & ~step.threshold_is_valid
    blocks = {
        field: info_field if new is None else new
        for field in ("block_norms_before", "block_norms_after", "block_thresholds")
        for info_field, new in [(getattr(info, field), getattr(step, field))]
    }
    new = info._replace(
        norm_before=before,
        norm_after=after,
        clip_threshold=step.clip_threshold,
        clip_ratio=ratio,
        average_clip_ratio=jnp.where(is_finite, average, info.average_clip_ratio),
        clipped_fraction=jnp.where(is_finite, step.clipped_fraction, 0),
        clipped_steps=info.clipped_steps + clipped.astype(jnp.int32),
        nonfinite_steps=info.nonfinite_steps + (~is_finite).astype(jnp.int32),
        first_nonfinite_leaf=jnp.where(
            step.first_nonfinite_leaf >= 0,
            step.first_nonfinite_leaf,
            info.first_nonfinite_leaf,
        ),
        invalid_threshold_steps=info.invalid_threshold_steps
        + invalid.astype(jnp.int32),
        **blocks,
    )
    return jax.tree.map(lambda value, old: value.astype(old.dtype), new, info)
