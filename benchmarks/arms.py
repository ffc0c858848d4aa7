"""The steps that tables compare: a clip alone, before Adam, and in a train step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .gpt2 import gradients, parameters
from .timing import Arm, compile_arm

Shapes = dict[str, tuple[int, ...]]
SHRINKS = 0.9  # the threshold of a clip in place, from call to call


def size_in_bytes(tree: Any) -> int:
    """Return the bytes of all leaves, arrays or their shapes and dtypes."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def state_size(transformation: Any, params: Any) -> int:
    """Return the bytes of a transformation's state for these parameters."""
    return size_in_bytes(jax.eval_shape(transformation.init, params))


def gradient(shapes: Shapes, dtype: Any) -> Any:
    """Return leaves of various entries around zero, each in its own buffer."""

    @jax.jit
    def make() -> Any:
        return {
            name: jnp.sin(jnp.arange(math.prod(shape)) + 7.0 * number)
            .reshape(shape)
            .astype(dtype)
            for number, (name, shape) in enumerate(shapes.items())
        }

    return make()


def clip_arm(name: str, clip: Any, grads: Any, params: Any = None) -> Arm:
    """Compile an update of a gradient in memory, which is kept."""

    def step(carry: Any) -> Any:
        grads, state, params = carry
        return clip.update(grads, state, params)

    state = jax.jit(clip.init)(grads if params is None else params)
    return compile_arm(name, step, (grads, state, params), donate=False)


def update_arm(name: str, transformation: Any, grads: Any, params: Any) -> Arm:
    """Compile an update by a gradient in memory, and apply_updates.

    The carry is donated, so that every arm has its own. XLA for accelerators would fuse
    the products of `optimizer_arm` with what follows.
    """

    def step(carry: Any) -> Any:
        params, state, grads = carry
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads

    params, grads = jax.tree.map(jnp.copy, (params, grads))
    # Not compiled: for thousands of leaves that takes longer than the calls.
    return compile_arm(name, step, (params, transformation.init(params), grads))


def in_place_arm(
    name: str, clip: Callable[[Any], Any], bound: float, grads: Any
) -> Arm:
    """Compile an update that writes its result over the gradient, which is copied.

    The threshold is multiplied by `SHRINKS` after each call, or the second call would
    change nothing: XLA's CPU backend does not store what it has just read from the same
    place, so that such a call costs a read only.

    Args:
        name: of the arm.
        clip: from a traced threshold to the clip.
        bound: the threshold of the first call.
        grads: the gradient.
    """

    def step(carry: Any) -> Any:
        grads, state, bound = carry
        return *clip(bound).update(grads, state), SHRINKS * bound

    threshold = jnp.asarray(bound)  # weakly typed, which Optax needs in bfloat16
    state = jax.jit(clip(threshold).init)(grads)
    return compile_arm(name, step, (jax.tree.map(jnp.copy, grads), state, threshold))


def optimizer_arm(name: str, transformation: Any, shapes: Shapes, dtype: Any) -> Arm:
    """Compile a step whose gradients are products; its carry is donated."""

    def step(carry: Any) -> Any:
        params, state, shift = carry
        grads = gradients(params, shift)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, shift

    params = parameters(shapes, dtype)
    state = jax.jit(transformation.init)(params)
    return compile_arm(name, step, (params, state, jnp.float32(0.5)))


def train_arm(
    name: str,
    transformation: Any,
    loss: Callable[..., jax.Array],
    params: Any,
    batch: tuple[Any, ...],
) -> Arm:
    """Compile value_and_grad, an update and apply_updates; its carry is donated."""

    def step(carry: Any) -> Any:
        params, state, _ = carry
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = jax.tree.map(jnp.copy, params)  # every arm donates its own
    state = jax.jit(transformation.init)(params)
    return compile_arm(name, step, (params, state, jnp.float32(0)))


def copy_arm(tree: Any) -> Arm:
    """Compile a read and a write of every leaf: a product, written over it.

    The factor is an argument: XLA would leave out a product with a constant that is 1
    in the leaf's dtype. It is -1, so that entries keep their size from call to call.
    """

    def scale(carry: Any) -> Any:
        tree, factor = carry

        def scaled(leaf: jax.Array) -> jax.Array:
            return (leaf.astype(jnp.float32) * factor).astype(leaf.dtype)

        return jax.tree.map(scaled, tree), factor

    return compile_arm("copy", scale, (jax.tree.map(jnp.copy, tree), jnp.float32(-1)))


def reduction_arm(tree: Any) -> Arm:
    """Compile a read of every leaf: its sum of squares in float32.

    On XLA's CPU backend it is faster than the largest magnitude.
    """

    def square(leaf: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(leaf.astype(jnp.float32)))

    def read(tree: Any) -> Any:
        return jax.tree.map(square, tree)

    return compile_arm("reduction", read, tree, donate=False)
