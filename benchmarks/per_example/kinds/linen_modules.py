"""Modules of Flax Linen."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from .inputs import BATCH, filled, normal, tokens


def _apply(module: linen.Module, *arguments: Any, **options: Any) -> Any:
    return module.apply(*arguments, **options)


def linen_lstm():
    """A recurrent cell of the library's own."""
    cell = linen.RNN(linen.OptimizedLSTMCell(6))
    params = filled(jax.eval_shape(cell.init, jax.random.key(0), jnp.ones((1, 5, 3))))

    def loss(params, inputs):
        return jnp.sum(_apply(cell, params, inputs[None]) ** 2)

    return params, loss, normal(5, BATCH, 5, 3)


class _Block(linen.Module):
    rate: float = 0.0

    @linen.compact
    def __call__(self, inputs, deterministic=True):
        hidden = linen.LayerNorm()(inputs)
        hidden = linen.MultiHeadDotProductAttention(2, qkv_features=8)(hidden)
        hidden = linen.Dense(inputs.shape[-1])(hidden)
        return linen.Dropout(self.rate)(hidden, deterministic=deterministic)


def linen_attention_with_dropout():
    """Attention with biases, a norm layer, and a key for each example."""
    block = _Block(0.3)
    params = filled(jax.eval_shape(block.init, jax.random.key(0), jnp.ones((5, 4))))

    def loss(params, example):
        inputs, key = example
        outputs = _apply(block, params, inputs, False, rngs={"dropout": key})
        return jnp.sum(outputs**2)

    keys = jax.random.split(jax.random.key(1), BATCH)
    return params, loss, (normal(5, BATCH, 5, 4), keys)


class _Tied(linen.Module):
    @linen.compact
    def __call__(self, words):
        embedding = linen.Embed(11, 6)
        hidden = embedding(words)
        blocks = linen.scan(
            linen.remat(_Scanned),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        hidden, _ = blocks()(hidden, None)
        # The fast variance, a difference of two sums, loses two digits of these.
        norm = linen.GroupNorm(num_groups=2, use_fast_variance=False)
        return embedding.attend(norm(hidden))


class _Scanned(linen.Module):
    @linen.compact
    def __call__(self, hidden, _):
        return hidden + _Block()(hidden), None


def linen_tied_transformer():
    """A tied embedding, scanned blocks with remat, and GroupNorm."""
    model, words = _Tied(), tokens()
    params = filled(jax.eval_shape(model.init, jax.random.key(0), words[0]))

    def loss(params, words):
        scores = jax.nn.log_softmax(_apply(model, params, words))
        return -jnp.sum(scores[jnp.arange(words.size), words])

    return params, loss, words


KINDS = [linen_lstm, linen_attention_with_dropout, linen_tied_transformer]
