"""What a step leaves behind: arrays only, in a structure that no parameter shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ..norms import Norm
from .blocks import Blocks, Values

RATIO_DECAY = 0.99


class ClipInfo(NamedTuple):
    """The last step in a few numbers, and counts of all steps.

    Before the first step, norms and thresholds are 0, ratios 1, and counts 0; whether
    there is data, ``clip_steps`` tells. Numbers are float32, or float64 where the
    parameters are; counts are int32. Nothing depends on them.

    Attributes:
        norm_before: norm of the whole tree before the clip; inf if there was a NaN.
        norm_after: norm of the whole tree after the clip.
        clip_threshold: the least of the thresholds in force; for ``unit`` with a
            threshold for each unit, their mean.
        clip_ratio: ``norm_after / norm_before``; 1 where the gradient is zero.
        average_clip_ratio: exponential average of the ratio over finite steps, with
            decay 0.99, started at its first value.
        clipped_fraction: fraction of the blocks that were changed.
        clipped_steps: in how many steps any block was changed.
        nonfinite_steps: in how many steps there was a NaN or inf.
        first_nonfinite_leaf: position of the first leaf with NaN or inf in the latest
            of those steps, -1 before; `clipjax.nonfinite_path` gives its path.
        invalid_threshold_steps: in how many finite steps a threshold was negative or
            NaN.
        block_norms_before: for ``leaf`` and ``group`` the norms of the blocks, in the
            order of leaves or labels, shape ``(blocks,)``; elsewhere (), since
            Orbax saves no arrays without entries.
        block_norms_after: likewise, after the clip.
        block_thresholds: likewise, the thresholds in force.
    """

    norm_before: Float[Array, ""]
    norm_after: Float[Array, ""]
    clip_threshold: Float[Array, ""]
    clip_ratio: Float[Array, ""]
    average_clip_ratio: Float[Array, ""]
    clipped_fraction: Float[Array, ""]
    clipped_steps: Int[Array, ""]
    nonfinite_steps: Int[Array, ""]
    first_nonfinite_leaf: Int[Array, ""]
    invalid_threshold_steps: Int[Array, ""]
    block_norms_before: Float[Array, " blocks"] | tuple[()]
    block_norms_after: Float[Array, " blocks"] | tuple[()]
    block_thresholds: Float[Array, " blocks"] | tuple[()]


class ClipState(NamedTuple):
    """The state of every clip.

    Its structure depends on the clip's settings only, so that tools which rebuild it
    for other parameters, such as ``optax.tree_map_params``, work. No field has the name
    of a field of Optax.

    Attributes:
        clip_steps: int32 number of updates so far.
        clip_memory: what the threshold remembers, below the threshold's kind; () if it
            remembers nothing.
        clip_info: what the last step measured and did.
        clip_names: the clip's name, below it the granularity's, and below that the
            groups' labels, if the settings give them: keys without leaves.
    """

    clip_steps: Int[Array, ""]
    clip_memory: Any
    clip_info: ClipInfo
    clip_names: dict[str, dict[str, dict[str, tuple[()]]]]


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


def empty_info(dtype: Any, reported_blocks: int | None) -> ClipInfo:
    """Return the report before the first step; None for no report of blocks."""

    # Each field has a buffer of its own: a state that holds one twice cannot be donated.
    def number(value: float = 0.0, shape: tuple[int, ...] = ()) -> jax.Array:
        return jnp.full(shape, value, dtype)

    def steps(value: int = 0) -> jax.Array:
        return jnp.full((), value, jnp.int32)

    def numbers() -> jax.Array | tuple[()]:
        return () if reported_blocks is None else number(shape=(reported_blocks,))

    return ClipInfo(
        norm_before=number(),
        norm_after=number(),
        clip_threshold=number(),
        clip_ratio=number(1.0),
        average_clip_ratio=number(1.0),
        clipped_fraction=number(),
        clipped_steps=steps(),
        nonfinite_steps=steps(),
        first_nonfinite_leaf=steps(-1),
        invalid_threshold_steps=steps(),
        block_norms_before=numbers(),
        block_norms_after=numbers(),
        block_thresholds=numbers(),
    )


def summarize(
    norm: Norm,
    blocks: Blocks,
    norms: Values,
    thresholds: Values,
    lengths: Values,
    first_bad: jax.Array | None,
    reports_blocks: bool,
) -> Step:
    """Summarize a step of a clip of blocks; no leaf is read for it.

    Args:
        norm: how blocks are measured.
        blocks: the blocks.
        norms: their norms before the clip.
        thresholds: their thresholds, as the source gave them.
        lengths: their norms after the clip.
        first_bad: position of the first leaf with NaN or inf; None if the norms tell,
            since each value belongs to one leaf.
        reports_blocks: whether to report the blocks one by one.
    """
    dtype = blocks.leaves.dtype
    if len(norms) == 1 and not norms[0].ndim:
        before, after = norms[0], lengths[0]
        changed, bad = (after != before).astype(dtype), (before == jnp.inf)[None]
    elif any(value.ndim for value in norms):
        before, after, changed, bad = _reduced(norm, norms, lengths, blocks.sizes)
    else:
        # Once, on scalars lined up: one by one it would be most of what there is to
        # compile.
        old, new = blocks.vector(norms), blocks.vector(lengths)
        sizes = [np.asarray(blocks.sizes, dtype)]
        before, after = norm.combine([old], sizes), norm.combine([new], sizes)
        changed, bad = jnp.sum(new != old, dtype=dtype), old == jnp.inf
    if first_bad is None:
        first_bad = first_true(bad)
    least, is_valid = summary_of_thresholds(thresholds, dtype)
    step = Step(
        norm_before=before,
        norm_after=after,
        clip_threshold=least,
        clipped_fraction=changed / max(blocks.count, 1),
        is_finite=(before < jnp.inf) & (first_bad < 0),
        first_nonfinite_leaf=first_bad,
        threshold_is_valid=is_valid,
    )
    if not reports_blocks:
        return step
    return step._replace(
        block_norms_before=blocks.vector(norms),
        block_norms_after=blocks.vector(lengths),
        block_thresholds=blocks.vector([jnp.asarray(c, dtype) for c in thresholds]),
    )


def _reduced(
    norm: Norm, norms: Values, lengths: Values, sizes: list[int]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return the norms before and after, the number of changed blocks, and the bad.

    All is reduced in one sum per value, which XLA compiles to one kernel and joins, on a
    mesh, in one all-reduce.
    """
    rows = []
    for old, new, size in zip(norms, lengths, sizes, strict=True):
        columns = [(new != old).astype(old.dtype), (old == jnp.inf).astype(old.dtype)]
        if norm.sums_terms:
            columns += norm.terms(old, size) + norm.terms(new, size)
        axes = tuple(range(1, 1 + old.ndim))
        rows.append(jnp.sum(jnp.stack(columns), axis=axes))
    each = jnp.stack(rows)
    changed, _, *terms = jnp.sum(each, axis=0)
    if norm.sums_terms:
        half = len(terms) // 2
        count = sum(size * old.size for size, old in zip(sizes, norms, strict=True))
        before, after = (
            norm.of_terms(some, count) for some in (terms[:half], terms[half:])
        )
    else:
        before, after = norm.combine(norms, sizes), norm.combine(lengths, sizes)
    return before, after, changed, each[:, 1] > 0


