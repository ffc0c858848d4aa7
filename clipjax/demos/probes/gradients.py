"""Gradients of a network under a random loss, for probes of architectures."""

from typing import Any

import jax
from flax import nnx


def random_loss_grads(model: nnx.Module, inputs: jax.Array, key: jax.Array) -> Any:
    """Return the gradient of `mean(v * model(inputs))` with Gaussian v.

    The loss is linear in the outputs, so that the cotangent of the last layer has the
    same norm for all networks, and only the network's Jacobians differ. Call it under
    vmap over seeds, and without jit where a network is differentiated once: 50 layers
    run op by op in a second, and take several seconds to compile.
    """
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any) -> jax.Array:
        outputs = nnx.merge(graph, params, rest)(inputs)
        return (outputs * jax.random.normal(key, outputs.shape)).mean()

    return jax.grad(loss)(params)
