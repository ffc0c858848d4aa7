"""Checks of the numbers that a probe is given on the command line."""

import math


def require_counts(lowest: int = 1, /, **counts: object) -> None:
    """Refuse anything but integers of at least `lowest`.

    Raises:
        ValueError: naming the argument, its value and what is accepted.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ValueError(
                f"{name} must be an integer of at least {lowest}, got {value!r}"
            )


def require_positive(**numbers: float) -> None:
    """Refuse anything but finite numbers above 0.

    Raises:
        ValueError: naming the argument, its value and what is accepted.
    """
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
"""Checks of the arguments of probes."""

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
