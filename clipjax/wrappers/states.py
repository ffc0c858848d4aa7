"""Finds the states of clips and of skip wrappers in an optimizer state."""

from __future__ import annotations

from typing import Any

import jax

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


def _is_ours(node: Any) -> bool:
    return isinstance(node, ClipState | SkipState)


def _is_variable(leaf: Any) -> bool:
    # Flax keeps optimizer states in variables.
    return hasattr(leaf, "get_value")


def _value(leaf: Any) -> Any:
    return leaf.get_value() if _is_variable(leaf) else leaf