def first_true(flags: jax.Array) -> jax.Array:
    """Return the position of the first flag that is true, int32, or -1."""
    positions = np.arange(flags.size, dtype=np.int32)
    first = jnp.min(jnp.where(flags, positions, flags.size), initial=flags.size)
    return jnp.where(first < flags.size, first, -1)


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
    # A minimum would take an all-reduce of its own where the units are sharded.
    sums = list(map(jnp.sum, different))
    mean = sum(sums[1:], sums[0]) / max(1, sum(map(jnp.size, different)))
    return mean, mean >= 0


def next_info(info: ClipInfo, step: Step, steps: jax.Array) -> ClipInfo:
    """Bring the report up to date, in the dtypes that it had.

    Args:
        info: the report so far.
        step: the step to enter.
        steps: int32 number of steps before it.
    """
    is_finite, before = step.is_finite, step.norm_before
    after = jnp.where(before < jnp.inf, step.norm_after, before)
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


def checked_state(state: Any, fresh: Any, remembers: bool, who: str) -> Any:
    """Return the state to work from, or say what is wrong with the one given.

    Args:
        state: what ``update`` was given. None, () and ``optax.EmptyState`` stand for a
            fresh state, if the clip remembers nothing.
        fresh: makes a fresh state.
        remembers: whether the clip has a memory.
        who: the clip, as it prints.

    Raises:
        ValueError: the state is not this clip's.
    """
    # By type: an array, which may be traced, does not compare with ().
    is_nothing = state is None or isinstance(state, optax.EmptyState)
    is_nothing = is_nothing or (type(state) is tuple and not state)
    if is_nothing and not remembers:
        return fresh()
    expected = jax.eval_shape(fresh)
    if is_nothing:
        raise ValueError(
            f"{who} has a memory, so that update needs the state that init made, got "
            f"{state!r}"
        )
    difference = _difference(state, expected)
    if difference:
        raise ValueError(
            f"state is not that of {who}: {difference}. Pass the state that init made, "
            "or restore a checkpoint into its structure (see docs/checkpoints.md)"
        )
    return state


def _difference(state: Any, expected: Any) -> str:
    """Say in a few words how a state differs from the one expected, or nothing."""
    if type(state) is not type(expected):
        return f"expected a {type(expected).__name__}, got {_described(state)}"
    if jax.tree.structure(state) != jax.tree.structure(expected):
        parts = [
            f"{field} should be {_keys(wanted)} and is {_keys(given)}"
            for field, given, wanted in zip(
                state._fields, state, expected, strict=True
            )
            if jax.tree.structure(given) != jax.tree.structure(wanted)
        ]
        return "; ".join(parts)
    for (path, given), wanted in zip(
        jax.tree_util.tree_leaves_with_path(state),
        jax.tree.leaves(expected),
        strict=True,
    ):
        if jnp.shape(given) != wanted.shape:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return f"{name} should have shape {wanted.shape} and has {jnp.shape(given)}"
    return ""


def _described(state: Any) -> str:
    if isinstance(state, dict):
        return f"a dictionary with the keys {', '.join(map(repr, state))}"
    if type(state) in (list, tuple):
        return f"a {type(state).__name__} of {len(state)}"
    return f"a {type(state).__name__}"


def _keys(part: Any) -> str:
    paths = jax.tree_util.tree_leaves_with_path(part)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    if not names:
        return repr(part)
    return f"{{{', '.join(names)}}}"


def keep_if(flag: jax.Array, new: Any, old: Any) -> Any:
    """Return the new tree where a flag is true, else the old one."""
    return jax.tree.map(lambda n, o: jnp.where(flag, n, o), new, old)
