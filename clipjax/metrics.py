"""Reads what clips have measured, from any optimizer state, without a host sync."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .casts import accumulation_dtype, widen
from .distributed import split_over
from .floats import scaling_power
from .granularity import Leaf
from .measurement import measure
from .norms import Norm, l2
from .order import at_hand
from .report import ClipState
from .skip import SkipNonfiniteState
from .spike import SkipOnSpikeState
from .trees import NamedLeaves

OVER_CLIPPING = 0.5
Skip = SkipNonfiniteState | SkipOnSpikeState
Ours = ClipState | Skip


def metrics(opt_state: Any) -> dict[str, jax.Array]:
    """Finds every clip in an optimizer state and returns its last step's numbers.

    Works through ``chain``, ``named_chain``, ``masked``, ``partition``,
    ``MultiSteps``, ``inject_hyperparams``, ``apply_if_finite`` and on an
    ``nnx.Optimizer`` or ``TrainState``; inside jit as well as outside. It computes
    nothing over the gradient: all is in the state already.

    The keys, each a scalar (or batched, if the state is), below the clip's name, which
    is ``clip`` by default; a second clip of the same name is ``clip_2``:

    | key | value |
    |---|---|
    | ``clip/grad_norm_raw`` | norm before the clip |
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

    A long run of ratios below one half means, for a hard clip before SGD, that the
    threshold acts as a learning rate. Before the first step all values are NaN, and
    counts 0. `clipjax.skip_nonfinite` adds ``skip_nonfinite/skipped_count``,
    ``…/streak`` and ``…/alarm``, and `clipjax.skip_on_spike` likewise, with
    ``…/is_spike`` and ``…/accepted`` besides.

    Args:
        opt_state: an optimizer state, or an object with an ``opt_state``.

    Returns:
        A flat dictionary from name to device array; empty if there is no clip.

    Example:
        >>> import clipjax, optax, jax.numpy as jnp
        >>> optimizer = optax.chain(clipjax.clip_by_global_norm(1.0), optax.adam(1e-3))
        >>> params = jnp.array([3.0, 4.0])
        >>> _, state = optimizer.update(params, optimizer.init(params), params)
        >>> print(clipjax.metrics(state)["clip/grad_norm_raw"])
        5.0
    """
    numbers: dict[str, jax.Array] = {}
    names: dict[str, int] = {}
    for state in states_in(opt_state):
        name = next(iter(_names(state)))
        prefix = name
        while prefix in names:
            names[name] += 1
            prefix = f"{name}_{names[name]}"
        names[prefix] = 1
        found = _of_clip(state) if isinstance(state, ClipState) else _of_skip(state)
        numbers |= {f"{prefix}/{key}": value for key, value in found.items()}
    return numbers


def nonfinite_path(opt_state: Any, tree: Any) -> str | None:
    """Gives the path of the first leaf that had a NaN or inf, in the latest bad step.

    This reads a number from the device.

    Args:
        opt_state: an optimizer state with a clip or `clipjax.skip_nonfinite` in it.
        tree: the updates, or parameters of the same structure.

    Returns:
        A path such as ``layers/0/kernel``, or None if no step was bad so far.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.clip_by_global_norm(1.0)
        >>> grads = {"a": jnp.ones(2), "b": jnp.array([1.0, jnp.inf])}
        >>> _, state = clip.update(grads, clip.init(grads))
        >>> clipjax.nonfinite_path(state, grads)
        'b'
    """
    names = list(NamedLeaves.of(tree).arrays)
    for state in states_in(opt_state):
        if isinstance(state, SkipOnSpikeState):
            continue
        info = state.info if isinstance(state, ClipState) else state
        position = int(info.nonfinite_leaf)
        # Inside of optax.masked, a clip sees some of the leaves only.
        seen = [name for name in names if name in info.leaves]
        if len(seen) < len(info.leaves):
            raise ValueError(
                f"tree has {len(seen)} of the {len(info.leaves)} leaves that the state "
                "speaks of: pass the updates that the optimizer sees"
            )
        if position >= 0:
            return seen[position]
    return None


def leaf_norms(tree: Any, norm: Norm = l2) -> dict[str, jax.Array]:
    """Measures each leaf of a tree, safely at any magnitude.

    Args:
        tree: gradients, updates or parameters.
        norm: how a leaf is measured.

    Returns:
        A dictionary from the leaf's path to its norm, a float32 scalar (float64 where
        any leaf is).

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> print(clipjax.leaf_norms({"w": jnp.array([3.0, 4.0])})["w"])
        5.0
    """
    leaves = NamedLeaves.of(tree)
    names = Leaf().names(leaves)
    split = split_over(leaves, None)
    norms = measure(norm, Leaf(), at_hand(leaves), names, split).norms
    return {name: norms[i] for i, name in enumerate(names)}


def direction_cosine(before: Any, after: Any) -> jax.Array:
    """Measures how far a clip has turned a gradient: 1 if not at all.

    A clip by the norm of the whole tree gives 1. A clip by value of independent
    Gaussian entries tends to √(2/π) ≈ 0.798 for small thresholds; other distributions
    give other values.

    Args:
        before: a tree of real or complex arrays.
        after: a tree of the same structure.

    Returns:
        The cosine of the angle between them as one vector; NaN if either is zero.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> raw = jnp.array([3.0, 4.0])
        >>> print(f"{clipjax.direction_cosine(raw, jnp.clip(raw, -1.0, 1.0)):.4f}")
        0.9899
    """
    first, second = map(_near_one, (before, after))
    products = [
        jnp.sum(jnp.real(leaf * jnp.conj(second.arrays[name])))
        for name, leaf in first.arrays.items()
    ]
    norms = [list(leaf_norms(tree.tree()).values()) for tree in (first, second)]
    lengths = [l2.combine(jnp.stack(some), jnp.ones(len(some))) for some in norms]
    return sum(products[1:], products[0]) / (lengths[0] * lengths[1])


def _near_one(tree: Any) -> NamedLeaves:
    """Brings the largest entry near one: neither products nor norms overflow."""
    leaves = NamedLeaves.of(tree)
    dtype = accumulation_dtype(leaves)
    wide = leaves.map(lambda leaf: widen(leaf, dtype))
    peaks = [jnp.max(jnp.abs(leaf), initial=0) for leaf in wide.arrays.values()]
    power = scaling_power(jnp.max(jnp.stack(peaks)))
    return wide.map(lambda leaf: leaf * power)


def states_in(opt_state: Any) -> list[Ours]:
    """Finds the states of all clips and skips in an optimizer state."""
    found = []

    def visit(tree: Any) -> None:
        for node in jax.tree.leaves(tree, is_leaf=_is_ours):
            if isinstance(node, Skip):
                found.append(node)
                visit(node.inner_state)
            elif isinstance(node, ClipState):
                found.append(node)

    visit(getattr(opt_state, "opt_state", opt_state))
    return [jax.tree.map(_unwrapped, state, is_leaf=_is_wrapped) for state in found]


def _is_ours(node: Any) -> bool:
    return isinstance(node, Ours)


def _is_wrapped(leaf: Any) -> bool:
    # Flax keeps optimizer states in variables that know how to give their value.
    return hasattr(leaf, "get_value")


def _unwrapped(leaf: Any) -> Any:
    return leaf.get_value() if _is_wrapped(leaf) else leaf


def _names(state: Ours) -> dict[str, Any]:
    return state.info.names if isinstance(state, ClipState) else state.names


def _of_skip(state: Skip) -> dict[str, jax.Array]:
    keys = ("skipped_count", "streak", "alarm", "is_spike", "accepted")
    return {key: getattr(state, key) for key in keys if hasattr(state, key)}


def _of_clip(state: ClipState) -> dict[str, jax.Array]:
    info = state.info
    counted = jnp.maximum(state.count, 1).astype(info.norm.dtype)
    numbers = {
        "grad_norm_raw": info.norm,
        "grad_norm_clipped": info.clipped_norm,
        "clip_ratio": info.factor,
        "threshold": info.threshold,
        "clipped_fraction": info.clipped_fraction,
        "nonfinite_count": info.nonfinite_count,
        "clipped_steps_fraction": info.clipped_steps.astype(info.norm.dtype) / counted,
        "average_clip_ratio": info.average_factor,
        "over_clipping": info.average_factor < OVER_CLIPPING,
        "invalid_threshold_count": info.invalid_threshold_count,
    }
    columns = {
        "grad_norm_raw": "norm",
        "grad_norm_clipped": "clipped_norm",
        "clip_ratio": "factor",
        "threshold": "threshold",
    }
    for position, block in enumerate(state.block_names):
        for key, field in columns.items():
            numbers[f"{key}/{block}"] = getattr(info.blocks, field)[..., position]
    return numbers
