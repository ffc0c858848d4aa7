"""A denoiser of points in the plane."""

import jax
import jax.numpy as jnp
from flax import nnx


def embed(time: jax.Array, features: int) -> jax.Array:
    """Map times `(points,)` in [0, 1] to sines and cosines `(points, features)`."""
    frequencies = jnp.pi * 2.0 ** jnp.arange(features // 2, dtype=time.dtype)
    phases = time[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=1)


class Denoiser(nnx.Module):
    """Predict a clean point from a noisy one and the time, which tells the noise.

    Args:
        width: width of the inner layers.
        features: size of the embedding of the time, an even number.
        rngs: where the initial weights come from.
    """

    def __init__(self, *, width: int = 64, features: int = 8, rngs: nnx.Rngs):
        """Initialize the weights."""
        self.features = features
        sizes = (2 + features, width, width, width)
        self.hidden = nnx.List(
            nnx.Linear(before, after, rngs=rngs)
            for before, after in zip(sizes, sizes[1:], strict=False)
        )
        self.readout = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, noisy: jax.Array, time: jax.Array) -> jax.Array:
        """Map points `(points, 2)` and times `(points,)` to clean points."""
        hidden = jnp.concatenate([noisy, embed(time, self.features)], axis=1)
        for layer in self.hidden:
            hidden = jax.nn.silu(layer(hidden))
        return self.readout(hidden)
