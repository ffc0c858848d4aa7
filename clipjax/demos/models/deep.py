"""Deep fully connected network with any normalization and any residual form."""

import jax
from flax import nnx

from .mlp import INITIALISATIONS, NORMALISATIONS


class Layer(nnx.Module):
    """One hidden layer, `shortcut * x + branch * f(x)`.

    `f(x) = relu(norm(W x))`, or `f(x) = relu(W norm(x))` with the norm first.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        init: str,
        normalisation: str,
        is_pre_norm: bool,
        shortcut: float,
        branch: float,
        rngs: nnx.Rngs,
    ):
        """Initialize the weights."""
        norm = NORMALISATIONS[normalisation]
        self.is_pre_norm = is_pre_norm
        self.shortcut, self.branch = shortcut, branch
        self.linear = nnx.Linear(
            inputs, outputs, kernel_init=INITIALISATIONS[init], rngs=rngs
        )
        self.norm = norm and norm(inputs if is_pre_norm else outputs, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map `(batch, inputs)` to `(batch, outputs)`."""
        norm = self.norm or (lambda hidden: hidden)
        if self.is_pre_norm:
            hidden = self.linear(norm(inputs))
        else:
            hidden = norm(self.linear(inputs))
        hidden = self.branch * jax.nn.relu(hidden)
        return self.shortcut * inputs + hidden if self.shortcut else hidden


class DeepMLP(nnx.Module):
    """ReLU network of `depth` linear layers, the last one without a ReLU.

    | residual form | arguments |
    |---|---|
    | none, f(x) | the defaults |
    | x + f(x) | `shortcut=1` |
    | pre-norm | `shortcut=1, normalisation="layer", is_pre_norm=True` |
    | scaled, (1 - beta) x + alpha f(x) | `shortcut=1 - beta, branch=alpha` |

    Batch norm always uses the statistics of the batch.

    Args:
        inputs: number of input features.
        outputs: number of outputs.
        depth: number of linear layers, the last one included.
        width: width of the inner layers. The first layer has a shortcut only where
            it is also the number of inputs.
        init: a key of `mlp.INITIALISATIONS`; biases are 0.
        normalisation: a key of `mlp.NORMALISATIONS`.
        is_pre_norm: whether to normalize before the linear layer, not before the ReLU.
        shortcut: factor on a layer's input.
        branch: factor on the layer's output f(x).
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
        is_pre_norm: bool = False,
        shortcut: float = 0.0,
        branch: float = 1.0,
        rngs: nnx.Rngs,
    ):
        """Initialize the weights."""
        widths = [inputs, *[width] * (depth - 1)]
        self.hidden = nnx.List(
            Layer(
                before,
                after,
                init=init,
                normalisation=normalisation,
                is_pre_norm=is_pre_norm,
                shortcut=shortcut if before == after else 0.0,
                branch=branch,
                rngs=rngs,
            )
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.readout = nnx.Linear(
            widths[-1], outputs, kernel_init=INITIALISATIONS[init], rngs=rngs
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map `(batch, inputs)` to `(batch, outputs)`."""
        hidden = inputs
        for layer in self.hidden:
            hidden = layer(hidden)
        return self.readout(hidden)
