"""A small decoder-only Transformer in plain JAX, and its loss."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of the model and of its batch."""

    layers: int = 4
    width: int = 256
    heads: int = 4
    vocabulary: int = 1000
    batch: int = 8
    context: int = 128


def parameters(sizes: Sizes, dtype: Any) -> Any:
    """Return random parameters."""
    keys = iter(jax.random.split(jax.random.key(0), 4 * sizes.layers + 3))

    def matrix(rows: int, columns: int) -> jax.Array:
        normal = jax.random.normal(next(keys), (rows, columns)) / math.sqrt(rows)
        return normal.astype(dtype)

    width = sizes.width
    return {
        "embedding": matrix(sizes.vocabulary, width),
        "position": matrix(sizes.context, width),
        "layers": [
            {
                "norm_1": jnp.ones(width, dtype),
                "qkv": matrix(width, 3 * width),
                "out": matrix(width, width),
                "norm_2": jnp.ones(width, dtype),
                "up": matrix(width, 4 * width),
                "down": matrix(4 * width, width),
            }
            for _ in range(sizes.layers)
        ],
        "norm": jnp.ones(width, dtype),
        "head": matrix(width, sizes.vocabulary),
    }


def tokens(sizes: Sizes) -> jax.Array:
    """Return a batch of random tokens, one longer than the context."""
    shape = (sizes.batch, sizes.context + 1)
    return jax.random.randint(jax.random.key(1), shape, 0, sizes.vocabulary)


def loss(params: Any, tokens: jax.Array, heads: int) -> jax.Array:
    """Return the mean cross-entropy of the next token."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    hidden = params["embedding"][inputs] + params["position"][: inputs.shape[1]]
    for layer in params["layers"]:
        hidden = _block(hidden, layer, heads)
    logits = (_normalize(hidden, params["norm"]) @ params["head"]).astype(jnp.float32)
    losses = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(
        logits, targets[..., None], -1
    ).squeeze(-1)
    return losses.mean()


def _block(hidden: jax.Array, layer: Any, heads: int) -> jax.Array:
    batch, length, width = hidden.shape
    qkv = _normalize(hidden, layer["norm_1"]) @ layer["qkv"]
    query, key, value = jnp.unstack(
        qkv.reshape(batch, length, 3, heads, width // heads), axis=2
    )
    attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    hidden += attended.reshape(hidden.shape) @ layer["out"]
    inner = jax.nn.gelu(_normalize(hidden, layer["norm_2"]) @ layer["up"])
    return hidden + inner @ layer["down"]


def _normalize(hidden: jax.Array, scale: jax.Array) -> jax.Array:
    return jax.nn.standardize(hidden.astype(jnp.float32)).astype(hidden.dtype) * scale
