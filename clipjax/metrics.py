"""Metrics of the clips in an optimizer state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .core.checks import require_integer
from .core.state import ClipState
from .core.trees import Leaves
from .jax_internals import Tracer
from .wrappers.sections import Naming, Numbers, sections
from .wrappers.skip import SkipNonfiniteState
from .wrappers.states import states_of


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
    ``nnx.Optimizer`` or a ``TrainState``. It works under ``jit``, and does not read the
    gradient, since the state stores all numbers.

    Each value is a scalar (or batched, if the state is). Keys start with the clip's
    name, ``clip`` by default; a second clip of the same name is ``clip_2``:

    | key | value |
    |---|---|
    | ``clip/grad_norm_raw`` | norm before the clip; inf if there was a NaN |
    | ``clip/grad_norm_clipped`` | norm after the clip |
    | ``clip/clip_ratio`` | clipped / raw; 1 at a zero gradient |
    | ``clip/threshold`` | threshold; the least of several (see `ClipInfo`) |
    | ``clip/clipped_fraction`` | fraction of the blocks that were changed |
    | ``clip/nonfinite_count`` | steps with a NaN or inf so far |
    | ``clip/clipped_steps_fraction`` | fraction of all steps so far that were clipped |
    | ``clip/average_clip_ratio`` | running average of the ratio, over about 100 steps |
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

    States do not store the names of leaves. Blocks are named as follows:

    | the clip's blocks | names |
    |---|---|
    | groups, by a tree of labels or with a table of thresholds | the labels |
    | leaves, params given | the paths of the leaves |
    | leaves with stacked layers; groups by a function | ``block_names``, or numbers |
    | otherwise | numbers, in the order of the leaves, or of the sorted labels |

    Args:
        opt_state: an optimizer state, or an object with an ``opt_state``.
        params: the parameters, or a tree of that structure, as the clip sees them:
            inside ``optax.masked``, with None for the leaves that are masked. Without
            this argument, the parameters of a ``TrainState`` are used if they have the
            clip's number of leaves.
        blocks: whether to include the numbers of blocks; or how many blocks of each
            clip to include, those with the largest norms. With a number, the call waits
            for the device.
        block_names: names of blocks by the name of their clip, such as
            ``{"clip": clip.block_names(params)}``.

    Returns:
        A flat dictionary from name to device array; empty if there is no clip.

    Raises:
        TypeError: opt_state is not an optimizer state.
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
    naming = Naming.of(opt_state, params, block_names)
    numbers: Numbers = {}
    for prefix, totals, names, columns in sections(states, naming, blocks is not False):
        numbers |= {f"{prefix}/{key}": value for key, value in totals.items()}
        chosen = _chosen(next(iter(columns.values())), blocks) if columns else ()
        numbers |= {
            f"{prefix}/{key}/{names[position]}": column[..., position]
            for position in chosen
            for key, column in columns.items()
        }
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
        TypeError: opt_state is not an optimizer state.
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
