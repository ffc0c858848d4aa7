"""The text of a setting in a repr: of a number, an array, a function."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


def changed_settings(part: Any, skip: int = 0) -> list[str]:
    """Return the fields of a part that are not at their default, as ``name=value``.

    Args:
        part: a dataclass.
        skip: how many fields to leave out at the start.
    """
    return [
        f"{field.name}={printed(value)}"
        for field in dataclasses.fields(part)[skip:]
        # An array may be traced, as by optax.inject_hyperparams: it has no value yet.
        if isinstance(value := getattr(part, field.name), jax.Array)
        or value != field.default
    ]


def printed(value: Any) -> str:
    """Return a setting as the repr of a clip shows it."""
    if isinstance(value, tuple):
        return ", ".join(map(repr, value))
    if isinstance(value, jax.Array):
        return f"array{list(value.shape)}" if value.ndim else "array"
    if callable(value):
        return getattr(value, "__qualname__", repr(value)).split(".")[0]
    return f"{value:g}" if isinstance(value, float) else repr(value)
