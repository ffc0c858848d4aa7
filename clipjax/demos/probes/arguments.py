"""Checks of the numbers that a probe is given on the command line."""

import math


def require_count(name: str, value: object, lowest: int = 1) -> None:
    """Refuse anything but an integer of at least `lowest`.

    Raises:
        ValueError: naming the argument, its value and what is accepted.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(
            f"{name} must be an integer of at least {lowest}, got {value!r}"
        )


def require_positive(name: str, value: float) -> None:
    """Refuse anything but a finite number above 0.

    Raises:
        ValueError: naming the argument, its value and what is accepted.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
