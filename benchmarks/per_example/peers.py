"""The ways to clip example by example in JAX, with one signature.

Each makes, from a loss and how many arguments its batch has, a step from the parameters
and the batch to a gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import clipjax

CLIP_NORM = 1.0


Loss = Callable[..., Any]
Step = Callable[[tuple[Any, ...]], Any]


def plain(loss: Loss, arity: int) -> Step:
    """The gradient of the summed loss, unclipped."""
    many = jax.vmap(loss, (None, *[0] * arity))
    grad = jax.grad(lambda params, *batch: jnp.sum(many(params, *batch)))
    return lambda arguments: grad(*arguments)


def plain_in_a_loop(loss: Loss, arity: int) -> Step:
    """The plain gradient, computed one example at a time."""
    del arity
    grad = jax.grad(loss)

    def step(arguments: tuple[Any, ...]) -> Any:
        params, *batch = arguments

        def add(total: Any, example: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, grad(params, *example)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), batch)[0]

    return step


def clip_of(loss: Loss, arity: int) -> Any:
    """Return clipjax's clipped gradient, which also has a plan."""
    return clipjax.clipped_grad(
        loss,
        l2_clip_norm=CLIP_NORM,
        batch_argnums=tuple(range(1, 1 + arity)),
        keep_batch_dim=False,
    )


def ours(loss: Loss, arity: int) -> Step:
    """By clipjax."""
    clip = clip_of(loss, arity)
    return lambda arguments: clip(*arguments)


def jax_privacy(loss: Loss, arity: int, microbatch_size: int | None = None) -> Step:
    """By jax_privacy."""
    from jax_privacy import clipping  # pyright: ignore[reportMissingImports]

    clip = clipping.clipped_grad(
        loss,
        l2_clip_norm=CLIP_NORM,
        batch_argnums=tuple(range(1, 1 + arity)),
        keep_batch_dim=False,
        microbatch_size=microbatch_size,
    )
    return lambda arguments: clip(*arguments)


def vmap_and_optax(loss: Loss, arity: int) -> Step:
    """By the function that Optax's DP-SGD clips with."""
    many = jax.vmap(jax.grad(loss), (None, *[0] * arity))

    def step(arguments: tuple[Any, ...]) -> Any:
        leaves, structure = jax.tree.flatten(many(*arguments))
        total: Any = optax.per_example_global_norm_clip(leaves, CLIP_NORM)[0]
        return jax.tree.unflatten(structure, total)

    return step


# Examples at a time are a loop, of which XLA counts the body once.
WAYS = {
    "clipjax": ours,
    "jax_privacy": jax_privacy,
    "jax_privacy, 8 at a time": functools.partial(jax_privacy, microbatch_size=8),
    "jax_privacy, 1 at a time": functools.partial(jax_privacy, microbatch_size=1),
    "vmap + Optax": vmap_and_optax,
}
