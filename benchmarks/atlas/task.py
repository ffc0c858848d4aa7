"""A task: a small model as pure functions, so that its runs can be vmapped.

Each batch takes what a condition changes: whether the batch is bad, and the fraction of
targets that are random. Evaluation always uses clean, held-out data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]
Family = Literal["sgd", "adam"]


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its data, and how it is trained.

    Attributes:
        name: the task's name.
        about: one sentence for the page.
        family: the optimizer that the task is trained with.
        centers: the middle of the grid of learning rates, as a power of ten, by
            optimizer.
        steps: steps of a run, a multiple of the steps between two evaluations.
        shapes: the shapes of the parameters.
        data: returns the arrays that `batch` and `evaluate` read.
        batch: (data, key, is bad, noise) to a batch.
        loss: (parameters, batch) to the loss that is trained.
        evaluate: (parameters, data) to the clean, held-out loss.
        modes: the same to a second number of the last model; None for none.
        dtype: the dtype that the gradient is computed in.
        betas: Adam's.
    """

    name: str
    about: str
    family: Family
    centers: dict[Family, float]
    steps: int
    shapes: dict[str, tuple[int, ...]]
    data: Callable[[], Any]
    batch: Callable[[Any, jax.Array, jax.Array, jax.Array], Any]
    loss: Callable[[Params, Any], jax.Array]
    evaluate: Callable[[Params, Any], jax.Array]
    modes: Callable[[Params, Any], jax.Array] | None = None
    dtype: Any = jnp.float32
    betas: tuple[float, float] = (0.9, 0.999)

    def initial(self, key: jax.Array) -> Params:
        """Return weights of variance 1 / fan-in, zero biases and unit scales."""
        keys = jax.random.split(key, len(self.shapes))
        params = {}
        for one, (name, shape) in zip(keys, self.shapes.items(), strict=True):
            if name.endswith("scale"):
                params[name] = jnp.ones(shape)
            elif len(shape) == 1:
                params[name] = jnp.zeros(shape)
            else:
                values = jax.random.normal(one, shape)
                params[name] = values / math.sqrt(shape[0])
        return params

    def gradient(self, params: Params, batch: Any) -> Params:
        """Return the gradient, in the task's dtype; the parameters stay float32."""
        narrow = {name: leaf.astype(self.dtype) for name, leaf in params.items()}
        return jax.grad(self.loss)(narrow, batch)

    def settings(self) -> dict[str, Any]:
        """Return what a cell's fingerprint contains of the task."""
        return {
            "family": self.family,
            "centers": self.centers,
            "steps": self.steps,
            "shapes": self.shapes,
            "betas": self.betas,
            "dtype": jnp.dtype(self.dtype).name,
            "about": self.about,
        }


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean cross-entropy, in nats."""
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(logs, targets[..., None], -1))


def replaced(
    key: jax.Array, noise: jax.Array, values: jax.Array, others: jax.Array
) -> jax.Array:
    """Replace a random fraction of the values, drawn along the first axes."""
    shape = values.shape[: others.ndim]
    return jnp.where(jax.random.uniform(key, shape) < noise, others, values)
