"""The numbers of each clip and skip wrapper, with the names of its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.state import ClipState
from ..core.trees import Leaves
from .states import SkipState

# Under a hard clip before SGD, an average ratio below this means that the threshold
# acts as a learning rate; `clipjax.diagnostics.over_clipping` uses the same limit.
OVER_CLIPPING = 0.5
Numbers = dict[str, jax.Array]


class Naming(NamedTuple):
    """The sources of the names of blocks; hashable, so that it can be static under jit.

    Attributes:
        leaf_names: the names of the parameters' leaves; None if they are not known.
        is_given: whether the caller passed the parameters, so that a mismatch is an
            error.
        block_names: pairs of a clip's name and the names of its blocks.
    """

    leaf_names: tuple[str, ...] | None = None
    is_given: bool = False
    block_names: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def of(
        cls,
        opt_state: Any,
        params: Any,
        block_names: Mapping[str, Sequence[str]] | None,
    ) -> Naming:
        """Return the names in parameters, or in those of a ``TrainState``."""
        is_given = params is not None
        if not is_given:
            params = getattr(opt_state, "params", None)
        leaf_names = None if params is None else tuple(Leaves.of(params).names)
        own = [(clip, tuple(names)) for clip, names in (block_names or {}).items()]
        return cls(leaf_names, is_given, tuple(own))


class Section(NamedTuple):
    """The numbers of one clip or skip wrapper.

    Attributes:
        prefix: the prefix of its keys.
        totals: scalars by key.
        names: the names of its blocks.
        columns: by key, one number per block, shape ``(..., blocks)``; the first holds
            the norms before the clip.
    """

    prefix: str
    totals: Numbers
    names: list[str]
    columns: Numbers


def sections(
    states: Sequence[ClipState | SkipState], naming: Naming, blocks: bool
) -> list[Section]:
    """Return the numbers of every state.

    Args:
        states: the states of clips and skip wrappers.
        naming: the sources of the names of blocks.
        blocks: whether to include the numbers of blocks.

    Raises:
        ValueError: there are more or fewer names than blocks.
    """
    own_names = dict(naming.block_names)
    taken: dict[str, int] = {}
    found = []
    for state in states:
        prefix = _unique(_name(state), taken)
        if not isinstance(state, ClipState):
            found.append(Section(prefix, _of_skip(state), [], {}))
        elif blocks and _block_count(state):
            names = _named_blocks(state, prefix, own_names.pop(prefix, None), naming)
            found.append(Section(prefix, _totals(state), names, _of_blocks(state)))
        else:
            found.append(Section(prefix, _totals(state), [], {}))
    if own_names and blocks:
        raise ValueError(
            f"block_names has {', '.join(map(repr, own_names))}, and opt_state no "
            f"clip of that name with blocks; it has {', '.join(taken) or 'none'}"
        )
    return found


def _name(state: ClipState | SkipState) -> str:
    names = state.clip_names if isinstance(state, ClipState) else state.skip_names
    return next(iter(names))


def _unique(name: str, taken: dict[str, int]) -> str:
    """Return a name that is not taken yet, and add it to those taken."""
    prefix = name
    while prefix in taken:
        taken[name] += 1
        prefix = f"{name}_{taken[name]}"
    taken[prefix] = 1
    return prefix


def _named_blocks(
    state: ClipState, prefix: str, own: Sequence[str] | None, naming: Naming
) -> list[str]:
    """Return the names of a clip's blocks.

    Args:
        state: the clip's state.
        prefix: its name.
        own: its entry in ``block_names``.
        naming: the other sources of names.
    """
    count = _block_count(state)
    ((kind, labels),) = state.clip_names[_name(state)].items()
    if own is not None:
        if len(own) != count:
            raise ValueError(
                f"block_names has {len(own)} names for {prefix!r}, which has {count} "
                "blocks"
            )
        return list(own)
    if labels:
        return list(labels)
    leaf_names = naming.leaf_names
    if kind == "leaf" and leaf_names is not None:
        if len(leaf_names) == count:
            return list(leaf_names)
        if naming.is_given:
            raise ValueError(
                f"params has {len(leaf_names)} leaves, and {prefix!r} has {count} "
                "blocks: pass the parameters that the clip sees (inside optax.masked, "
                "with None for those that are masked), or, where leaves stack layers, "
                f"block_names={{{prefix!r}: clip.block_names(params)}}"
            )
    return list(map(str, range(count)))


def _block_count(state: ClipState) -> int:
    norms = state.clip_info.block_norms_before
    return 0 if isinstance(norms, tuple) else norms.shape[-1]


def _of_skip(state: SkipState) -> Numbers:
    keys = ("skipped_count", "streak", "alarm", "is_spike", "accepted")
    return {key: getattr(state, key) for key in keys if hasattr(state, key)}


def _totals(state: ClipState) -> Numbers:
    info = state.clip_info
    dtype = info.norm_before.dtype
    steps = jnp.maximum(state.clip_steps, 1).astype(dtype)
    return {
        "grad_norm_raw": info.norm_before,
        "grad_norm_clipped": info.norm_after,
        "clip_ratio": info.clip_ratio,
        "threshold": info.clip_threshold,
        "clipped_fraction": info.clipped_fraction,
        "nonfinite_count": info.nonfinite_steps,
        "clipped_steps_fraction": info.clipped_steps.astype(dtype) / steps,
        "average_clip_ratio": info.average_clip_ratio,
        "over_clipping": info.average_clip_ratio < OVER_CLIPPING,
        "invalid_threshold_count": info.invalid_threshold_steps,
    }


def _of_blocks(state: ClipState) -> Numbers:
    info = state.clip_info
    before: Any = info.block_norms_before  # an array, in a clip that reports blocks
    after: Any = info.block_norms_after  # inf where the norm before is
    is_usable = (before > 0) & (before < jnp.inf)
    ratio = jnp.where(is_usable, after / jnp.where(is_usable, before, 1), 1)
    thresholds: Any = info.block_thresholds
    return {
        "grad_norm_raw": before,
        "grad_norm_clipped": after,
        "clip_ratio": ratio,
        "threshold": thresholds,
    }
