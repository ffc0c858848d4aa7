"""Per-example norms and weighted sums of gradients from one backward pass.

Where a parameter is used in products only, the gradient of an example is a product of
two factors that one backward pass computes. Neither its norm (the ghost norm) nor the
weighted sum over the examples (book-keeping) needs the gradient itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.trees import Leaves
from ..jax_internals import Program, dtype_of, trace
from .barriers import after, read_once
from .bounds import Bounded, of_gradients, of_parameter
from .direct import PerExample, dense_sum, widened
from .factors import Product, joined, makes_gradient, product_of, read_factors
from .plan import Plan, make_plan
from .taps import Runner
from .views import Site


class Pass(NamedTuple):
    """The results of one backward pass.

    Attributes:
        plan: how each parameter is measured.
        losses: the losses, of shape ``[B]``.
        aux: auxiliary outputs, with the examples as first axis.
        gradients: the gradients of dense parameters, by position, with the examples as
            first axis.
        products: the products by position of a group in the plan. The products of one
            parameter that have their ``gradient`` are added in the first.
        pairs: the plan's pairs of products that remain.
    """

    plan: Plan
    losses: jax.Array
    aux: Any
    gradients: Mapping[int, jax.Array]
    products: Mapping[int, Product]
    pairs: Mapping[tuple[int, int], bool]


def _trace(loss: Any, leaves: Leaves, batch: Any) -> tuple[Program, Any, Any]:
    """Trace the loss of one example, so that no equation has an axis of examples."""
    names = tuple(leaves.names)
    example = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch
    )

    def flat_loss(values: list[jax.Array], example: Any) -> Any:
        arrays = dict(zip(names, values, strict=True))
        return loss(leaves.tree_by_name(arrays), example)

    return trace(flat_loss, list(leaves.arrays), example)


def backward(loss: Any, leaves: Leaves, batch: Any, spmd_axis_name: Any = None) -> Pass:
    """Run the loss forward and backward, and return the factors at its sites."""
    names = tuple(leaves.names)
    values = list(leaves.arrays)
    program, constants, structure = _trace(loss, leaves, batch)
    plan = make_plan(program, names, values)
    runner = Runner(plan.sites)

    def run(dense: dict[int, jax.Array], taps: Any, example: Any) -> Any:
        arguments = [dense.get(i, leaf) for i, leaf in enumerate(values)]
        results, records = runner.run(
            program, constants, [*arguments, *jax.tree.leaves(example)], taps
        )
        value, aux = jax.tree.unflatten(structure, results)
        return value, (aux, records)

    taps = {
        site.tap: jnp.zeros(site.output_shape, dtype_of(site.equation.outputs[0]))
        for site in plan.sites
    }
    dense = {leaf: values[leaf] for leaf in plan.dense}
    value_and_gradients = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)

    def one(example: Any) -> Any:
        (loss, (aux, records)), (gradients, cotangents) = value_and_gradients(
            dense, taps, example
        )
        # Here, the arrays of a scan still have the steps in front: a barrier behind
        # vmap's transpose would have XLA copy them.
        return loss, aux, _read_once(plan, gradients, records, cotangents)

    losses, aux, (gradients, records, cotangents) = jax.vmap(
        one, spmd_axis_name=spmd_axis_name
    )(batch)
    products, pairs = joined(
        [
            product_of(*_of_group(plan, group, records, cotangents))
            for group in plan.groups
        ],
        plan.pairs,
    )
    return Pass(plan, losses, aux, gradients, products, pairs)


def _of_group(
    plan: Plan, group: Sequence[int], records: Any, cotangents: Any
) -> tuple[list[Site], list[Any], list[Any]]:
    """Return the sites of a group, their recorded operands, and their cotangents."""
    sites = [plan.sites[i] for i in group]
    return (
        sites,
        [records[site.path] for site in sites],
        [cotangents[site.tap] for site in sites],
    )


def _read_once(plan: Plan, gradients: Any, records: Any, cotangents: Any) -> Any:
    """Put a barrier behind the arrays of one example that norm and sum both read.

    These arrays stay in memory until all norms are known. Factors from which a gradient
    is formed are excluded, so that XLA can free them: norm and sum read the gradient.
    """
    kept_records, kept_cotangents = {}, {}
    for group in plan.groups:
        sites, *read = _of_group(plan, group, records, cotangents)
        if not makes_gradient(sites, _shapes_of_factors(sites, read)):
            kept_records |= {site.path: records[site.path] for site in sites}
            kept_cotangents |= {site.tap: cotangents[site.tap] for site in sites}
    gradients, kept_records, kept_cotangents = read_once(
        (gradients, kept_records, kept_cotangents)
    )
    return gradients, {**records, **kept_records}, {**cotangents, **kept_cotangents}


def _shapes_of_factors(sites: Sequence[Site], read: Any) -> Any:
    """Return the shapes of the factors that are read at sites for one example."""
    batch = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct((1, *array.shape), array.dtype), read
    )
    return jax.eval_shape(functools.partial(read_factors, sites), *batch)


def ghost(loss: Any, params: Any, batch: Any, spmd_axis_name: Any = None) -> PerExample:
    """Measure and sum the examples' gradients, in factored form where possible.

    Args:
        loss: maps parameters and one example to its loss and an auxiliary tree.
        params: the parameters.
        batch: a tree whose leaves have the examples along their first axis.
        spmd_axis_name: see `jax.vmap`.
    """
    leaves = Leaves.of(params)
    found = backward(loss, leaves, batch, spmd_axis_name)
    plan, arrays = found.plan, list(leaves.arrays)

    def weighted_sum(weights: dict[str, jax.Array]) -> Any:
        sums, last = {}, None
        for leaf in plan.unused:
            sums[leaf] = jnp.zeros_like(widened(arrays[leaf]))
        for leaf, gradient in found.gradients.items():
            weight = after(weights[plan.names[leaf]], last)
            sums[leaf] = last = dense_sum(gradient, weight)
        # In reverse: the arrays of the last site were computed last, and are freed
        # first.
        for product in reversed(list(found.products.values())):
            leaf = product.site.view.leaf
            weight = after(weights[plan.names[leaf]], last)
            part = _site_sum(product, arrays[leaf], weight)
            sums[leaf] = last = sums[leaf] + part if leaf in sums else part
        named = {name: sums[leaf] for leaf, name in enumerate(plan.names)}
        return leaves.tree_by_name(named)

    by_leaf = _bounded(found)
    bounded = {name: by_leaf[leaf] for leaf, name in enumerate(plan.names)}
    return PerExample(
        {name: one.square for name, one in bounded.items()},
        {name: one.bound for name, one in bounded.items()},
        {name: one.underflow for name, one in bounded.items()},
        found.losses,
        found.aux,
        weighted_sum,
    )


def describe(loss: Any, params: Any, batch: Any, always_dense: bool = False) -> str:
    """Describe how each parameter is measured, and the memory that this takes."""
    leaves = Leaves.of(params)
    held: dict[int, int] = {}
    forms: dict[int, str] = {}
    rows = jax.tree.leaves(batch)[0].shape[0]

    def read(arrays: dict[str, jax.Array], batch: Any) -> None:
        found = backward(loss, Leaves.of(leaves.tree_by_name(arrays)), batch)
        for leaf, reason in found.plan.dense.items():
            forms[leaf] = f"gradients per example ({reason})"
        for leaf in found.plan.unused:
            forms[leaf], held[leaf] = "not used", 0
        taken = set()
        for product in found.products.values():
            leaf = product.site.view.leaf
            form = f"{product.site.kind} {product.form}"
            forms[leaf] = f"{forms[leaf]}, {form}" if leaf in forms else form
            # Sites share operands, and the terms of a sum share their cotangent.
            for array in product.read:
                if id(array) not in taken:
                    taken.add(id(array))
                    held[leaf] = held.get(leaf, 0) + _bytes(array)
            held[leaf] = held.get(leaf, 0) + sum(map(_bytes, product.gradient))

    if not always_dense:
        jax.eval_shape(read, leaves.by_name, batch)
    lines = []
    for leaf, (name, array) in enumerate(leaves.by_name.items()):
        form = forms.get(leaf, "gradients per example (the method vmap)")
        held.setdefault(leaf, rows * _bytes(array))
        lines.append(f"{name}: {form}, {held[leaf] / 2**20:.3g} MiB")
    return "\n".join([*lines, f"held at once: {sum(held.values()) / 2**20:.3g} MiB"])


def _bytes(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize


def _bounded(found: Pass) -> dict[int, Bounded]:
    """Bound each parameter's share of each example, by position of the parameter."""
    nothing = jnp.zeros(found.losses.shape)
    bounded = {leaf: Bounded(*[nothing] * 3) for leaf in found.plan.unused}
    bounded |= {
        leaf: of_gradients(gradient) for leaf, gradient in found.gradients.items()
    }
    by_leaf: dict[int, dict[int, Product]] = {}
    for i, product in found.products.items():
        by_leaf.setdefault(product.site.view.leaf, {})[i] = product
    for leaf, products in by_leaf.items():
        bounded[leaf] = of_parameter(products, found.pairs)
    return bounded


def _site_sum(product: Product, leaf: jax.Array, weights: jax.Array) -> jax.Array:
    arranged, back = jax.vjp(product.site.view.arrange, jnp.zeros_like(widened(leaf)))
    return back(product.weighted(weights).astype(arranged.dtype))[0]
