"""The one shape that every task has."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from ..arms import Place

Batch = Any
Outcome = Mapping[str, np.ndarray]


class Picture(NamedTuple):
    """A figure of what was learned.

    Attributes:
        outcome: `(model, held_out)` to the named arrays that are drawn.
        draw: from the outcome of each arm, whose arrays have one more axis in front,
            the seeds, to the figure.
        caption: what the figure shows.
    """

    outcome: Callable[[Any, Any], dict[str, jax.Array]]
    draw: Callable[[Mapping[str, Outcome]], Figure]
    caption: str


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, the data it learns from and how well it does.

    The data are arguments of the functions, not part of them, so that a compiled
    training loop does not hold them as constants.

    Attributes:
        source: one line that says what the data are.
        build: random key to a freshly initialized model.
        train: arrays that `sample` draws from.
        held_out: arrays that training never sees.
        sample: `(key, step, train)` to the batch of that step, and whatever else is
            random in it; the key is the same at every step.
        loss: `(model, batch)` to the mean loss.
        evaluate: `(model, held_out)` to named held-out scores; the first one is drawn
            along training.
        unit: unit of the loss.
        goal: what arms are ranked by: "loss", the lower the better, or the name of a
            score, the higher the better. The loss of a game of two players need not
            fall; a run of it has diverged only where it is not finite.
        is_lowest_best: whether the score that is the goal is the better the lower.
        places: where a clip can stand, by the names in the task's options; "" is the
            place of a clip without one.
        picture: a figure of what was learned.
        steps_per_epoch: steps in which every example is seen once; None where batches
            are drawn with replacement.
    """

    source: str
    build: Callable[[jax.Array], nnx.Module]
    train: Any
    held_out: Any
    sample: Callable[[jax.Array, Any, Any], Batch]
    loss: Callable[[Any, Batch], jax.Array]
    evaluate: Callable[[Any, Any], dict[str, jax.Array]]
    unit: str
    goal: str = "loss"
    is_lowest_best: bool = False
    places: Mapping[str, Place] = dataclasses.field(default_factory=dict)
    picture: Picture | None = None
    steps_per_epoch: float | None = None


def cross_entropy(model: Callable[[jax.Array], jax.Array], batch: Batch) -> jax.Array:
    """Mean cross-entropy of the model's logits against integer targets, in nats."""
    inputs, targets = batch
    return optax.softmax_cross_entropy_with_integer_labels(
        model(inputs), targets
    ).mean()
