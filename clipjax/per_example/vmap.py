"""Per-example gradients by vmap: the plain way, for any loss."""

from __future__ import annotations

from typing import Any

import jax

from ..trees import NamedLeaves
from .barriers import read_once
from .bounds import of_gradients
from .direct import PerExample, dense_sum


def direct(loss: Any, params: Any, batch: Any) -> PerExample:
    """Compute the gradient of every example, by vmap.

    Args:
        loss: gives from the parameters and one example its loss and an auxiliary tree.
        params: the parameters.
        batch: a tree whose leaves have the examples along their first axis.
    """
    leaves = NamedLeaves.of(params)

    def value(arrays: dict[str, jax.Array], example: Any) -> Any:
        return loss(leaves.replace(arrays).tree(), example)

    one = jax.value_and_grad(value, has_aux=True)
    (values, aux), gradients = jax.vmap(one, in_axes=(None, 0))(leaves.arrays, batch)
    gradients = read_once(gradients)

    def weighted_sum(weights: dict[str, jax.Array]) -> Any:
        sums = {
            name: dense_sum(gradients[name], weights[name]) for name in leaves.arrays
        }
        return leaves.replace(sums).tree()

    found = {name: of_gradients(gradients[name]) for name in leaves.arrays}
    squares = {name: one.square for name, one in found.items()}
    bounds = {name: one.bound for name, one in found.items()}
    underflow = {name: one.underflow for name, one in found.items()}
    return PerExample(squares, bounds, underflow, values, aux, weighted_sum)
