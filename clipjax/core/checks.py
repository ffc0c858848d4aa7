"""Checks of arguments at the time a clip is built.

Every function raises a TypeError for a value of the wrong kind and a ValueError for one
out of range; the message names the argument, the value, and what is accepted. A JAX
array is data, which may be traced, so that only its dtype is checked.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A hyper-parameter: a number that is known, or an array, which may be traced.
Scalar = float | jax.Array


def require_number(
    name: str, value: Any, *, lowest: float = 0.0, infinite: bool = True
) -> None:
    """Check a Python or NumPy number, or every number of a NumPy array.

    Args:
        name: the argument's name, for the message.
        value: the argument.
        lowest: the smallest value that is accepted.
        infinite: whether infinity is accepted.
    """
    accepted = f"a number of at least {lowest:g}" + (
        " (inf: no clip)" if infinite else ", finite"
    )
    if isinstance(value, jax.Array):
        if value.dtype == bool or not jnp.issubdtype(value.dtype, jnp.number):
            raise TypeError(f"{name} must be {accepted}, got dtype {value.dtype}")
        return
    if isinstance(value, np.ndarray):
        for entry in value.reshape(-1).tolist():
            require_number(name, entry, lowest=lowest, infinite=infinite)
        return
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {accepted}, got {value!r}")
    if math.isnan(value) or value < lowest or (math.isinf(value) and not infinite):
        raise ValueError(f"{name} must be {accepted}, got {value!r}")


def require_fraction(name: str, value: Any) -> None:
    """Check a number from 0 to 1."""
    require_number(name, value, infinite=False)
    if not isinstance(value, jax.Array) and value > 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")


def require_integer(name: str, value: Any, lowest: int, hint: str = "") -> None:
    """Check a Python integer: one that fixes shapes, so that it cannot be traced."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be an integer of at least {lowest}, got {value!r}{hint}"
        )
    if value < lowest:
        raise ValueError(
            f"{name} must be an integer of at least {lowest}, got {value!r}"
        )


def require_steps(name: str, value: Any) -> None:
    """Check a number of steps that fixes the shape of a state."""
    hint = "; with optax.inject_hyperparams, name it in static_args"
    require_integer(name, value, 1, hint)


def require_limits(floor: Any, cap: Any) -> None:
    """Check the smallest and the largest threshold, and their order."""
    require_number("floor", floor, infinite=False)
    lowest = 0.0 if isinstance(floor, jax.Array) else float(floor)
    require_number("cap", cap, lowest=lowest)


def require_bool(name: str, value: Any) -> None:
    """Check a Python bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Check that a string is one of several."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def require_part(name: str, value: Any, kind: type, example: str) -> None:
    """Check that a slot of a clip holds a part of the right kind."""
    if not isinstance(value, kind):
        raise TypeError(
            f"{name} must be a {kind.__name__} such as {example}, got {value!r}"
        )
