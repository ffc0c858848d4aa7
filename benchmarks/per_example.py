"""Per-example clipping against the plain gradient of the summed loss.

    python -m benchmarks.per_example [words of a model's name]

prints, for each model, the time of ``clipped_grad`` relative to the plain gradient, as
the median of rounds in shuffled order, and XLA's temporary memory and arithmetic. XLA
counts the body of a scan once: the arithmetic of the LSTM says nothing.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp

import clipjax
from benchmarks.interleaved import compile_arm, paired_ratio, time_arms

ROUNDS = 9
NHWC = ("NHWC", "HWIO", "NHWC")


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
        scores = jax.nn.log_softmax(hidden[:-1] @ out)
        return -jnp.mean(jnp.take_along_axis(scores, tokens[1:, None], -1))

    return loss, params, (words(batch, length),)


def perceptron(batch, width=512):
    """Four dense layers."""
    params = {"in": normal(0, 784, width), "out": normal(9, width, 10)}
    params |= {f"w{i}": normal(i, width, width) for i in (1, 2)}
    params |= {f"b{i}": jnp.zeros(width) for i in (0, 1, 2)}

    def loss(params, inputs, label):
        hidden = inputs
        for weights, bias in (("in", "b0"), ("w1", "b1"), ("w2", "b2")):
            hidden = jax.nn.relu(hidden @ params[weights] + params[bias])
        return -jax.nn.log_softmax(hidden @ params["out"])[label]

    return loss, params, (normal(3, batch, 784), classes(batch))


def lstm(batch, length, width=128):
    """An LSTM through a scan."""
    shapes = {"in": (64, 4 * width), "hidden": (width, 4 * width), "out": (width, 10)}
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    params["bias"] = jnp.zeros(4 * width)

    def loss(params, inputs, label):
        def step(carry, value):
            hidden, cell = carry
            gates = value @ params["in"] + hidden @ params["hidden"] + params["bias"]
            enter, forget, new, out = jnp.split(gates, 4)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
            return (jax.nn.sigmoid(out) * jnp.tanh(cell), cell), None

        start = (jnp.zeros(width), jnp.zeros(width))
        (hidden, _), _ = jax.lax.scan(step, start, inputs)
        return -jax.nn.log_softmax(hidden @ params["out"])[label]

    return loss, params, (normal(3, batch, length, 64), classes(batch))


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

    return loss, params, (normal(3, batch, 28, 28, 1), classes(batch))


MODELS = {
    "transformer, 16 x 128 words": lambda: transformer(16, 128),
    "transformer, 64 x 32 words": lambda: transformer(64, 32),
    "tied transformer, 16 x 128 words": lambda: transformer(16, 128, 2, tied=True),
    "perceptron, 256 images": lambda: perceptron(256),
    "LSTM, 32 x 64 steps": lambda: lstm(32, 64),
    "convolutional net, 64 images": lambda: convolutional(64),
}


def compare(name):
    """Measures one model, and gives the cells of its row."""
    loss, params, batch = MODELS[name]()
    clip = clipjax.clipped_grad(
        loss,
        l2_clip_norm=1.0,
        batch_argnums=tuple(range(1, 1 + len(batch))),
        keep_batch_dim=False,
    )
    axes = (None, *[0] * len(batch))
    steps = {
        "plain": jax.grad(lambda params: jnp.sum(jax.vmap(loss, axes)(params, *batch))),
        "clipped": lambda params: clip(params, *batch),
    }
    arms = [compile_arm(key, step, params, donate=False) for key, step in steps.items()]
    time_arms(arms, ROUNDS)
    plain, clipped = arms
    return [
        f"{paired_ratio(clipped, plain):.2f}",
        f"{clipped.temporary_bytes / plain.temporary_bytes:.2f}",
        f"{clipped.flops / plain.flops:.2f}",
    ]


def main():
    """Prints a table of the models whose names have all the words given."""
    print("| relative to the plain gradient | time | temporary memory | arithmetic |")
    print("|---|---|---|---|")
    for name in MODELS:
        if all(word in name for word in sys.argv[1:]):
            print(f"| {' | '.join([name, *compare(name)])} |", flush=True)


if __name__ == "__main__":
    main()
