"""The state of a clip: arrays only, in a structure independent of the parameters."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


class ClipInfo(NamedTuple):
    """Numbers about the last step, and counts over all steps.

    Before the first step, norms, thresholds and counts are 0 and ratios 1; the state's
    ``clip_steps`` is 0 until then. Numbers are float32, or float64 where the parameters
    are; counts are int32. The clip itself never reads them, except for the running
    average and the counts.

    Attributes:
        norm_before: norm of the whole tree before the clip; inf if there was a NaN.
        norm_after: norm of the whole tree after the clip.
        clip_threshold: the least of the thresholds of the step; for ``unit`` with a
            threshold for each unit, their mean.
        clip_ratio: ``norm_after / norm_before``; 1 where the gradient is zero.
        average_clip_ratio: exponential average of the ratio over finite steps, with
            decay 0.99, started at its first value.
        clipped_fraction: fraction of the blocks that were changed.
        clipped_steps: number of steps in which any block was changed.
        nonfinite_steps: number of steps with a NaN or inf in the gradient.
        first_nonfinite_leaf: position of the first leaf with NaN or inf in the latest
            of those steps, -1 before; `clipjax.nonfinite_path` gives its path.
        invalid_threshold_steps: number of finite steps in which a threshold was
            negative or NaN.
        block_norms_before: for ``leaf`` and ``group`` the norms of the blocks, in the
            order of leaves or labels, shape ``(blocks,)``; otherwise (), since Orbax
            cannot save an array without entries.
        block_norms_after: likewise, after the clip.
        block_thresholds: likewise, the thresholds of the step.
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
        clip_memory: the threshold's own state, below the threshold's kind as key; () if
            it has none.
        clip_info: the report of the last step.
        clip_names: nested keys without leaves: the clip's name, below it the
            granularity's kind, and below that the labels of groups, if the settings
            give them.
    """

    clip_steps: Int[Array, ""]
    clip_memory: Any
    clip_info: ClipInfo
    clip_names: dict[str, dict[str, dict[str, tuple[()]]]]


def empty_info(dtype: Any, reported_blocks: int | None) -> ClipInfo:
    """Return the report before the first step.

    Args:
        dtype: the dtype of norms.
        reported_blocks: the number of blocks; None for a clip that does not report its
            blocks.
    """
    # Every field gets its own buffer: a state with one buffer twice cannot be donated.
    number = functools.partial(jnp.full, (), dtype=dtype)
    steps = functools.partial(jnp.full, (), dtype=jnp.int32)
    per_block: list[Any] = [(), (), ()]
    if reported_blocks is not None:
        per_block = [jnp.zeros(reported_blocks, dtype) for _ in per_block]
    return ClipInfo(
        norm_before=number(0.0),
        norm_after=number(0.0),
        clip_threshold=number(0.0),
        clip_ratio=number(1.0),
        average_clip_ratio=number(1.0),
        clipped_fraction=number(0.0),
        clipped_steps=steps(0),
        nonfinite_steps=steps(0),
        first_nonfinite_leaf=steps(-1),
        invalid_threshold_steps=steps(0),
        block_norms_before=per_block[0],
        block_norms_after=per_block[1],
        block_thresholds=per_block[2],
    )


def checked_state(state: Any, fresh: Any, remembers: bool, who: Any) -> Any:
    """Return the state to work from, or raise an error that names the difference.

    Args:
        state: the state that was passed to ``update``. None, () and
            ``optax.EmptyState`` stand for a fresh state if the clip has no memory.
        fresh: a function that returns a fresh state.
        remembers: whether the clip has a memory.
        who: the clip, for errors. It is printed only then, since a repr takes time.

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
    """Describe how a state differs from the one expected; "" if it does not."""
    if type(state) is not type(expected):
        return f"expected a {type(expected).__name__}, got {_described(state)}"
    if jax.tree.structure(state) != jax.tree.structure(expected):
        parts = [
            f"{field} should be {_keys(wanted)} and is {_keys(given)}"
            for field, given, wanted in zip(state._fields, state, expected, strict=True)
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
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths
    ]
    if not names:
        return repr(part)
    return f"{{{', '.join(names)}}}"


def keep_if(flag: jax.Array | bool, new: Any, old: Any) -> Any:
    """Return the new tree where a flag is true, else the old one."""
    return jax.tree.map(lambda n, o: jnp.where(flag, n, o), new, old)
