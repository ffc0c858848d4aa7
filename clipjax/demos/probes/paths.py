"""Paths of an optimizer on small deterministic functions, and how long they take."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from ... import rules
from ...core.clip import clip_by
from .descend import descend

Gradient = Callable[[jax.Array], jax.Array]


def clipped_sgd(
    rate: float | jax.Array,
    threshold: float | jax.Array = float("inf"),
    rule: rules.Rule = rules.hard,
) -> optax.GradientTransformation:
    """Gradient descent with a clip by the global norm; without one by default."""
    return optax.chain(clip_by(threshold, rule=rule), optax.scale(-rate))


def path(
    optimizer: optax.GradientTransformation,
    gradient: Gradient,
    start: jax.Array,
    steps: int,
) -> jax.Array:
    """The points of a path, `(steps + 1, *start.shape)`, the start included."""
    after = descend(optimizer, lambda point, _: gradient(point), start, steps)
    return jnp.concatenate([start[None], after])


def paths(
    optimizer: optax.GradientTransformation,
    gradient: Gradient,
    starts: ArrayLike,
    steps: int,
) -> np.ndarray:
    """One path from each start, `(starts, steps + 1, ...)`."""
    run = jax.jit(jax.vmap(lambda start: path(optimizer, gradient, start, steps)))
    return np.asarray(run(jnp.asarray(starts, float)))


def first_below(sizes: np.ndarray, limit: float) -> np.ndarray:
    """The first step, along the last axis, with a size below the limit; else inf."""
    is_below = sizes < limit
    first = np.where(is_below.any(axis=-1), is_below.argmax(axis=-1), np.inf)
    return np.asarray(first, np.float64)


class Tuned(NamedTuple):
    """The best common settings for several starts.

    Attributes:
        steps: the number of steps until the path from the slowest start is below the
            limit; inf if it never is.
        rate: the learning rate.
        threshold: the threshold, inf without a clip.
    """

    steps: float
    rate: float
    threshold: float


def tune(
    gradient: Gradient,
    starts: ArrayLike,
    *,
    rates: np.ndarray,
    thresholds: np.ndarray,
    rule: rules.Rule = rules.hard,
    limit: float,
    steps: int,
) -> Tuned:
    """Try every pair of a rate and a threshold, each from all starts.

    Args:
        gradient: of the function.
        starts: `(starts, ...)`.
        rates: the learning rates to try.
        thresholds: the thresholds to try.
        rule: of the clip.
        limit: a path has arrived when the norm of its point is below.
        steps: at most that many.
    """

    def until_below(rate: jax.Array, threshold: jax.Array, start: jax.Array):
        optimizer = clipped_sgd(rate, threshold, rule)

        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            point, state, count, is_there = carry
            is_there |= jnp.sqrt(jnp.sum(point**2)) < limit
            updates, state = optimizer.update(gradient(point), state, point)
            count += jnp.where(is_there, 0.0, 1.0)
            return (point + updates, state, count, is_there), None

        first = (start, optimizer.init(start), 0.0, False)
        _, _, count, is_there = jax.lax.scan(step, first, length=steps + 1)[0]
        return jnp.where(is_there, count, jnp.inf)

    over_starts = jax.vmap(until_below, (None, None, 0))
    over_grid = jax.vmap(jax.vmap(over_starts, (None, 0, None)), (0, None, None))
    grid = (jnp.asarray(each, float) for each in (rates, thresholds, starts))
    worst = np.asarray(jax.jit(over_grid)(*grid)).max(axis=-1)
    rate, threshold = np.unravel_index(worst.argmin(), worst.shape)
    return Tuned(
        float(worst[rate, threshold]), float(rates[rate]), float(thresholds[threshold])
    )
