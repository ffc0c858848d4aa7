"""A reader of the steps that skip wrappers have skipped."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..core.trees import Leaves
from ..granularity import Granularity
from ..granularity import leaf as each_leaf
from .record import NONE
from .spike import SkipOnSpikeState
from .states import SkipState, skip_states_of


class SkippedStep(NamedTuple):
    """One step that a skip wrapper skipped.

    Attributes:
        wrapper: the wrapper's name.
        step: the number of updates before this one, including skipped ones.
        batch_id: the identifier that was passed to update, or None.
        block: the name of the leaf or block that was the reason, its number if names
            are not known, or None if it was none of them: a spike in the loss, or in
            the norm of the whole gradient.
    """

    wrapper: str
    step: int
    batch_id: int | None
    block: str | None


def skipped_steps(
    opt_state: Any,
    params: Any = None,
    *,
    granularity: Granularity = each_leaf(),  # noqa: B008  a frozen dataclass
) -> list[SkippedStep]:
    """Return the latest steps that `skip_nonfinite` and `skip_on_spike` skipped.

    A wrapper remembers the latest ``record_size`` of them. `skip_nonfinite` names the
    first leaf with NaN or inf; `skip_on_spike`, with ``granularity``, the leaf or group
    whose norm was furthest above its limit. The function waits for the device.

    Args:
        opt_state: an optimizer state, or an object with an ``opt_state``.
        params: the parameters, or a tree of that structure, as the wrapper sees them.
            Without them leaves are numbered, except for a ``TrainState``, which
            contains parameters.
        granularity: that of `skip_on_spike`.

    Returns:
        Steps by wrapper, outer ones first, and from the oldest to the latest. An inner
        wrapper counts only the steps that the outer one accepted.

    Raises:
        TypeError: opt_state is not an optimizer state.
        ValueError: params or granularity are not those that the wrapper sees, or the
            state is batched.

    Example:
        >>> import clipjax, optax, jax.numpy as jnp
        >>> optimizer = clipjax.skip_nonfinite(optax.sgd(0.1))
        >>> params = {"bias": jnp.ones(2), "kernel": jnp.ones(3)}
        >>> state = optimizer.init(params)
        >>> bad = params | {"kernel": jnp.array([1.0, jnp.nan, 1.0])}
        >>> for batch_id, grads in enumerate([params, bad, params]):
        ...     _, state = optimizer.update(grads, state, params, batch_id=batch_id)
        >>> clipjax.skipped_steps(state, params)
        [SkippedStep(wrapper='skip_nonfinite', step=1, batch_id=1, block='kernel')]
    """
    if params is None:
        params = getattr(opt_state, "params", None)
    leaves = None if params is None else Leaves.of(params)
    found = []
    for state in skip_states_of(opt_state):
        rows = np.asarray(state.skip_record.skipped_rows)
        if rows.ndim > 2:
            raise ValueError(
                f"opt_state is a batch of shape {rows.shape[:-2]}: pass one of its "
                "states, as jax.tree.map(lambda leaf: leaf[0], opt_state)"
            )
        (name,) = state.skip_names
        for step, batch_id, block in sorted(rows.tolist()):
            if step != NONE:
                named = _named(state, block, leaves, granularity)
                known_id = None if batch_id == NONE else batch_id
                found.append(SkippedStep(name, step, known_id, named))
    return found


def _named(
    state: SkipState, block: int, leaves: Leaves | None, granularity: Granularity
) -> str | None:
    """Return the name of a block, or None for no block."""
    if block == NONE:
        return None
    own: Granularity = each_leaf()
    if isinstance(state, SkipOnSpikeState):
        ((watched,),) = state.skip_names.values()
        own = granularity
        if repr(granularity) != watched:
            raise ValueError(
                f"granularity must be that of skip_on_spike, {watched}, got "
                f"{granularity!r}"
            )
    if leaves is None:
        return str(block)
    names = own.names(leaves)
    if block >= len(names):
        raise ValueError(
            f"params has {len(names)} blocks, and number {block} was the reason for a "
            "skipped step: pass the parameters that the wrapper sees"
        )
    return names[block]
