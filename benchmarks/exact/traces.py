"""How often a step is traced, when its thresholds change from step to step."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..costs import COUNTED_ONLY
from ..recipes import Call, call

NEW_THRESHOLD = "traces, new threshold"
SCHEDULE = "traces, schedule"
FACTORS = 1.0, 0.75, 0.5
SHAPES = {"first": (4, 4), "second": (4, 4)}


def count(recipe: str | None) -> dict[str, float]:
    """Count the traces of three steps, by how a recipe's numbers change.

    Those that may be arrays are multiplied by an argument of the step. Those that may
    be schedules fall from step to step.
    """
    if recipe is None:
        return {}
    made = call(recipe, SHAPES)
    given = arguments(made)
    arrays = arguments(made, "Scalar", "ThresholdLike")
    schedules = arguments(made, "ScalarOrSchedule", "ThresholdLike")

    def multiplied(factor: jax.Array) -> Any:
        return made.recipe(**given | jax.tree.map(lambda x: x * factor, arrays))

    def scheduled(_: jax.Array) -> Any:
        return made.recipe(**given | jax.tree.map(falling, schedules))

    found = {NEW_THRESHOLD: traces(multiplied)}
    return found | ({SCHEDULE: traces(scheduled)} if schedules else {})


def arguments(made: Call, *kinds: str) -> dict[str, Any]:
    """Return all arguments of a call, or the numbers whose annotation names a kind."""
    signature = inspect.signature(made.recipe)
    bound = signature.bind(*made.arguments, **made.keywords)
    bound.apply_defaults()
    return {
        name: value
        for name, value in bound.arguments.items()
        if not kinds
        or isinstance(value, float | dict)
        and any(kind in str(signature.parameters[name].annotation) for kind in kinds)
    }


def falling(value: float) -> Callable[[jax.Array], jax.Array]:
    """Return a schedule that starts with a value."""
    return lambda count: value * 0.75**count


def traces(make_clip: Callable[[jax.Array], Any]) -> float:
    """Run three steps of one jitted function, and return how often it was traced."""
    grads = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    traced = 0

    def init(factor: jax.Array) -> Any:
        return make_clip(factor).init(grads)

    def step(factor: jax.Array, state: Any) -> Any:
        nonlocal traced
        traced += 1
        return make_clip(factor).update(grads, state, grads)[1]

    jit = functools.partial(jax.jit, compiler_options=COUNTED_ONLY)
    jitted, state = jit(step), jit(init)(np.float32(1))
    for factor in FACTORS:
        state = jitted(np.float32(factor), state)
    return traced
