"""Checks of a probe's arguments."""

from typing import Any

from ..options import Kind


def require(kind: Kind, **arguments: Any) -> None:
    """Raise a ValueError for the first argument that is not of a kind.

    Args:
        kind: what is accepted.
        **arguments: values by the names of the arguments.
    """
    for name, value in arguments.items():
        if not kind.accepts(value):
            raise ValueError(f"{name} must be {kind}, got {value!r}")
