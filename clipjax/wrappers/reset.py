"""A wrapper that resets an optimizer's moments at regular intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ..core.checks import require_bool, require_integer
from ..core.dtypes import narrow, widen
from ..core.state import ClipState
from ..core.trees import Leaves, is_clippable, path_name
from .inner import as_transformation, checked_own_state, state_before_if

RAMP_START = 0.01


class PeriodicResetState(NamedTuple):
    """The state of `periodic_reset`.

    Attributes:
        position: int32 position of the latest update in the period, from 0, a reset, to
            ``every - 1``; 0 before the first update.
        reset_count: int32 number of resets so far.
        inner_state: the state of the wrapped optimizer.
    """

    position: Int[Array, ""]
    reset_count: Int[Array, ""]
    inner_state: Any


def periodic_reset(
    inner: optax.GradientTransformation,
    every: int,
    *,
    warmup_steps: int = 0,
    select: Callable[[str, Any], bool] | None = None,
    counters: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Reset an optimizer's moments to their initial values every so many steps.

    Updates number ``every``, ``2 · every``, … (from 1) start from the moments of
    ``inner.init(params)``, which are zero for Adam. After a reset, updates are
    multiplied by a ramp, where :math:`k` counts them from 0 and :math:`N` is
    ``warmup_steps``:

    .. math:: 0.01 + 0.99 \, (1 - \cos(\pi k / (N + 1))) / 2, \qquad k < N

    By default the reset applies to the floating-point and complex arrays of each tree
    that mirrors the parameters, such as ``mu`` and ``nu`` of Adam and the trace of SGD,
    as ``optax.tree_map_params`` finds them. A learning rate and the states of clips are
    not reset.

    SPAM is ``every=500, warmup_steps=150`` around Adam. It keeps Adam's count. Hence
    the bias correction is missing after a reset, and the first update is about 3.2
    times that of a fresh Adam with the usual decays, which the ramp compensates for;
    ``counters=True`` resets the count as well. The ramp multiplies the whole update of
    ``inner``, so keep weight decay outside, after this wrapper in the chain, and
    ``optax.MultiSteps`` around it.

    | input | result |
    |---|---|
    | no reset yet | exactly the updates of ``inner`` |
    | every 1 | moments never accumulate |
    | after the ramp | bit-identical to ``inner``'s updates |
    | bfloat16 updates | multiplied in float32, rounded once |
    | integer, float0, PRNG-key, None leaves | unchanged |
    | a state that is not this wrapper's, None included | ValueError |

    Args:
        inner: the optimizer.
        every: period in steps, at least 1.
        warmup_steps: length of the ramp after each reset, below ``every``; 0 for none.
            There is no ramp at the start of training.
        select: which leaves of the inner state to reset instead: a function of a path
            such as ``0/mu/dense/kernel`` and the leaf. None for the rule above.
        counters: whether to reset also the integer counters in the same state as such
            moments, such as Adam's count; not that of a schedule in the chain.

    Returns:
        An ``optax.GradientTransformationExtraArgs``, whose update needs ``params``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a number is out of range, both ``select`` and ``counters`` are
            given, or update is not given ``params``; ``inner.init`` fails on the
            placeholder of ``optax.tree_map_params``, and there is no ``select``.

    Example:
        >>> import clipjax, optax, jax.numpy as jnp
        >>> optimizer = clipjax.periodic_reset(optax.trace(decay=1.0), every=3)
        >>> params = jnp.zeros(2)
        >>> state = optimizer.init(params)
        >>> for _ in range(4):
        ...     updates, state = optimizer.update(jnp.ones(2), state, params)
        ...     print(updates)
        [1. 1.]
        [2. 2.]
        [1. 1.]
        [2. 2.]

    References:
        Huang, Zhu, Jin, Liu, Wang, Liu, `SPAM: Spike-aware Adam with momentum reset
        for stable LLM training <https://arxiv.org/abs/2501.06842>`_, 2025
    """
    inner = as_transformation("inner", inner)
    require_integer("every", every, lowest=1)
    require_integer("warmup_steps", warmup_steps, lowest=0)
    if warmup_steps >= every:
        raise ValueError(f"warmup_steps must be below {every=}, got {warmup_steps!r}")
    if select is not None and not callable(select):
        raise TypeError(f"select must be a function of path and leaf, got {select!r}")
    require_bool("counters", counters)
    if select is not None and counters:
        raise ValueError("counters=True goes with select=None: let select pick them")

    def fresh(inner_state: Any) -> PeriodicResetState:
        position, count = (jnp.zeros((), jnp.int32) for _ in range(2))
        return PeriodicResetState(position, count, inner_state)

    def init(params: Any) -> PeriodicResetState:
        return fresh(inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, PeriodicResetState]:
        state = checked_own_state(state, fresh, "periodic_reset")
        if params is None:
            raise ValueError(
                "periodic_reset needs params: call update(updates, state, params)"
            )
        position = (state.position + 1) % every
        is_due = position == 0
        if select is not None:
            picked = _selected(state.inner_state, select)
        else:
            picked = _moments(inner, state.inner_state)
            if counters:
                picked = _with_counters(picked, state.inner_state, params)
        inner_state = jax.tree.map(
            lambda pick, old, new: state_before_if(~is_due, old, new) if pick else old,
            picked,
            state.inner_state,
            inner.init(params),
        )
        updates, inner_state = inner.update(updates, inner_state, params, **extra)
        reset_count = jnp.where(
            is_due, optax.safe_increment(state.reset_count), state.reset_count
        )
        if warmup_steps:
            is_warming = (reset_count > 0) & (position < warmup_steps)
            updates = _ramped(updates, is_warming, position, warmup_steps)
        return updates, PeriodicResetState(position, reset_count, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _moments(inner: optax.GradientTransformation, state: Any) -> Any:
    """Return whether each leaf of a state is a moment of a parameter."""
    try:
        picked = optax.tree_map_params(
            inner, is_clippable, state, transform_non_params=lambda leaf: False
        )
    except Exception as error:
        raise ValueError(
            "periodic_reset cannot tell which leaves of inner's state are moments, "
            f"since optax.tree_map_params fails: {error}; choose them with select"
        ) from error
    is_clip = lambda node: isinstance(node, ClipState)  # noqa: E731
    return jax.tree.map(
        lambda pick: jax.tree.map(lambda _: False, pick) if is_clip(pick) else pick,
        picked,
        is_leaf=is_clip,
    )


def _with_counters(picked: Any, state: Any, params: Any) -> Any:
    """Add the integers that are fields of a state with picked moments."""
    of_params = {path for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    lengths = {len(path) for path in of_params}
    owners = {
        path[: len(path) - length - 1]
        for path, pick in jax.tree_util.tree_leaves_with_path(picked)
        for length in lengths
        if pick and path[len(path) - length :] in of_params
    }

    def one(path: tuple[Any, ...], pick: bool, leaf: Any) -> bool:
        is_integer = jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
        return pick or (is_integer and path[:-1] in owners)

    return jax.tree_util.tree_map_with_path(one, picked, state)


def _selected(state: Any, select: Callable[[str, Any], bool]) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: bool(select(path_name(path), leaf)), state
    )


def _ramped(
    updates: Any, is_warming: jax.Array, position: jax.Array, steps: int
) -> Any:
    leaves = Leaves.of(updates)
    angle = jnp.pi * position.astype(leaves.dtype) / (steps + 1)
    factor = RAMP_START + (1 - RAMP_START) * (1 - jnp.cos(angle)) / 2

    def scaled(leaf: jax.Array) -> jax.Array:
        wide = widen(leaf, leaves.dtype)
        return narrow(wide * factor.astype(wide.dtype), leaf)

    return leaves.tree(
        leaves.map(lambda leaf: jnp.where(is_warming, scaled(leaf), leaf))
    )
