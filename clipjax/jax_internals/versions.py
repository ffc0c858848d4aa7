"""The releases of JAX that clipjax is tested with, and the error for other ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

OLDEST = "0.10.2"
NEWEST = "0.12"

P = ParamSpec("P")
R = TypeVar("R")


def unsupported(error: Exception) -> ImportError:
    """Return the error that says which releases have the name that is missing."""
    return ImportError(
        f"clipjax supports JAX {OLDEST} to {NEWEST}, and this is JAX "
        f"{jax.__version__}, which lacks a name that clipjax uses: {error}"
    )


def reads_internals(function: Callable[P, R]) -> Callable[P, R]:
    """Name the supported releases where an attribute or a parameter is missing."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (AttributeError, KeyError) as error:
            raise unsupported(error) from error

    return run
