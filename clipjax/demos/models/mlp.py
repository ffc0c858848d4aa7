"""Deep fully connected classifier."""

import jax
import jax.numpy as jnp
from flax import nnx

INITIALISATIONS = {
    "he": nnx.initializers.he_normal(),
    "glorot": nnx.initializers.glorot_normal(),
    "lecun": nnx.initializers.lecun_normal(),
    "orthogonal": nnx.initializers.orthogonal(),
    # U(-1/sqrt(inputs), 1/sqrt(inputs)): the variance is a sixth of He's, so that
    # the signal of a deep ReLU network vanishes.
    "torch": nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}


class BatchNorm(nnx.Module):
    """Normalizes each feature over the batch, then scales and shifts it.

    It always uses the statistics of the batch. `nnx.BatchNorm` also updates running
    averages, a state that is not needed here.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        """Begin with scale 1 and shift 0; the random numbers are not used."""
        del rngs
        self.scale = nnx.Param(jnp.ones(width))
        self.shift = nnx.Param(jnp.zeros(width))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalize `(batch, width)` along the first axis."""
        normalized = jax.nn.standardize(inputs, axis=0)
        return normalized * self.scale[None] + self.shift[None]


NORMALISATIONS = {
    "none": None,
    "layer": nnx.LayerNorm,
    "rms": nnx.RMSNorm,
    "batch": BatchNorm,
}


def _linear(inputs: int, outputs: int, init: str, rngs: nnx.Rngs) -> nnx.Linear:
    def torch_bias(key, shape, dtype=None):
        bound = inputs**-0.5
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=INITIALISATIONS[init],
        bias_init=torch_bias if init == "torch" else nnx.initializers.zeros,
        rngs=rngs,
    )


class MLP(nnx.Module):
    """ReLU network of `depth` linear layers, the inner ones `width` wide.

    Args:
        inputs: number of input features.
        outputs: number of classes.
        depth: number of linear layers, the last one included.
        width: width of the inner layers.
        init: a key of `INITIALISATIONS`.
        normalisation: a key of `NORMALISATIONS`, applied before each ReLU.
        rngs: where the initial weights come from.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        depth: int = 10,
        width: int = 256,
        init: str = "he",
        normalisation: str = "none",
        rngs: nnx.Rngs,
    ):
        """Initialize the weights."""
        widths = [inputs, *[width] * (depth - 1)]
        norm = NORMALISATIONS[normalisation]
        self.hidden = nnx.List(
            _linear(before, after, init, rngs)
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.norms = nnx.List(norm(width, rngs=rngs) for _ in self.hidden if norm)
        self.readout = _linear(widths[-1], outputs, init, rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map `(batch, inputs)` to `(batch, outputs)` logits."""
        hidden = inputs
        for index, layer in enumerate(self.hidden):
            hidden = layer(hidden)
            if self.norms:
                hidden = self.norms[index](hidden)
            hidden = jax.nn.relu(hidden)
        return self.readout(hidden)
