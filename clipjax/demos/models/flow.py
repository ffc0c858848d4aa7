"""A normalizing flow that preserves volume."""

import jax
import jax.numpy as jnp
from flax import nnx


class AdditiveCoupling(nnx.Module):
    """Shift one coordinate by a function of the other one.

    Its Jacobian is triangular with ones on the diagonal: the determinant is 1, however
    large its norm is.

    Args:
        width: width of the inner layer.
        shifted: index of the coordinate that is shifted.
        rngs: where the initial weights come from.
    """

    def __init__(self, width: int, shifted: int, *, rngs: nnx.Rngs):
        """Initialize the weights; the layer starts as the identity."""
        self.shifted = shifted
        self.hidden = nnx.Linear(1, width, rngs=rngs)
        self.readout = nnx.Linear(
            width, 1, kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def shift(self, point: jax.Array) -> jax.Array:
        """Return the shift of the point, which is zero but for one coordinate."""
        other = point[1 - self.shifted, None]
        amount = self.readout(jnp.tanh(self.hidden(other)))[0]
        return jnp.zeros(2).at[self.shifted].set(amount)

    def __call__(self, point: jax.Array) -> jax.Array:
        """Map a point of the plane, `(2,)`, to another."""
        return point + self.shift(point)

    def inverse(self, point: jax.Array) -> jax.Array:
        """Invert `__call__`, which keeps the coordinate that the shift depends on."""
        return point - self.shift(point)


class Flow(nnx.Module):
    """Additive coupling layers, then diag(e^s, e^-s): the determinant is 1.

    Args:
        layers: number of coupling layers.
        width: width of the inner layer of each.
        rngs: where the initial weights come from.
    """

    def __init__(self, *, layers: int = 4, width: int = 64, rngs: nnx.Rngs):
        """Initialize the weights; the flow starts as the identity."""
        self.couplings = nnx.List(
            AdditiveCoupling(width, (index + 1) % 2, rngs=rngs)
            for index in range(layers)
        )
        self.log_stretch = nnx.Param(jnp.zeros(()))

    @property
    def stretch(self) -> jax.Array:
        """The diagonal, two numbers whose product is 1."""
        return jnp.exp(self.log_stretch[...] * jnp.array([1.0, -1.0]))

    def __call__(self, point: jax.Array) -> jax.Array:
        """Map a data point, `(2,)`, to a latent point."""
        for coupling in self.couplings:
            point = coupling(point)
        return point * self.stretch

    def inverse(self, latent: jax.Array) -> jax.Array:
        """Map a latent point to a data point."""
        point = latent / self.stretch
        for coupling in reversed(list(self.couplings)):
            point = coupling.inverse(point)
        return point

    def log_density(self, point: jax.Array) -> jax.Array:
        """Return the log density of a data point, for normal latent points.

        The logarithm of the determinant is 0 and need not be added.
        """
        return jax.scipy.stats.norm.logpdf(self(point)).sum()
