"""Decides, once for a loss and its shapes, how each parameter is measured."""

from __future__ import annotations

import dataclasses
import itertools
import math
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
        groups: positions of sites that are read as one, with the uses of all.
        dense: why the others do, by position.
        unused: the positions of those that the loss does not depend on.
        pairs: for two groups of one parameter whose entries meet, whether the second is
            arranged as the first, transposed.
    """

    names: tuple[str, ...]
    sites: tuple[Site, ...]
    groups: tuple[tuple[int, ...], ...]
    dense: dict[int, str]
    unused: frozenset[int]
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
        if not found:
            groups, pairs, found = _align(walk.sites, shapes)
        if not found:
            used = {site.view.leaf for site in walk.sites}
            unused = frozenset(range(len(names))) - used - set(dense)
            sites = tuple(walk.sites)
            return Plan(names, sites, groups, dense, unused, pairs)
        dense |= found


def _align(
    sites: list[Site], shapes: list[tuple[int, ...]]
) -> tuple[tuple[tuple[int, ...], ...], dict[tuple[int, int], bool], dict[int, str]]:
    """Compares, entry by entry, the arrangements of parameters with several sites."""
    groups, pairs, dense = [], {}, {}
    by_leaf: dict[int, list[int]] = {}
    for position, site in enumerate(sites):
        by_leaf.setdefault(site.view.leaf, []).append(position)
    for leaf, positions in by_leaf.items():
        if len(positions) == 1:
            groups.append((positions[0],))
            continue
        mine = _alike(sites, positions, shapes[leaf])
        first = len(groups)
        groups += [members for members, _ in mine]
        # To compare all pairs takes long where layers are slices of one parameter.
        uses = np.zeros(math.prod(shapes[leaf]), np.int32)
        for _, one in mine:
            uses[one.reshape(-1)] += 1
        if uses.max(initial=0) < 2:
            continue
        for (i, (_, one)), (j, (_, two)) in itertools.combinations(
            enumerate(mine, first), 2
        ):
            are_lookups = all(sites[groups[k][0]].kind == "lookup" for k in (i, j))
            if np.array_equal(one, two):
                pairs[i, j] = False
            elif np.array_equal(one, np.swapaxes(two, 1, 2)) and not are_lookups:
                pairs[i, j] = True
            elif np.intersect1d(one, two).size:
                dense[leaf] = "used in arrangements that overlap but do not align"
    return tuple(groups), pairs, dense


def _alike(
    sites: list[Site], positions: list[int], shape: tuple[int, ...]
) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Groups a parameter's sites of one kind and arrangement, and tells the latter.

    Two are left apart: to join what was read takes a copy. Of more there would be too
    many pairs, as where a recurrent net is unrolled.
    """
    found: list[tuple[list[int], np.ndarray]] = []
    with jax.ensure_compile_time_eval():
        entries = jnp.arange(math.prod(shape), dtype=jnp.int32).reshape(shape)
        for position in positions:
            site = sites[position]
            one = np.asarray(layout_of(site).arranged(site.view.arrange(entries)))
            for members, other in found:
                is_alike = sites[members[0]].kind == site.kind != "convolution"
                if is_alike and np.array_equal(one, other):
                    members.append(position)
                    break
            else:
                found.append(([position], one))
    return [
        (part, one)
        for members, one in found
        for part in (
            [tuple(members)] if len(members) > 2 else [(member,) for member in members]
        )
    ]
