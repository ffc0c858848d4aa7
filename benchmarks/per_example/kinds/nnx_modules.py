"""Modules of Flax NNX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from .inputs import BATCH, filled, normal


class _Network(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.norm = nnx.RMSNorm(3, rngs=rngs)
        self.last = nnx.Linear(3 * 16, 2, rngs=rngs)

    def __call__(self, image):
        return self.last(jax.nn.relu(self.norm(self.first(image))).reshape(-1))


def nnx_network():
    """A convolution, a norm layer and a dense layer."""
    network = nnx.eval_shape(lambda: _Network(nnx.Rngs(0)))
    definition, shapes = nnx.split(network, nnx.Param)
    params = filled(shapes)

    def loss(params, image):
        return jnp.sum(nnx.merge(definition, params)(image) ** 2)

    return params, loss, normal(5, BATCH, 4, 4, 2)


class _Adapted(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.LoRALinear(5, 4, lora_rank=2, rngs=rngs)
        self.last = nnx.LoRALinear(4, 3, lora_rank=2, rngs=rngs)

    def __call__(self, inputs):
        return self.last(jnp.tanh(self.first(inputs)))


def nnx_adapters_on_frozen_kernels():
    """Low-rank adapters alone are trained."""
    model = _Adapted(nnx.Rngs(0))
    definition, params, frozen = nnx.split(model, nnx.LoRAParam, ...)
    # The second of each pair starts at zero, and so would the first's gradients.
    params = jax.tree.map(lambda leaf: normal(1, *leaf.shape), params)

    def loss(params, inputs):
        return jnp.sum(nnx.merge(definition, params, frozen)(inputs) ** 2)

    return params, loss, normal(5, BATCH, 7, 5)


KINDS = [nnx_network, nnx_adapters_on_frozen_kernels]
