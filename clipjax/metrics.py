"""Metrics of the clips in an optimizer state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .core.checks import require_integer
from .core.state import ClipState
from .core.trees import Leaves
from .wrappers.skip import SkipNonfiniteState
from .wrappers.states import SkipState, states_of

OVER_CLIPPING = 0.5
Numbers = dict[str, jax.Array]


def metrics(
    opt_state: Any,
    params: Any = None,
    *,
    blocks: bool | int = True,
    block_names: Mapping[str, Sequence[str]] | None = None,
) -> Numbers:
    """Return the last step's numbers of every clip in an optimizer state.

    It finds clips inside ``chain``, ``named_chain``, ``masked``, ``partition``,
    ``MultiSteps``, ``inject_hyperparams`` and ``apply_if_finite``, and accepts an
    ``nnx.Optimizer`` or a ``TrainState``. It works under ``jit``, and reads no
    gradient, since the state holds all numbers.

    Each value is a scalar (or batched, if the state is). Keys start with the clip's
    name, ``clip`` by default; a second clip of the same name is ``clip_2``:

    | key | value |
    |---|---|
    | ``clip/grad_norm_raw`` | norm before the clip; inf if there was a NaN |
    | ``clip/grad_norm_clipped`` | norm after the clip |
    | ``clip/clip_ratio`` | clipped / raw; 1 at a zero gradient |
    | ``clip/threshold`` | threshold in force; the least of several (see `ClipInfo`) |
    | ``clip/clipped_fraction`` | fraction of the blocks that were changed |
    | ``clip/nonfinite_count`` | steps with a NaN or inf so far |
    | ``clip/clipped_steps_fraction`` | fraction of all steps so far that were clipped |
    | ``clip/average_clip_ratio`` | running average of the ratio, over some 100 steps |
    | ``clip/over_clipping`` | whether that average is below 0.5 |
    | ``clip/invalid_threshold_count`` | steps with a negative or NaN threshold |
    | ``clip/grad_norm_raw/<block>`` | the same per leaf or group, and likewise
      ``grad_norm_clipped``, ``clip_ratio``, ``threshold`` |

    For a hard clip before SGD, ratios that stay below one half mean that the threshold
    acts as a learning rate; `clipjax.diagnostics.over_clipping` knows other rules and
    optimizers. Before the first step ratios are 1 and all other values 0.
    `clipjax.skip_nonfinite` adds ``skip_nonfinite/skipped_count``, ``…/streak`` and
    ``…/alarm``; `clipjax.skip_on_spike` adds the same, and ``…/is_spike`` and
    ``…/accepted``.

    States hold no names of leaves. Blocks are named as follows:

    | the clip's blocks | names |
    |---|---|
    | groups, by a tree of labels or with a table of thresholds | the labels |
    | leaves, params given | the paths of the leaves |
    | leaves with stacked layers; groups by a function | ``block_names``, or numbers |
    | otherwise | numbers, in the order of the leaves, or of the sorted labels |

    Args:
        opt_state: an optimizer state, or an object with an ``opt_state``.
        params: the parameters, or a tree of that structure, as the clip sees them:
            inside ``optax.masked``, with None for the leaves that are masked. A
            ``TrainState`` brings its own, which are used where they fit.
        blocks: whether to include the numbers of blocks; or how many blocks of each
            clip to include, those with the largest norms. A number waits for the
            device.
        block_names: names of blocks by the name of their clip, such as
            ``{"clip": clip.block_names(params)}``.

    Returns:
        A flat dictionary from name to device array; empty if there is no clip.

    Raises:
        TypeError: opt_state is no optimizer state.
        ValueError: there are more or fewer names than blocks; or ``blocks`` is a number
            under jit.

    Example:
        >>> import clipjax, optax, jax.numpy as jnp
        >>> optimizer = optax.chain(clipjax.clip_by_leaf_norm(1.0), optax.adam(1e-3))
        >>> params = {"bias": jnp.array([0.5]), "kernel": jnp.array([3.0, 4.0])}
        >>> _, state = optimizer.update(params, optimizer.init(params), params)
        >>> numbers = clipjax.metrics(state, params, blocks=1)
        >>> for key in ("clip/clipped_fraction", "clip/grad_norm_raw/kernel"):
        ...     print(key, numbers[key])
        clip/clipped_fraction 0.5
        clip/grad_norm_raw/kernel 5.0
    """
    if not isinstance(blocks, bool):
        require_integer("blocks", blocks, 0)
    states = states_of(opt_state)
    is_given = params is not None
    if not is_given:
        params = getattr(opt_state, "params", None)
    leaf_names = None if params is None else Leaves.of(params).names
    known_names = dict(block_names or {})
    numbers: Numbers = {}
    taken: dict[str, int] = {}
    for state in states:
        prefix = _unique(_name(state), taken)
        if isinstance(state, ClipState):
            found = _totals(state)
            if blocks is not False and _block_count(state):
                own = known_names.pop(prefix, None)
                names = _named_blocks(state, prefix, own, leaf_names, is_given)
                found |= _of_blocks(state, names, blocks)
        else:
            found = _of_skip(state)
        numbers |= {f"{prefix}/{key}": value for key, value in found.items()}
    if known_names and blocks is not False:
        raise ValueError(
            f"block_names has {', '.join(map(repr, known_names))}, and opt_state no "
            f"clip of that name with blocks; it has {', '.join(taken) or 'none'}"
        )
    return numbers


def nonfinite_path(opt_state: Any, tree: Any) -> str | None:
    """Return the path of the first leaf that had a NaN or inf, in the latest bad step.

    The function waits for the device.

    Args:
        opt_state: an optimizer state with a clip or `clipjax.skip_nonfinite` in it.
        tree: the updates, or parameters of the same structure, as the clip sees them:
            inside ``optax.masked``, with None for the leaves that are masked.

    Returns:
        A path such as ``layers/0/kernel``, or None if no step was bad so far.

    Raises:
        TypeError: opt_state is no optimizer state.
        ValueError: the tree has too few leaves, or the state is batched.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.clip_by_global_norm(1.0)
        >>> grads = {"a": jnp.ones(2), "b": jnp.array([1.0, jnp.inf])}
        >>> _, state = clip.update(grads, clip.init(grads))
        >>> clipjax.nonfinite_path(state, grads)
        'b'
    """
    names = Leaves.of(tree).names
    for state in states_of(opt_state):
        if isinstance(state, ClipState):
            found = state.clip_info.first_nonfinite_leaf
        elif isinstance(state, SkipNonfiniteState):
            found = state.nonfinite_leaf
        else:
            continue
        if jnp.ndim(found):
            raise ValueError(
                f"opt_state is a batch of shape {jnp.shape(found)}: pass one of its "
                "states, as jax.tree.map(lambda leaf: leaf[0], opt_state)"
            )
        position = int(found)
        if position >= len(names):
            raise ValueError(
                f"tree has {len(names)} leaves, and leaf number {position} was not "
                "finite: pass the updates that the clip sees"
            )
        if position >= 0:
            return names[position]
    return None


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
    state: ClipState,
    prefix: str,
    own: Sequence[str] | None,
    leaf_names: Sequence[str] | None,
    is_given: bool,
) -> list[str]:
    """Return the names of a clip's blocks.

    Args:
        state: the clip's state.
        prefix: its name.
        own: its entry in ``block_names``.
        leaf_names: the names of the leaves of the parameters.
        is_given: the caller passed those parameters for this purpose.
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
    if kind == "leaf" and leaf_names is not None:
        if len(leaf_names) == count:
            return list(leaf_names)
        if is_given:
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


