"""The ways to clip example by example in JAX, with one signature."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import clipjax

CLIP_NORM = 1.0


def plain(loss: Callable[..., Any], *batch: Any) -> Callable[[Any], Any]:
    """The gradient of the summed loss, unclipped."""
    axes = (None, *[0] * len(batch))
    return jax.grad(lambda params: jnp.sum(jax.vmap(loss, axes)(params, *batch)))


def ours(loss: Callable[..., Any], *batch: Any) -> Callable[[Any], Any]:
    """By clipjax."""
    positions = tuple(range(1, 1 + len(batch)))
    clip = clipjax.clipped_grad(
        loss, l2_clip_norm=CLIP_NORM, batch_argnums=positions, keep_batch_dim=False
    )
    return lambda params: clip(params, *batch)


def jax_privacy(
    loss: Callable[..., Any], *batch: Any, microbatch_size: int | None = None
) -> Callable[[Any], Any]:
    """By jax_privacy."""
    from jax_privacy import clipping  # pyright: ignore[reportMissingImports]

    positions = tuple(range(1, 1 + len(batch)))
    clip = clipping.clipped_grad(
        loss,
        l2_clip_norm=CLIP_NORM,
        batch_argnums=positions,
        keep_batch_dim=False,
        microbatch_size=microbatch_size,
    )
    return lambda params: clip(params, *batch)


def vmap_and_optax(loss: Callable[..., Any], *batch: Any) -> Callable[[Any], Any]:
    """By the function that Optax's DP-SGD clips with."""
    axes = (None, *[0] * len(batch))

    def step(params: Any) -> Any:
        gradients = jax.vmap(jax.grad(loss), axes)(params, *batch)
        leaves, structure = jax.tree.flatten(gradients)
        total: Any = optax.per_example_global_norm_clip(leaves, CLIP_NORM)[0]
        return jax.tree.unflatten(structure, total)

    return step


# Examples at a time are a loop, of which XLA counts the body once.
WAYS = {
    "clipjax": ours,
    "jax_privacy": jax_privacy,
    "jax_privacy, 8 at a time": functools.partial(jax_privacy, microbatch_size=8),
    "jax_privacy, 1 at a time": functools.partial(jax_privacy, microbatch_size=1),
    "vmap + optax": vmap_and_optax,
}
