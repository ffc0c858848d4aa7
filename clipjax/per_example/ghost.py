"""Per-example norms and weighted sums of gradients from one backward pass.

Book-keeping: where a parameter is used in products only, the gradient of an example is
a product of what is known after one backward pass, and neither its norm nor the
weighted sum over the examples needs the gradient itself.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..trees import NamedLeaves
from .direct import PerExample, dense_squares, dense_sum, widened
from .factors import Product, inner, product_of, squared_norm
from .jaxprs import trace
from .layouts import layout_of
from .taps import Runner
from .views import Site, View, Walk


@dataclasses.dataclass(frozen=True)
class Plan:
    """How each parameter is measured.

    Attributes:
        names: the parameters.
        sites: where those are used that need no gradient per example.
        dense: why the others do, by position.
        pairs: for two sites of one parameter whose entries meet, whether the second is
            arranged as the first, transposed.
    """

    names: tuple[str, ...]
    sites: tuple[Site, ...]
    dense: dict[int, str]
    pairs: dict[tuple[int, int], bool]


def make_plan(jaxpr: Any, names: tuple[str, ...], params: list[jax.Array]) -> Plan:
    """Follows the parameters through the loss, until nothing more turns out dense."""
    shapes = [leaf.shape for leaf in params]
    dense = {
        position: "complex"
        for position, leaf in enumerate(params)
        if jnp.iscomplexobj(leaf)
    }
    while True:
        walk = Walk()
        views = {
            variable: (View(leaf, lambda value: value, (), shapes[leaf]),)
            for leaf, variable in enumerate(jaxpr.invars[: len(names)])
            if leaf not in dense
        }
        walk.visit(jaxpr, views, (), ())
        walk.finish(jaxpr, views, "returned by the loss")
        found = dict(walk.dense)
        used = {site.view.leaf for site in walk.sites}
        for leaf in range(len(names)):
            if leaf not in used | set(dense) | set(found):
                found[leaf] = "not used"
        pairs = {}
        if not found:
            pairs, found = _align(walk.sites, shapes)
        if not found:
            return Plan(names, tuple(walk.sites), dense, pairs)
        dense |= found


def _align(
    sites: list[Site], shapes: list[tuple[int, ...]]
) -> tuple[dict[tuple[int, int], bool], dict[int, str]]:
    """Compares, entry by entry, the arrangements of parameters with several sites."""
    pairs, dense = {}, {}
    by_leaf: dict[int, list[int]] = {}
    for position, site in enumerate(sites):
        by_leaf.setdefault(site.view.leaf, []).append(position)
    for leaf, positions in by_leaf.items():
        if len(positions) == 1:
            continue
        size = int(np.prod(shapes[leaf]))
        with jax.ensure_compile_time_eval():
            entries = jnp.arange(size, dtype=jnp.int32).reshape(shapes[leaf])
            indices = [
                np.asarray(layout_of(site).arranged(site.view.arrange(entries)))
                for site in (sites[i] for i in positions)
            ]
        for (i, one), (j, two) in itertools.combinations(
            zip(positions, indices, strict=True), 2
        ):
            if one.shape == two.shape and np.array_equal(one, two):
                pairs[i, j] = False
            elif np.array_equal(one, np.swapaxes(two, 1, 2)):
                pairs[i, j] = True
            elif np.intersect1d(one, two).size:
                dense[leaf] = "used in arrangements that overlap but do not align"
    return pairs, dense


def _trace(loss: Any, leaves: NamedLeaves, batch: Any) -> tuple[Any, Any]:
    """Traces the loss of one example: there is no axis of examples to keep track of."""
    names = tuple(leaves.arrays)
    example = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch
    )

    def flat_loss(values: list[jax.Array], example: Any) -> Any:
        arrays = dict(zip(names, values, strict=True))
        return loss(leaves.replace(arrays).tree(), example)

    return trace(flat_loss, list(leaves.arrays.values()), example)


def plan_of(loss: Any, params: Any, batch: Any, always_dense: bool = False) -> str:
    """Says in a line for each parameter how it is measured, and what that holds."""
    leaves = NamedLeaves.of(params)
    names = tuple(leaves.arrays)
    size = jax.tree.leaves(batch)[0].shape[0]
    closed, _ = _trace(loss, leaves, batch)
    plan = make_plan(closed.jaxpr, names, list(leaves.arrays.values()))
    lines = []
    for leaf, (name, array) in enumerate(leaves.arrays.items()):
        kinds = [site.kind for site in plan.sites if site.view.leaf == leaf]
        if kinds and not always_dense:
            lines.append(f"{name}: no gradient per example ({', '.join(kinds)})")
            continue
        held = size * array.size * array.dtype.itemsize / 2**20
        reason = plan.dense.get(leaf, "the method vmap")
        lines.append(f"{name}: gradients per example, {held:.3g} MiB ({reason})")
    return "\n".join(lines)


def ghost(loss: Any, params: Any, batch: Any) -> PerExample:
    """Measures every example's gradient, and sums with weights, without making them.

    Args:
        loss: gives from the parameters and one example its loss and an auxiliary tree.
        params: the parameters.
        batch: a tree whose leaves have the examples along their first axis.
    """
    leaves = NamedLeaves.of(params)
    names = tuple(leaves.arrays)
    values = list(leaves.arrays.values())
    closed, structure = _trace(loss, leaves, batch)
    jaxpr = closed.jaxpr
    plan = make_plan(jaxpr, names, values)
    runner = Runner(plan.sites)

    def run(dense: dict[int, jax.Array], taps: Any, example: Any) -> Any:
        arguments = [dense.get(i, leaf) for i, leaf in enumerate(values)]
        results, records = runner.run(
            jaxpr, closed.consts, [*arguments, *jax.tree.leaves(example)], taps
        )
        value, aux = jax.tree.unflatten(structure, results)
        return value, (aux, records)

    taps = {
        site.tap: jnp.zeros(site.output_shape, site.equation.outvars[0].aval.dtype)
        for site in plan.sites
    }
    dense = {leaf: values[leaf] for leaf in plan.dense}
    one = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)
    (losses, (aux, records)), (gradients, cotangents) = jax.vmap(
        one, in_axes=(None, None, 0)
    )(dense, taps, batch)
    products = [
        product_of(site, records[site.path], cotangents[site.tap])
        for site in plan.sites
    ]

    def weighted_sum(weights: dict[str, jax.Array]) -> Any:
        sums = {}
        for leaf, name in enumerate(names):
            weight = weights[name]
            if leaf in gradients:
                sums[name] = dense_sum(gradients[leaf], weight)
            else:
                mine = [p for p in products if p.site.view.leaf == leaf]
                sums[name] = _site_sum(mine, values[leaf], weight)
        return leaves.replace(sums).tree()

    return PerExample(_squares(plan, products, gradients), losses, aux, weighted_sum)


def _squares(
    plan: Plan, products: list[Product], gradients: dict[int, jax.Array]
) -> dict[str, jax.Array]:
    squares = {leaf: dense_squares(gradient) for leaf, gradient in gradients.items()}
    for product in products:
        leaf = product.site.view.leaf
        squares[leaf] = squares.get(leaf, 0.0) + squared_norm(product)
    for (i, j), swapped in plan.pairs.items():
        leaf = products[i].site.view.leaf
        squares[leaf] += 2 * inner(products[i], products[j], swapped)
    # Cross terms can cancel to something below zero.
    return {name: jnp.maximum(squares[leaf], 0) for leaf, name in enumerate(plan.names)}


def _site_sum(
    products: list[Product], leaf: jax.Array, weights: jax.Array
) -> jax.Array:
    total = jnp.zeros_like(widened(leaf))
    for product in products:
        arranged, back = jax.vjp(product.site.view.arrange, jnp.zeros_like(total))
        part = product.weighted(weights).astype(arranged.dtype)
        total = total + back(part)[0]
    return total
