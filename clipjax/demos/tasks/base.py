"""The interface of a task: model, data, loss, scores and places of the clip."""

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


class Goal(NamedTuple):
    """The criterion that the arms of a task are ranked by.

    Attributes:
        name: "loss", or the name of a score.
        is_lowest_best: whether lower values are better.
        must_fall: whether a run whose loss ends above that of step 0 has diverged. The
            loss of a game of two players need not fall, and that of step 0 says little
            where rare examples make most of the mean.
    """

    name: str = "loss"
    is_lowest_best: bool = True
    must_fall: bool = True


LOSS = Goal()


class Picture(NamedTuple):
    """A figure of the trained models, such as samples or errors.

    Attributes:
        outcome: maps `(model, held_out)` to the named arrays to draw.
        draw: maps the outcome of each arm, whose arrays have the seeds as additional
            first axis, to the figure.
        caption: what the figure shows.
    """

    outcome: Callable[[Any, Any], dict[str, jax.Array]]
    draw: Callable[[Mapping[str, Outcome]], Figure]
    caption: str


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its training and held-out data, its loss and its scores.

    The data are arguments of the functions, not part of them, so that a compiled
    training loop does not hold them as constants.

    Attributes:
        source: one line that says what the data are.
        build: maps a random key to a freshly initialized model.
        train: arrays that `sample` draws from.
        held_out: arrays that are not used for training.
        sample: maps `(key, step, train)` to the batch of that step, with all of its
            random numbers; the key is the same at every step.
        loss: maps `(model, batch)` to the mean loss.
        evaluate: maps `(model, held_out)` to named held-out scores; the first one is
            drawn along training.
        unit: unit of the loss.
        goal: the criterion for ranking arms and for divergence.
        places: the places of a clip, by the names in the task's options; "" is the
            place of a clip that names none.
        picture: a figure of the trained models.
        steps_per_epoch: steps in which every example is used once; None if batches are
            drawn with replacement.
    """

    source: str
    build: Callable[[jax.Array], nnx.Module]
    train: Any
    held_out: Any
    sample: Callable[[jax.Array, Any, Any], Batch]
    loss: Callable[[Any, Batch], jax.Array]
    evaluate: Callable[[Any, Any], dict[str, jax.Array]]
    unit: str
    goal: Goal = LOSS
    places: Mapping[str, Place] = dataclasses.field(default_factory=dict)
    picture: Picture | None = None
    steps_per_epoch: float | None = None


def cross_entropy(model: Callable[[jax.Array], jax.Array], batch: Batch) -> jax.Array:
    """Return the mean cross-entropy of logits and integer targets, in nats."""
    inputs, targets = batch
    return optax.softmax_cross_entropy_with_integer_labels(
        model(inputs), targets
    ).mean()
