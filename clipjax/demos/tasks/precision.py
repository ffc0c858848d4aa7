"""Classify digits in float16: a clip before and after the gradient is unscaled."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from matplotlib.figure import Figure

import clipjax

from ...plotting import plot_lines
from ..arms import Arm, ClipCall, OptimizerOf, Place, in_chain
from ..presets.precision import LARGER
from .base import Batch, Outcome, Picture, Task, cross_entropy
from .mnist import Digits, mnist_task, to_pixels

POWERS = tuple(range(-16, 33, 4))  # of two: the loss scales of the picture
PICTURED = 64  # images whose gradient is taken for it


def narrow_loss(model: Any, batch: Batch) -> jax.Array:
    """Return the float32 loss of a model that computes in its parameters' dtype."""
    images, labels = batch
    images = images.astype(model.readout.kernel.dtype)
    return cross_entropy(lambda x: model(x).astype(jnp.float32), (images, labels))


def to_half(tree: Any) -> Any:
    """Cast all leaves to float16."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float16), tree)


def scaled_gradient(scale: float | jax.Array) -> Callable[..., Callable[..., tuple]]:
    """Return the float16 gradient of `scale` times the loss, at rounded parameters."""

    def of(loss: Callable[..., jax.Array]) -> Callable[..., tuple]:
        def gradient(params: Any, batch: Any) -> tuple[jax.Array, Any, dict]:
            def scaled(narrow: Any) -> tuple[jax.Array, jax.Array]:
                value = loss(narrow, batch)
                return scale * value, value

            grads, value = jax.grad(scaled, has_aux=True)(to_half(params))
            return value, grads, {}

        return gradient

    return of


def in_half(scale: float, *, is_clip_first: bool = False) -> Place:
    """Return a place of the clip in a chain that unscales, and skips overflows.

    Args:
        scale: the loss scale.
        is_clip_first: whether the clip gets the scaled gradient, the wrong order.
    """

    def place(clip: ClipCall, optimizer: OptimizerOf) -> Arm:
        def chain(learning_rate: Any) -> optax.GradientTransformation:
            step, unscale = optimizer(learning_rate), clipjax.unscale(scale)
            if is_clip_first:
                return clipjax.skip_nonfinite(optax.chain(clip.build(), unscale, step))
            inner = optax.chain(clip.build(), step)
            return optax.chain(unscale, clipjax.skip_nonfinite(inner))

        return Arm(chain, scaled_gradient(scale))

    return place


def lost_entries(model: nnx.Module, held_out: Digits) -> dict[str, jax.Array]:
    """Return the fractions of gradient entries that float16 loses, by loss scale.

    The first is the fraction of the entries that are nonzero in float32 and zero in
    float16; the second, that of all entries that are not finite.
    """
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    batch = (to_pixels(held_out.images[:PICTURED]), held_out.labels[:PICTURED])

    def flat(tree: Any) -> jax.Array:
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    def loss(params: Any, batch: Batch) -> jax.Array:
        return narrow_loss(nnx.merge(graph, params, rest), batch)

    is_there = flat(jax.grad(loss)(params, batch)) != 0

    def lost(scale: jax.Array) -> jax.Array:
        grads = flat(scaled_gradient(scale)(loss)(params, batch)[1])
        zeros = (is_there & (grads == 0)).sum() / jnp.maximum(is_there.sum(), 1)
        return jnp.maximum(zeros, 1 - jnp.isfinite(grads).mean())

    return {"lost": jax.lax.map(lost, 2.0 ** jnp.array(POWERS, jnp.float32))}


def draw(outcomes: Mapping[str, Outcome]) -> Figure:
    """Draw the fractions of lost entries of each arm."""
    return plot_lines(
        {arm: outcome["lost"] for arm, outcome in outcomes.items()},
        2.0 ** jnp.array(POWERS),
        x_label="loss scale",
        y_label="fraction of the entries",
        title="Gradient entries that float16 loses",
        is_log=(True, False),
    )


def precision_task(
    build: Callable[[jax.Array], nnx.Module],
    *,
    scale: float,
    directory: pathlib.Path | None = None,
    batch: int = 64,
) -> Task:
    """Return digit classification with gradients in float16, scored in float32.

    Args:
        build: key to a model that maps `(batch, 784)` pixels in [0, 1] to logits.
        scale: the factor on the loss.
        directory: where the four IDX files are; without it, `default_digits`.
        batch: images per step; every epoch shows each image once.

    Raises:
        ValueError: if the files are missing, unreadable or malformed.
    """
    task = mnist_task(build, directory=directory, batch=batch)
    larger = LARGER * scale
    return dataclasses.replace(
        task,
        loss=narrow_loss,
        places={
            "": in_half(scale),
            "scaled": in_half(scale, is_clip_first=True),
            f"x{LARGER}": in_half(larger),
            f"scaled_x{LARGER}": in_half(larger, is_clip_first=True),
            "single": in_chain,
        },
        picture=Picture(
            lost_entries,
            draw,
            "At the end of training: the fraction of the gradient's entries that are "
            "zero in float16 and not in float32, or not finite, by the loss scale.",
        ),
    )
