"""The loop that probes of optimization share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def descend(
    optimizer: optax.GradientTransformation,
    gradient: Callable[[Any, jax.Array], Any],
    start: Any,
    steps: int,
) -> Any:
    """Return the path of an optimizer.

    Args:
        optimizer: what turns gradients into updates, such as a chain of a clip and SGD.
        gradient: a function of the parameters and of the number of the step, from 0.
        start: the parameters before the first step.
        steps: the number of steps.

    Returns:
        The parameters after each step, along a leading axis of length `steps`.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry: tuple[Any, Any], index: jax.Array) -> tuple[tuple[Any, Any], Any]:
        params, state = carry
        updates, state = optimizer.update(gradient(params, index), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    _, path = jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(steps))
    return path
