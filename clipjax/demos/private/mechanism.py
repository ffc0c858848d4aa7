"""One private step and one plain step, each compiled once for all runs."""

import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import clipjax
from clipjax import privacy

from ..models.digits import DigitNet
from ..models.mlp import MLP
from ..tasks.base import cross_entropy
from ..tasks.mnist import CLASSES, PIXELS, Digits, to_pixels
from ..train import require_memory
from .settings import Private, read_rule

ROUNDS = 11  # of the comparison of times


class Cost(NamedTuple):
    """The cost of a step: seconds, and bytes of temporary memory (NaN if unknown)."""

    seconds: float
    memory: float


class Mechanism:
    """The compiled private and plain steps, and the model and data that they use.

    A step maps `params, state, data, indices, is_last, noise_multiplier, key` to
    params, state, and the losses and norms of the examples, which are private.

    Args:
        settings: the settings.
        train: the private data.
        held_out: the data that accuracy is measured on; here they are public.

    Raises:
        ValueError: a batch is larger than the data, or there is no sensitivity, or too
            little memory.
    """

    def __init__(self, settings: Private, train: Digits, held_out: Digits):
        """Build the model, and compile the steps."""
        self.examples = len(train.labels)
        if settings.batch > self.examples:
            raise ValueError(
                f"--batch {settings.batch}: expected at most the {self.examples} images"
            )
        self.settings = settings
        self.sampling_rate = settings.batch / self.examples
        self.batch_in_memory = settings.batch_in_memory(self.examples)
        self.checksum = zlib.crc32(b"".join(np.asarray(a).tobytes() for a in train))
        self.data = Digits(*map(jnp.asarray, train))
        self.held_out = Digits(*map(jnp.asarray, held_out))
        graph, params, rest = nnx.split(self._model(jax.random.key(0)), nnx.Param, ...)

        def losses(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
            logits = nnx.merge(graph, params, rest)(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

        self.grad = clipjax.clipped_grad(
            lambda *one: losses(*one).sum(),  # of a batch of one
            l2_clip_norm=settings.clip,
            rule=read_rule(settings.rule),
            batch_argnums=(1, 2),
            normalize_by=float(settings.batch),
            return_values=True,
            return_grad_norms=True,
            dtype=jnp.float32,
        )
        self.sensitivity = self.grad.sensitivity(settings.relation)
        self.score = jax.jit(
            lambda params, data: _scores(nnx.merge(graph, params, rest), data)
        )
        plain = _plain_gradient(losses, settings.batch)
        self.steps = {
            True: self._compile(self.private, self._clipped, params),
            False: self._compile(self.plain, plain, params),
        }

    def _model(self, key: jax.Array) -> nnx.Module:
        rngs, width = nnx.Rngs(params=key), self.settings.width
        if self.settings.model == "mlp":
            return MLP(PIXELS, CLASSES, depth=2, width=width, rngs=rngs)
        return DigitNet(CLASSES, width=width, rngs=rngs)

    def initial(self, key: jax.Array) -> Any:
        """Return the initial parameters."""
        return nnx.split(self._model(key), nnx.Param, ...)[1]

    def private(
        self, noise_multiplier: float | jax.Array, key: jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """Return the private optimizer; noise_multiplier=0 is the clip alone."""
        dp = {"dp-sgd": privacy.dp_sgd, "dp-adam": privacy.dp_adam}
        return privacy.virtual_batches(
            dp[self.settings.optimizer](
                self.settings.lr,
                sensitivity=self.sensitivity,
                noise_multiplier=noise_multiplier,
                key=key,
                steps=self.settings.planned_steps(self.examples),
            )
        )

    def plain(
        self, noise_multiplier: float | jax.Array, key: jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """Return the optimizer of the plain run, which ignores the arguments."""
        del noise_multiplier, key
        plain = {"dp-sgd": optax.sgd, "dp-adam": optax.adam}
        return privacy.virtual_batches(
            plain[self.settings.optimizer](self.settings.plain_lr)
        )

    def _clipped(self, *arguments: Any, padding: jax.Array) -> tuple[Any, ...]:
        grads, seen = self.grad(*arguments, is_padding_example=padding)
        return grads, seen.values, seen.grad_norms

    def _compile(
        self,
        optimizer: Callable[..., optax.GradientTransformationExtraArgs],
        gradient: Callable[..., Any],
        params: Any,
    ) -> Any:
        def step(params, state, data, indices, is_last, noise_multiplier, key):
            rows = jnp.maximum(indices, 0)  # a copy of an example in place of padding
            images, labels = to_pixels(data.images[rows]), data.labels[rows]
            grads, *seen = gradient(params, images, labels, padding=indices < 0)
            updates, state = optimizer(noise_multiplier, key).update(
                grads, state, params, is_last=is_last
            )
            return optax.apply_updates(params, updates), state, *seen

        key = jax.random.key(0)
        state = optimizer(0.0, key).init(params)
        shown = (params, state, self.data, *self._batch(), np.float32(0), key)
        compiled = jax.jit(step).lower(*shown).compile()
        if (planned := compiled.memory_analysis()) is not None:
            require_memory(planned.temp_size_in_bytes + planned.output_size_in_bytes)
        return compiled

    def _batch(self) -> tuple[np.ndarray, np.bool_]:
        return np.arange(self.batch_in_memory, dtype=np.int32), np.bool_(True)

    def costs(self) -> dict[bool, Cost]:
        """Time the private (True) and the plain (False) step, interleaved."""
        key = jax.random.key(0)
        params = self.initial(key)
        states = {
            True: self.private(0.0, key).init(params),
            False: self.plain(0.0, key).init(params),
        }
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for is_private, step in self.steps.items():
                shown = (params, states[is_private], self.data, *self._batch())
                began = time.perf_counter()
                jax.block_until_ready(step(*shown, np.float32(1), key))
                seconds[is_private].append(time.perf_counter() - began)
        return {
            is_private: Cost(float(np.median(seconds[is_private])), _memory(step))
            for is_private, step in self.steps.items()
        }


def _plain_gradient(
    losses_of: Callable[..., jax.Array], divisor: float
) -> Callable[..., tuple[Any, jax.Array, jax.Array]]:
    """Return the gradient of the summed loss, divided by the divisor, without norms."""

    def total(params: Any, images: Any, labels: Any, padding: Any) -> tuple[Any, Any]:
        losses = losses_of(params, images, labels)
        return jnp.where(padding, 0, losses).sum() / divisor, losses

    def gradient(*arguments: Any, padding: jax.Array) -> tuple[Any, Any, Any]:
        grads, losses = jax.grad(total, has_aux=True)(*arguments, padding)
        return grads, losses, jnp.full_like(losses, jnp.nan)

    return gradient


def _memory(compiled: Any) -> float:
    planned = compiled.memory_analysis()
    return float("nan") if planned is None else float(planned.temp_size_in_bytes)


def _scores(model: Any, data: Digits) -> tuple[jax.Array, jax.Array]:
    """Return accuracy and mean loss on the held-out data."""
    images = to_pixels(data.images)
    logits = model(images)
    hits = (logits.argmax(axis=-1) == data.labels).astype(jnp.float32)
    accuracy = jnp.where(jnp.isfinite(logits).all(), hits.mean(), jnp.nan)
    return accuracy, cross_entropy(model, (images, jnp.asarray(data.labels)))
