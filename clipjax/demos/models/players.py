"""The two players of an adversarial game in the plane."""

import jax
from flax import nnx

from .mlp import MLP


class Players(nnx.Module):
    """A generator of points and a discriminator that scores them.

    Both are ReLU networks with two inner layers. The discriminator is called a critic
    if its score is not a logit.

    Args:
        noise: dimension of the generator's input noise.
        width: width of the inner layers.
        rngs: where the initial weights come from.
    """

    def __init__(self, *, noise: int = 8, width: int = 64, rngs: nnx.Rngs):
        """Initialize the weights."""
        self.generator = MLP(noise, 2, depth=3, width=width, rngs=rngs)
        self.discriminator = MLP(2, 1, depth=3, width=width, rngs=rngs)

    def generate(self, noise: jax.Array) -> jax.Array:
        """Map `(batch, noise)` to `(batch, 2)` points."""
        return self.generator(noise)

    def score(self, points: jax.Array) -> jax.Array:
        """Map `(batch, 2)` points to `(batch,)` scores, high for real ones."""
        return self.discriminator(points)[:, 0]

    def frozen_score(self, points: jax.Array) -> jax.Array:
        """Return the score, with gradient 0 with respect to the discriminator."""
        graph, params = nnx.split(self.discriminator)
        return nnx.merge(graph, jax.lax.stop_gradient(params))(points)[:, 0]
