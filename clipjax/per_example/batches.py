"""Microbatches: process a batch in parts, to lower peak memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core.trees import is_clippable


def in_microbatches(
    chunk: Callable[[Any], tuple[Any, Any]], rows: Any, size: int, limit: int | None
) -> tuple[Any, Any]:
    """Apply a function to some rows at a time; add its totals, concatenate its rows.

    Args:
        chunk: a function from rows to a total, and to results with one row per row.
        rows: a tree with ``size`` rows in every leaf.
        size: the number of rows.
        limit: how many rows to take at a time; None for all. The last call takes the
            remainder, so that no rows of padding are needed.
    """
    if size == 0:
        return _nothing(chunk, rows)
    if limit is None or limit >= size:
        return chunk(rows)
    count = size // limit
    cut = lambda leaf: leaf[: count * limit].reshape(count, limit, *leaf.shape[1:])  # noqa: E731
    first = jax.tree.map(lambda leaf: leaf[:limit], rows)
    shapes, _ = jax.eval_shape(chunk, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def step(total: Any, rows: Any) -> tuple[Any, Any]:
        more, results = chunk(rows)
        return jax.tree.map(_plus, total, more), results

    total, results = jax.lax.scan(step, zeros, jax.tree.map(cut, rows))
    joined = lambda leaf: leaf.reshape(count * limit, *leaf.shape[2:])  # noqa: E731
    results = jax.tree.map(joined, results)
    if size == count * limit:
        return total, results
    total, rest = step(total, jax.tree.map(lambda leaf: leaf[count * limit :], rows))
    line_up = lambda one, two: jnp.concatenate([one, two])  # noqa: E731
    return total, jax.tree.map(line_up, results, rest)


def _plus(total: jax.Array, more: jax.Array) -> jax.Array:
    """Add two leaves; keys and integers among the parameters stay unchanged."""
    return total + more if is_clippable(more) else more


def _nothing(chunk: Any, rows: Any) -> tuple[Any, Any]:
    one = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), rows
    )
    total, results = jax.eval_shape(chunk, one)
    return (
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), total),
        jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape[1:]), leaf.dtype), results),
    )