def _of_blocks(state: ClipState, names: Sequence[str], blocks: bool | int) -> Numbers:
    info = state.clip_info
    before: Any = info.block_norms_before  # an array, in a clip that reports blocks
    after: Any = info.block_norms_after  # inf where the norm before is
    is_usable = (before > 0) & (before < jnp.inf)
    ratio = jnp.where(is_usable, after / jnp.where(is_usable, before, 1), 1)
    columns = {
        "grad_norm_raw": before,
        "grad_norm_clipped": after,
        "clip_ratio": ratio,
        "threshold": info.block_thresholds,
    }
    return {
        f"{key}/{names[position]}": column[..., position]
        for position in _chosen(before, blocks)
        for key, column in columns.items()
    }


def _chosen(norms: jax.Array, blocks: bool | int) -> Sequence[int]:
    """Return the positions of the blocks to report."""
    if blocks is True:
        return range(norms.shape[-1])
    if isinstance(norms, Tracer):
        raise ValueError(
            f"blocks={blocks} picks blocks by their norms, which are not known under "
            "jit: call metrics outside of it, or pass True or False"
        )
    largest = np.max(np.asarray(norms), axis=tuple(range(norms.ndim - 1)))
    return np.argsort(-largest, kind="stable")[:blocks].tolist()
