"""The models of the table of costs: a loss of one example, parameters and a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen

NHWC = ("NHWC", "HWIO", "NHWC")


class Model(NamedTuple):
    """What is to be differentiated.

    Attributes:
        loss: of the parameters and one example.
        params: the parameters.
        batch: the other arguments of the loss, with the examples in front.
        unrolled: the same loss without loops, since XLA counts the body of a loop once.
    """

    loss: Callable[..., Any]
    params: Any
    batch: tuple[Any, ...]
    unrolled: Callable[..., Any] | None = None


def normal(seed, *shape):
    """Makes small Gaussian parameters or inputs."""
    return 0.05 * jax.random.normal(jax.random.key(seed), shape)


def words(batch, length):
    """Makes sequences of words."""
    return jax.random.randint(jax.random.key(1), (batch, length), 0, 2000)


def classes(batch):
    """Makes labels."""
    return jax.random.randint(jax.random.key(2), (batch,), 0, 10)


def layer_norm(inputs, gain):
    """Normalises the last axis."""
    centred = inputs - inputs.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(inputs.var(-1, keepdims=True) + 1e-5) * gain


def next_word_loss(scores, tokens):
    """Gives the mean cross-entropy of each word, given those before it."""
    scores = jax.nn.log_softmax(scores[:-1])
    return -jnp.mean(jnp.take_along_axis(scores, tokens[1:, None], -1))


def transformer(batch, length, layers=4, width=256, heads=4, tied=False):
    """A causal transformer over 2,000 words."""
    params: dict[str, Any] = {"embedding": normal(0, 2000, width)}
    if not tied:
        params["out"] = normal(1, width, 2000)
    for layer in range(layers):
        params[f"layer{layer}"] = {
            **{name: normal(i, width, width) for i, name in enumerate("qkvo")},
            "up": normal(6, width, 4 * width),
            "down": normal(7, 4 * width, width),
            "bias": normal(8, 4 * width),
            "gain1": jnp.ones(width),
            "gain2": jnp.ones(width),
        }

    def loss(params, tokens):
        hidden = params["embedding"][tokens]
        causal = jnp.tril(jnp.ones((length, length), bool))
        for layer in range(layers):
            weights = params[f"layer{layer}"]
            inputs = layer_norm(hidden, weights["gain1"])
            query, key, value = (
                (inputs @ weights[name]).reshape(length, heads, -1) for name in "qkv"
            )
            scores = jnp.einsum("thd,shd->hts", query, key) / 8
            scores = jax.nn.softmax(jnp.where(causal, scores, -1e9))
            mixed = jnp.einsum("hts,shd->thd", scores, value).reshape(length, -1)
            hidden = hidden + mixed @ weights["o"]
            inputs = layer_norm(hidden, weights["gain2"])
            wide = jax.nn.gelu(inputs @ weights["up"] + weights["bias"])
            hidden = hidden + wide @ weights["down"]
        out = params["embedding"].T if tied else params["out"]
        return next_word_loss(hidden @ out, tokens)

    return Model(loss, params, (words(batch, length),))


def tied_transformer(batch, length, layers=2, width=256):
    """The same, which reads and writes words with one table."""
    return transformer(batch, length, layers, width, tied=True)


def perceptron(batch, *widths):
    """Dense layers, the last of which has no bias."""
    shapes = list(zip(widths, widths[1:], strict=False))
    params = {f"w{i}": normal(i, *shape) for i, shape in enumerate(shapes)}
    params |= {f"b{i}": jnp.zeros(width) for i, (_, width) in enumerate(shapes[:-1])}

    def loss(params, inputs, label):
        hidden, last = inputs, len(shapes) - 1
        for i in range(last):
            hidden = jax.nn.relu(hidden @ params[f"w{i}"] + params[f"b{i}"])
        return -jax.nn.log_softmax(hidden @ params[f"w{last}"])[label]

    return Model(loss, params, (normal(3, batch, widths[0]), classes(batch)))


def single_layer(batch, width=1024):
    """One square matrix, which a copy for each example would make large."""

    def loss(weights, inputs):
        return jnp.sum((inputs @ weights) ** 2)

    return Model(loss, normal(0, width, width), (normal(1, batch, width),))


class Block(linen.Module):
    """Attention and two dense layers, all with biases."""

    heads: int

    @linen.compact
    def __call__(self, hidden, mask):
        """Adds to the residual stream."""
        width = hidden.shape[-1]
        inputs = linen.LayerNorm()(hidden)
        hidden += linen.MultiHeadDotProductAttention(self.heads)(inputs, mask=mask)
        wide = linen.gelu(linen.Dense(4 * width)(linen.LayerNorm()(hidden)))
        return hidden + linen.Dense(width)(wide)


class Transformer(linen.Module):
    """A causal transformer over 2,000 words that reads and writes with one table."""

    layers: int
    width: int = 256
    heads: int = 4

    @linen.compact
    def __call__(self, tokens):
        """Gives scores of the next word, from a batch of sequences."""
        embedding = linen.Embed(2000, self.width)
        hidden, mask = embedding(tokens), linen.make_causal_mask(tokens)
        for _ in range(self.layers):
            hidden = Block(self.heads)(hidden, mask)
        return embedding.attend(linen.LayerNorm()(hidden))


def linen_transformer(batch, length, layers=2, width=256):
    """The same of Flax Linen, with tied weights."""
    model, tokens = Transformer(layers, width), words(batch, length)
    params = model.init(jax.random.key(0), tokens[:1])

    def loss(params, tokens):
        return next_word_loss(model.apply(params, tokens[None])[0], tokens)

    return Model(loss, params, (tokens,))


def lstm(batch, length, width=128):
    """An LSTM through a scan."""
    shapes = {"in": (64, 4 * width), "hidden": (width, 4 * width), "out": (width, 10)}
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    params["bias"] = jnp.zeros(4 * width)

    def loss(params, inputs, label, unroll=1):
        def step(carry, value):
            hidden, cell = carry
            gates = value @ params["in"] + hidden @ params["hidden"] + params["bias"]
            enter, forget, new, out = jnp.split(gates, 4)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
            return (jax.nn.sigmoid(out) * jnp.tanh(cell), cell), None

        start = (jnp.zeros(width), jnp.zeros(width))
        (hidden, _), _ = jax.lax.scan(step, start, inputs, unroll=unroll)
        return -jax.nn.log_softmax(hidden @ params["out"])[label]

    batch = (normal(3, batch, length, 64), classes(batch))
    return Model(loss, params, batch, functools.partial(loss, unroll=length))


def convolutional(batch):
    """Two convolutions and two dense layers."""
    shapes = {"one": (3, 3, 1, 32), "two": (3, 3, 32, 64), "dense": (3136, 128)}
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    params["out"] = normal(4, 128, 10)

    def loss(params, image, label):
        hidden = image[None]
        for name in ("one", "two"):
            hidden = jax.lax.conv_general_dilated(
                hidden, params[name], (1, 1), "SAME", dimension_numbers=NHWC
            )
            window = (1, 2, 2, 1)
            hidden = jax.lax.reduce_window(
                *(jax.nn.relu(hidden), 0.0, jax.lax.add, window, window, "VALID")
            )
        hidden = jax.nn.relu(hidden.reshape(-1) @ params["dense"])
        return -jax.nn.log_softmax(hidden @ params["out"])[label]

    return Model(loss, params, (normal(3, batch, 28, 28, 1), classes(batch)))


def models(*, small: bool = False) -> dict[str, functools.partial[Model]]:
    """Return the models of the tables by name; small ones have the same names."""
    few, short, narrow = (2, 8, 8) if small else (1, 1, 1)
    long, width, make = 128 // short, 256 // narrow, functools.partial
    return {
        "transformer, 16 x 128 words": make(transformer, 16 // few, long, 2, width),
        "transformer, 64 x 32 words": make(
            transformer, 64 // few, 32 // short, 2, width
        ),
        "tied transformer, 16 x 128 words": make(
            tied_transformer, 16 // few, long, 2, width
        ),
        "tied Linen transformer, 16 x 128 words": make(
            linen_transformer, 16 // few, long, 2, width
        ),
        "perceptron, 256 images": make(
            perceptron, 256 // few, 784, *[512 // narrow] * 3, 10
        ),
        "1024 x 1024 layer, 256 examples": make(
            single_layer, 256 // few, 1024 // narrow
        ),
        "LSTM, 32 x 64 steps": make(lstm, 32 // few, 64 // short),
        "convolutional net, 64 images": make(convolutional, 64 // few),
    }
