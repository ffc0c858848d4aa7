"""Optimization barriers, so that a norm and a sum read the same rounded numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..jax_internals import identity, mesh_size


def read_once(tree: Any) -> Any:
    """Return the arrays of a tree behind a barrier, so that all consumers share them.

    XLA recomputes a cheap array in every fusion that reads it, with results that may
    differ: ``a * b - c`` is rounded once as a fused multiply-add and twice otherwise,
    and a bfloat16 value keeps float32's precision inside a fusion
    (``xla_allow_excess_precision``). A norm of one set of numbers does not bound a sum
    of the other: an example added 215 C in float32 that way, and 1.5 C in bfloat16.

    The CPU backend of JAX 0.10 removes barriers before its last fusions (in the pass
    ``cse_barrier_expander``; from JAX 0.11 on, after them), so that it may still
    compute a factor twice. An example constructed for that, with factors
    x·y - fl(x·y), adds 1.0007 C; see ``tests/test_ghost_bound.py``. Dividing by ones
    that XLA does not know to be ones did not prevent it, and doubled a perceptron's
    temporary buffers.

    An array that occurs several times stays one array. Axes of length 1 are dropped
    before the barrier: XLA cannot move a reshape across it, and copied the gradients of
    a tied embedding, a tenth of that transformer's temporary buffers.
    """
    leaves, structure = jax.tree.flatten(tree)
    identities = [identity(leaf) for leaf in leaves]
    distinct = dict(zip(identities, leaves, strict=True))
    if not distinct:
        return tree
    flat = [
        leaf.reshape([n for n in leaf.shape if n != 1]) for leaf in distinct.values()
    ]
    computed = jax.lax.optimization_barrier(tuple(flat))
    computed = dict(zip(distinct, computed, strict=True))
    return jax.tree.unflatten(
        structure,
        [
            computed[own].reshape(leaf.shape)
            for own, leaf in zip(identities, leaves, strict=True)
        ],
    )


def after(array: jax.Array, previous: jax.Array | None) -> jax.Array:
    """Return the array unchanged, scheduled after the previous one.

    The sum of each layer needs copies of its factors. Without an order, XLA's CPU
    backend copies the factors of all layers at once, and the temporary buffers of a
    perceptron grow by a third. XLA drops barriers whose results are not used; it does
    not know that no number is below minus infinity.

    On a mesh of several devices the order would cost an all-reduce for each layer, in
    place of one for all layers, so that the array is returned without an order.
    """
    if previous is None or not previous.size or not array.size:
        return array
    if mesh_size() > 1:
        return array
    entry = jnp.real(previous[(0,) * previous.ndim])
    return jnp.where(entry < -jnp.inf, 0, array)
