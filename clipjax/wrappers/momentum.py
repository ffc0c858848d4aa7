"""The momentum in an optimizer's state."""

from __future__ import annotations

from typing import Any

import jax


def momentum_of(opt_state: Any) -> Any:
    """Return the momentum in an optimizer's state: a tree like the parameters.

    It is the field ``mu`` of Adam, Lion and their like, or the field ``trace`` of
    ``optax.trace``, which SGD with momentum uses.

    Args:
        opt_state: an optimizer state, or an object with an ``opt_state``.

    Raises:
        ValueError: there is none, or more than one, as with ``optax.partition``.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from clipjax.monitoring import momentum_of
        >>> state = optax.adam(0.1).init({"w": jnp.zeros(2)})
        >>> print(momentum_of(state))
        {'w': Array([0., 0.], dtype=float32)}
    """
    opt_state = getattr(opt_state, "opt_state", opt_state)
    nodes = jax.tree.leaves(
        opt_state, is_leaf=lambda node: bool(_momentum_fields(node))
    )
    found = [getattr(node, name) for node in nodes for name in _momentum_fields(node)]
    if len(found) != 1:
        raise ValueError(
            "opt_state must hold one momentum, a field mu or trace of a named tuple, "
            f"got {len(found)}: pass the state of one optimizer, or the tree itself as "
            "momentum"
        )
    return found[0]


def _momentum_fields(node: Any) -> list[str]:
    fields = getattr(node, "_fields", ())
    return [name for name in ("mu", "trace") if name in fields]
