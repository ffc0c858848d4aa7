"""Per-example gradients by vmap, for any loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ..core.trees import Leaves
from .barriers import read_once
from .bounds import of_gradients
from .direct import PerExample, dense_sum
from .rounding import sum_of_squares


def direct(
    loss: Any,
    params: Any,
    batch: Any,
    spmd_axis_name: Any = None,
    transform: Callable[[Any], Any] | None = None,
) -> PerExample:
    """Compute the gradient of every example, by vmap.

    Args:
        loss: maps parameters and one example to its loss and an auxiliary tree.
        params: the parameters.
        batch: a tree whose leaves have the examples along their first axis.
        spmd_axis_name: see `jax.vmap`.
        transform: maps the gradient of an example to the tree to clip and sum.
    """
    leaves = Leaves.of(params)

    def value(arrays: dict[str, jax.Array], example: Any) -> Any:
        return loss(leaves.tree_by_name(arrays), example)

    value_and_gradient = jax.value_and_grad(value, has_aux=True)

    def one(arrays: dict[str, jax.Array], example: Any) -> Any:
        found, gradients = value_and_gradient(arrays, example)
        if transform is None:
            return found, gradients, None
        return found, gradients, transform(leaves.tree_by_name(gradients))

    (values, aux), gradients, transformed = jax.vmap(
        one, in_axes=(None, 0), spmd_axis_name=spmd_axis_name
    )(leaves.by_name, batch)
    results = leaves if transform is None else Leaves.of(transformed)
    arrays = read_once(gradients if transform is None else results.by_name)

    def weighted_sum(weights: dict[str, jax.Array]) -> Any:
        sums = {name: dense_sum(array, weights[name]) for name, array in arrays.items()}
        return results.tree_by_name(sums)

    found = {name: of_gradients(array) for name, array in arrays.items()}
    squares = {name: one.square for name, one in found.items()}
    if transform is not None:
        squares = {name: sum_of_squares(array) for name, array in gradients.items()}
    bounds = {name: one.bound for name, one in found.items()}
    underflow = {name: one.underflow for name, one in found.items()}
    return PerExample(squares, bounds, underflow, values, aux, weighted_sum)
