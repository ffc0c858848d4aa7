"""Small causal Transformer for character text."""

import jax
import jax.numpy as jnp
from flax import nnx

STD = 0.02  # standard deviation of the initial weights, as in GPT-2


class Attention(nnx.Module):
    """Causal multi-head self-attention."""

    def __init__(self, width: int, heads: int, *, out_std: float, rngs: nnx.Rngs):
        """Initialize the weights; `out_std` is that of the last matrix."""
        self.heads = heads
        normal = nnx.initializers.normal
        self.project = nnx.Linear(width, 3 * width, kernel_init=normal(STD), rngs=rngs)
        self.out = nnx.Linear(width, width, kernel_init=normal(out_std), rngs=rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Mix each position of `(batch, time, width)` with the ones before it."""
        batch, time, width = hidden.shape
        split = self.project(hidden).reshape(batch, time, 3, self.heads, -1)
        query, key, value = (split[:, :, index] for index in range(3))
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.reshape(batch, time, width))


class Block(nnx.Module):
    """Pre-layer-norm attention and feed-forward, each on a residual path."""

    def __init__(self, width: int, heads: int, *, out_std: float, rngs: nnx.Rngs):
        """Initialize the weights; `out_std` is that of the matrices onto the path."""
        normal = nnx.initializers.normal
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, out_std=out_std, rngs=rngs)
        self.feed_norm = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, kernel_init=normal(STD), rngs=rngs)
        self.reduce = nnx.Linear(
            4 * width, width, kernel_init=normal(out_std), rngs=rngs
        )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Add what attention and feed-forward contribute."""
        hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + self.reduce(jax.nn.gelu(self.expand(self.feed_norm(hidden))))


class Transformer(nnx.Module):
    """Pre-layer-norm Transformer that predicts the next character.

    Args:
        vocabulary: number of distinct characters.
        context: longest sequence it accepts.
        layers: number of blocks.
        width: width of the residual path; a multiple of `heads`.
        heads: number of attention heads.
        rngs: where the initial weights come from.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        context: int = 64,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        rngs: nnx.Rngs,
    ):
        """Initialize the weights."""
        normal = nnx.initializers.normal(STD)
        # Each layer adds twice to the residual path: keep its initial variance.
        out_std = STD / (2 * layers) ** 0.5
        self.characters = nnx.Embed(vocabulary, width, embedding_init=normal, rngs=rngs)
        self.positions = nnx.Embed(context, width, embedding_init=normal, rngs=rngs)
        self.blocks = nnx.List(
            Block(width, heads, out_std=out_std, rngs=rngs) for _ in range(layers)
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.readout = nnx.Linear(width, vocabulary, kernel_init=normal, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map `(batch, time)` tokens to `(batch, time, vocabulary)` logits."""
        positions = self.positions(jnp.arange(tokens.shape[1])[None])
        hidden = self.characters(tokens) + positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.readout(self.norm(hidden))
