"""The one shape that every task has."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx

Batch = tuple[jax.Array, jax.Array]


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
        sample: `(key, train)` to one batch of inputs and targets.
        loss: `(model, batch)` to the mean loss.
        evaluate: `(model, held_out)` to named held-out scores.
        unit: unit of the loss.
    """

    source: str
    build: Callable[[jax.Array], nnx.Module]
    train: Any
    held_out: Any
    sample: Callable[[jax.Array, Any], Batch]
    loss: Callable[[Any, Batch], jax.Array]
    evaluate: Callable[[Any, Any], dict[str, jax.Array]]
    unit: str


def cross_entropy(model: Callable[[jax.Array], jax.Array], batch: Batch) -> jax.Array:
    """Mean cross-entropy of the model's logits against integer targets, in nats."""
    inputs, targets = batch
    return optax.softmax_cross_entropy_with_integer_labels(
        model(inputs), targets
    ).mean()
