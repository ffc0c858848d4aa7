"""A pair potential: the energy of two atoms as a function of their distance."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx


class Potential(nnx.Module):
    """MLP 1-64-64-1 from a distance to an energy.

    The activation is tanh because the force, a derivative of the energy, is trained
    too: the force of a ReLU network is a step function, which does not learn.

    Args:
        width: width of the two inner layers.
        rngs: where the initial weights come from.
    """

    def __init__(self, *, width: int = 64, rngs: nnx.Rngs):
        """Draw weights and biases from ±1/sqrt(inputs), as PyTorch does."""
        sizes = ((1, width), (width, width), (width, 1))
        self.layers = nnx.List(
            nnx.Linear(
                inputs,
                outputs,
                kernel_init=functools.partial(uniform, bound=inputs**-0.5),
                bias_init=functools.partial(uniform, bound=inputs**-0.5),
                rngs=rngs,
            )
            for inputs, outputs in sizes
        )

    def __call__(self, distances: jax.Array) -> jax.Array:
        """Map distances `(pairs,)` to energies `(pairs,)`."""
        hidden = distances[:, None]
        *inner, last = self.layers
        for layer in inner:
            hidden = jnp.tanh(layer(hidden))
        return last(hidden)[:, 0]


def uniform(key: jax.Array, shape, dtype, out_sharding=None, *, bound: float):
    """Draw numbers between -bound and bound."""
    del out_sharding
    return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)


def forces(energy: Callable[[jax.Array], jax.Array], distances: jax.Array) -> jax.Array:
    """Return -dE/dr at each distance: minus the gradient by the input.

    This is not the gradient by the parameters, which training descends and clips.
    """
    return -jax.grad(lambda distances: energy(distances).sum())(distances)
