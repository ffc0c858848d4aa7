"""A search for the states of clips and of skip wrappers in an optimizer state."""

from __future__ import annotations

from typing import Any

import jax
import optax

from ..core.state import ClipState
from .skip import SkipNonfiniteState
from .spike import SkipOnSpikeState

SkipState = SkipNonfiniteState | SkipOnSpikeState


def states_in(opt_state: Any) -> list[ClipState | SkipState]:
    """Return the states of all clips and skip wrappers, outer ones first."""
    found = []

    def visit(tree: Any) -> None:
        for node in jax.tree.leaves(tree, is_leaf=_is_ours):
            if isinstance(node, SkipState):
                found.append(node)
                visit(node.inner_state)
            elif isinstance(node, ClipState):
                found.append(node)

    visit(opt_state)
    return [jax.tree.map(_value, state, is_leaf=_is_variable) for state in found]


def states_of(opt_state: Any) -> list[ClipState | SkipState]:
    """Return the states of clips and skip wrappers of a user's optimizer state.

    Args:
        opt_state: an optimizer state, or an object with an ``opt_state``.

    Raises:
        TypeError: it is neither.
    """
    accepted = (
        "opt_state must be an optimizer state, as init or update returns it, or an "
        "object with an opt_state, such as a TrainState"
    )
    if opt_state is None or isinstance(opt_state, type | optax.GradientTransformation):
        what = "a gradient transformation" if opt_state else "None"
        raise TypeError(f"{accepted}, got {what}")
    opt_state = getattr(opt_state, "opt_state", opt_state)
    states = states_in(opt_state)
    # Optax and its users write states as named tuples.
    is_state = lambda node: hasattr(node, "_fields")  # noqa: E731
    nodes = jax.tree.leaves(opt_state, is_leaf=is_state)
    if not states and nodes and not any(map(is_state, nodes)):
        raise TypeError(
            f"{accepted}, got a {type(opt_state).__name__} that holds neither a clip's "
            "state nor any other: it looks like parameters, or like a checkpoint that "
            "was restored without its structure"
        )
    return states


def skip_states_of(opt_state: Any) -> list[SkipState]:
    """Return the states of skip wrappers of a user's optimizer state."""
    return [state for state in states_of(opt_state) if isinstance(state, SkipState)]


def _is_ours(node: Any) -> bool:
    return isinstance(node, ClipState | SkipState)


def _is_variable(leaf: Any) -> bool:
    # Flax keeps optimizer states in variables.
    return hasattr(leaf, "get_value")


def _value(leaf: Any) -> Any:
    return leaf.get_value() if _is_variable(leaf) else leaf
