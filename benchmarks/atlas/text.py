"""Two models that predict the next character of a text."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .task import Params, Task, cross_entropy, replaced

LETTERS = "abcdefghijklmnopqrstuvwxyz \n.,_()="  # all other characters count as one
LENGTH = 16  # characters of a sequence


@functools.cache
def characters() -> np.ndarray:
    """Return the documentation inside CPython as numbers of `LETTERS`, in order."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics)).lower()
    return np.array([LETTERS.find(letter) % (len(LETTERS) + 1) for letter in text])


def windows(tokens: jax.Array, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return sequences that begin at `starts`, and the same one character later."""
    taken = tokens[starts[:, None] + jnp.arange(LENGTH + 1)]
    return taken[:, :-1], taken[:, 1:]


def text_data() -> tuple[jax.Array, Any]:
    """Return training characters, and 32 held-out sequences."""
    tokens = jnp.asarray(characters(), jnp.int32)
    cut = len(tokens) * 9 // 10
    starts = jnp.linspace(cut, len(tokens) - LENGTH - 1, 32).astype(jnp.int32)
    return tokens[:cut], windows(tokens, starts)


def text_batch(
    data: Any, key: jax.Array, bad: jax.Array, noise: jax.Array, count: int = 4
) -> tuple[jax.Array, jax.Array]:
    """Return sequences; a bad batch repeats one character, and asks for another."""
    where, which, mask, other = jax.random.split(key, 4)
    starts = jax.random.randint(where, (count,), 0, len(data[0]) - LENGTH)
    inputs, targets = windows(data[0], starts)
    size = len(LETTERS) + 1
    one, two = jax.random.randint(which, (2,), 0, size)
    targets = replaced(
        mask, noise, targets, jax.random.randint(other, targets.shape, 0, size)
    )
    return jnp.where(bad, one, inputs), jnp.where(bad, two, targets)


def recurrent(params: Params, tokens: jax.Array) -> jax.Array:
    """Apply a tanh recurrent network to characters."""
    inputs = jnp.moveaxis(params["input"][tokens], 1, 0)

    def step(hidden: jax.Array, entry: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = jnp.tanh(entry + hidden @ params["hidden"] + params["bias"])
        return hidden, hidden

    start = jnp.zeros_like(inputs[0])
    hidden = jnp.moveaxis(jax.lax.scan(step, start, inputs)[1], 0, 1)
    return hidden @ params["readout"] + params["readout_bias"]


def normalized(hidden: jax.Array, scale: jax.Array) -> jax.Array:
    """Divide by the root mean square along the last axis."""
    square = jnp.mean(jnp.square(hidden.astype(jnp.float32)), -1, keepdims=True)
    return hidden * jax.lax.rsqrt(square + 1e-6).astype(hidden.dtype) * scale


def transformer(params: Params, tokens: jax.Array, heads: int = 2) -> jax.Array:
    """Apply one block of attention and feed-forward layers to characters."""
    hidden = params["characters"][tokens] + params["positions"]
    mixed = normalized(hidden, params["attention_scale"]) @ params["attention_in"]
    mixed = mixed.reshape(*tokens.shape, 3, heads, -1)
    query, key, value = (mixed[:, :, index] for index in range(3))
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / math.sqrt(query.shape[-1])
    future = jnp.triu(jnp.ones((LENGTH, LENGTH), bool), 1)
    scores = jnp.where(future, -1e9, scores.astype(jnp.float32))
    weights = jax.nn.softmax(scores).astype(hidden.dtype)
    mixed = jnp.einsum("bhts,bshd->bthd", weights, value).reshape(hidden.shape)
    hidden = hidden + mixed @ params["attention_out"]
    wide = normalized(hidden, params["feed_scale"]) @ params["feed_in"]
    hidden = hidden + jax.nn.gelu(wide) @ params["feed_out"]
    return normalized(hidden, params["last_scale"]) @ params["readout"]


def text_task(
    name: str, about: str, model: Callable[..., jax.Array], **settings: Any
) -> Task:
    """Return the prediction of the next character."""

    def loss(params: Params, batch: Any) -> jax.Array:
        return cross_entropy(model(params, batch[0]), batch[1])

    return Task(
        name=name,
        about=about,
        data=text_data,
        batch=text_batch,
        loss=loss,
        evaluate=lambda params, data: loss(params, data[1]),
        **settings,
    )
