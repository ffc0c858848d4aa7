"""Recurrent network for character text."""

import jax
import jax.numpy as jnp
from flax import nnx

CELLS = {
    "vanilla": nnx.SimpleCell,
    "gru": nnx.GRUCell,
    "lstm": nnx.OptimizedLSTMCell,
}


def orthogonal_blocks(gain: float) -> nnx.Initializer:
    """Return square orthogonal blocks side by side, times `gain`.

    Gated cells hold the matrices of all gates in one `(hidden, gates * hidden)`
    kernel; a single orthogonal matrix of that shape would shrink each gate's part.
    """
    square = nnx.initializers.orthogonal(gain)

    def init(key, shape, dtype=jnp.float32, **unused):
        hidden, total = shape
        keys = jax.random.split(key, total // hidden)
        return jnp.concatenate(
            [square(gate, (hidden, hidden), dtype) for gate in keys], axis=1
        )

    return init


def unroll(cell: nnx.RNNCellBase, inputs: jax.Array) -> jax.Array:
    """Apply a cell along time, from the zero state.

    Maps `(batch, time, features)` to `(batch, time, hidden)`. A plain `lax.scan`:
    `nnx.RNN` also carries the cell's parameters and a random stream through its
    scan, which nothing here needs.
    """
    # Zeros whatever the key: the cell only asks for one.
    start = cell.initialize_carry(inputs[:, 0].shape, nnx.Rngs(0))
    _, outputs = jax.lax.scan(cell, start, jnp.moveaxis(inputs, 1, 0))
    return jnp.moveaxis(outputs, 0, 1)


class RNN(nnx.Module):
    """Stacked recurrent layers that predict the next character at each step.

    Characters enter as one-hot vectors and every sequence starts from a zero state.

    Args:
        vocabulary: number of distinct characters.
        hidden: width of each recurrent layer.
        layers: number of stacked recurrent layers.
        cell: a key of `CELLS`.
        gain: factor on the orthogonal recurrent matrices; above 1 the initial
            hidden-to-hidden map stretches and gradients through time can explode.
        rngs: where the initial weights come from.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        hidden: int = 96,
        layers: int = 1,
        cell: str = "vanilla",
        gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        """Initialize the weights."""
        self.vocabulary = vocabulary
        widths = [vocabulary, *[hidden] * layers]
        self.cells = nnx.List(
            CELLS[cell](
                inputs,
                outputs,
                recurrent_kernel_init=orthogonal_blocks(gain),
                rngs=rngs,
            )
            for inputs, outputs in zip(widths, widths[1:], strict=False)
        )
        self.readout = nnx.Linear(hidden, vocabulary, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map `(batch, time)` tokens to `(batch, time, vocabulary)` logits."""
        hidden = jax.nn.one_hot(tokens, self.vocabulary)
        for cell in self.cells:
            hidden = unroll(cell, hidden)
        return self.readout(hidden)
