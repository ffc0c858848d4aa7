"""Clips of clipjax beside Optax's clips of the same kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import clipjax


class Pair(NamedTuple):
    """Two clips to compare."""

    clipjax: optax.GradientTransformation
    optax: optax.GradientTransformation


def without_report(recipe: Callable[..., Any], *args: Any) -> Any:
    """Call a recipe with ``report=False``, if that is one of its parameters."""
    has_report = "report" in inspect.signature(recipe).parameters
    return recipe(*args, **({"report": False} if has_report else {}))


def pairs() -> dict[str, Pair]:
    """Return all comparisons by name."""
    return {
        "global": Pair(
            clipjax.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
        ),
        "entries": Pair(without_report(clipjax.clip_by_value, 0.01), optax.clip(0.01)),
        "block rms": Pair(
            clipjax.clip_by_block_rms(0.01), optax.clip_by_block_rms(0.01)
        ),
        "AGC": Pair(clipjax.adaptive_grad_clip(0.01), optax.adaptive_grad_clip(0.01)),
    }
