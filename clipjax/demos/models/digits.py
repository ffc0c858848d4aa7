"""Small convolutional classifier of digits, for private training."""

import jax
import jax.numpy as jnp
from flax import nnx

SIDE = 28  # pixels
FLAT = 4 * 4  # places that are left after both convolutions


class DigitNet(nnx.Module):
    """Two convolutions with tanh and a maximum over neighbors, then two linear layers.

    Activations, and with them per-example gradients, have smaller norms with tanh than
    with ReLU, so that clipping each example changes them less.

    Args:
        classes: number of classes.
        width: channels of the first convolution; the second one has twice as many.
        rngs: where the initial weights come from.

    References:
        The layers are those of Papernot et al., `Tempered sigmoid activations for deep
        learning with differential privacy <https://arxiv.org/abs/2007.14191>`_, 2021,
        at half their width by default.
    """

    def __init__(self, classes: int, *, width: int = 8, rngs: nnx.Rngs):
        """Initialize the weights."""
        self.first = nnx.Conv(1, width, (8, 8), 2, padding="SAME", rngs=rngs)
        self.second = nnx.Conv(width, 2 * width, (4, 4), 2, padding="VALID", rngs=rngs)
        self.hidden = nnx.Linear(FLAT * 2 * width, 32, rngs=rngs)
        self.readout = nnx.Linear(32, classes, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Map `(batch, 784)` pixels in [0, 1] to `(batch, classes)` logits."""
        images = pixels.reshape(-1, SIDE, SIDE, 1)
        features = _pooled(jnp.tanh(self.first(2 * images - 1)))
        features = _pooled(jnp.tanh(self.second(features)))
        flat = features.reshape(features.shape[0], -1)
        return self.readout(jnp.tanh(self.hidden(flat)))


def _pooled(features: jax.Array) -> jax.Array:
    """Return the maximum of each 2 x 2 window, as `nnx.max_pool` with strides of 1.

    On CPUs, the derivative of slices takes a fraction of the time of a pool's.
    """
    rows = jnp.maximum(features[:, :-1], features[:, 1:])
    return jnp.maximum(rows[:, :, :-1], rows[:, :, 1:])
