"""Checks of the arguments of a recorder."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import require_integer
from ..jax_internals import Tracer


def require_outside_jit(*trees: Any) -> None:
    """Check that no leaf of some trees is traced."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees)):
        raise TypeError(
            "a recorder works outside of jit, grad and scan: return "
            "clipjax.metrics(opt_state, blocks=False) from the traced function, and "
            "pass what lax.scan stacks to extend"
        )


def require_one_state(states: Sequence[Any]) -> None:
    """Check that states of clips and skip wrappers are not batched."""
    for state in states:
        count = state.clip_steps if hasattr(state, "clip_steps") else state.streak
        if jnp.ndim(count):
            raise ValueError(
                f"opt_state is a batch of shape {jnp.shape(count)}: pass one of its "
                "states, as jax.tree.map(lambda leaf: leaf[0], opt_state)"
            )


def require_real(key: str, array: jax.Array, shape: str, is_shaped: bool) -> None:
    """Check a device array by its shape and dtype, without waiting for its numbers.

    Raises:
        TypeError: it is complex, or no array of numbers.
        ValueError: it has another shape than the one described.
    """
    if not is_shaped:
        raise ValueError(f"{key} must have the shape {shape}, got {array.shape}")
    is_number = jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool
    if not is_number or jnp.iscomplexobj(array):
        raise TypeError(f"{key} must be real, got dtype {array.dtype}")


def checked_number(key: str, value: Any) -> float:
    """Return a number that is on the host.

    Raises:
        TypeError: it is not a real number.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not isinstance(value, numbers.Real | np.bool_):
        raise TypeError(f"{key} must be a real number or an array, got {value!r}")
    return float(value)


def checked_step(step: Any) -> int:
    """Return a step's number as a Python integer."""
    if isinstance(step, jax.Array):
        raise TypeError(
            "step must be a Python integer, got an array, which would have to be "
            "fetched: count steps in the loop"
        )
    step = int(step) if isinstance(step, np.integer) else step
    require_integer("step", step, 0)
    return step
