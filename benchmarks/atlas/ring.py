"""A generator and a discriminator on a ring of Gaussians."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from .tabular import perceptron, two_layers
from .task import Params

DEVIATION = 0.1
PENALTY = 0.2  # of the critic's squared slope at real points


def ring_points(key: jax.Array, count: int) -> jax.Array:
    """Return points of eight Gaussian modes on the unit circle."""
    modes, around = jax.random.split(key)
    angles = jax.random.randint(modes, (count,), 0, 8) * (math.pi / 4)
    centers = jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1)
    return centers + DEVIATION * jax.random.normal(around, (count, 2))


def ring_data() -> Any:
    """Return points of the ring to compare with, and the generator's noise."""
    points = ring_points(jax.random.key(0), 128)
    noise = jax.random.normal(jax.random.key(1), (128, 4))
    return points, noise, distances(points, points)


def ring_batch(data: Any, key: jax.Array, bad: jax.Array, noise: jax.Array) -> Any:
    """Return 64 points and noise; in a bad batch all points are near (10, 10)."""
    del data
    keys = jax.random.split(key, 4)
    real = ring_points(keys[0], 64)
    uniform = jax.random.uniform(keys[1], real.shape, minval=-2, maxval=2)
    chosen = jax.random.uniform(keys[2], (64, 1)) < noise
    real = jnp.where(chosen, uniform, real)
    return jnp.where(bad, real + 10, real), jax.random.normal(keys[3], (64, 4))


def three_layers(params: Params, inputs: jax.Array, name: str) -> jax.Array:
    """Apply a network of three layers."""
    first = jax.nn.relu(inputs @ params[f"{name}first"] + params[f"{name}first_bias"])
    return perceptron(params, first, name)


def ring_loss(params: Params, batch: Any) -> jax.Array:
    """Return the sum of both players' losses, each a function of its own parameters."""
    real, noise = batch
    fake = three_layers(params, noise, "generator_")
    score = functools.partial(three_layers, name="critic_")
    fixed = jax.lax.stop_gradient(params)
    slopes = jax.vmap(jax.grad(lambda point: score(params, point)[0]))(real)
    penalty = PENALTY * jnp.mean(jnp.sum(jnp.square(slopes), 1))
    real_or_fake = penalty + jax.nn.softplus(-score(params, real)).mean()
    real_or_fake += jax.nn.softplus(score(params, jax.lax.stop_gradient(fake))).mean()
    return real_or_fake + jax.nn.softplus(-score(fixed, fake)).mean()


def distances(one: jax.Array, two: jax.Array) -> jax.Array:
    """Return the mean distance of pairs of points."""
    return jnp.mean(jnp.linalg.norm(one[:, None] - two[None], axis=-1))


def energy_distance(params: Params, data: Any) -> jax.Array:
    """Return the energy distance of the generator's points to the ring's."""
    points, noise, own = data
    fake = three_layers(params, noise, "generator_")
    return 2 * distances(points, fake) - own - distances(fake, fake)


def modes_covered(params: Params, data: Any) -> jax.Array:
    """Count the modes with 2 % of the points within three standard deviations."""
    angles = jnp.arange(8) * (math.pi / 4)
    centers = jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1)
    fake = three_layers(params, data[1], "generator_")
    gaps = jnp.linalg.norm(fake[:, None] - centers[None], axis=-1)
    return jnp.sum(jnp.mean(gaps <= 3 * DEVIATION, 0) >= 0.02)


def player(name: str, inputs: int, width: int, outputs: int) -> dict:
    """Return the shapes of one player."""
    first = {f"{name}first": (inputs, width), f"{name}first_bias": (width,)}
    return first | two_layers(width, width, outputs, name)
