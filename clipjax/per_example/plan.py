"""Decides, once for a loss and its shapes, how each parameter is measured."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .layouts import layout_of
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
