"""Checks of the numbers that a probe is given."""

from typing import Any

from ..options import Kind


def require(kind: Kind, **arguments: Any) -> None:
    """Raise a ValueError for the first argument that is not of a kind.

    Args:
        kind: what is accepted.
        **arguments: values by the names of the arguments.
    """
"""Checks of the arguments of probes."""

from typing import Any

from ..options import Positive, Whole


def require_whole(**arguments: Any) -> None:
    """Raise ValueError unless each argument is a whole number from 1 on."""
    _require(Whole(), arguments)


def require_positive(**arguments: Any) -> None:
    """Raise ValueError unless each argument is a finite number above 0."""
    _require(Positive(), arguments)


def _require(kind: Whole | Positive, arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        if not kind.accepts(value):
            raise ValueError(f"{name} must be {kind}, got {value!r}")
