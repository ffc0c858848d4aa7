"""The plan for a loss and its shapes: how each parameter's gradient is measured."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ..jax_internals import Program
from .layouts import layout_of
from .views import Site, View, Walk


@dataclasses.dataclass(frozen=True)
class Plan:
    """How each parameter is measured.

    Attributes:
        names: the parameters' names.
        sites: the sites of the parameters that need no gradient per example.
        groups: the positions of sites whose factors are concatenated, use by use.
        dense: the positions of parameters that need a gradient per example, with the
            reason.
        unused: the positions of parameters that the loss does not depend on.
        pairs: the pairs of groups that use the same entries of one parameter, so that
            the norm has a cross term; true where the second group's arrangement is the
            transpose of the first's.
    """

    names: tuple[str, ...]
    sites: tuple[Site, ...]
    groups: tuple[tuple[int, ...], ...]
    dense: dict[int, str]
    unused: frozenset[int]
    pairs: dict[tuple[int, int], bool]


def make_plan(
    program: Program, names: tuple[str, ...], params: list[jax.Array]
) -> Plan:
    """Return the plan of a loss.

    The analysis is repeated until it finds no further dense parameter: a parameter that
    turns out to be dense is no longer a view, which may make parameters dense that are
    multiplied with it.

    Args:
        program: the loss of one example, parameters first.
        names: the parameters' names.
        params: arrays or ``ShapeDtypeStruct``.
    """
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
            for leaf, variable in enumerate(program.inputs[: len(names)])
            if leaf not in dense
        }
        walk.visit(program, views, (), ())
        walk.finish(program, views, "returned by the loss")
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
    """Group the sites of each parameter, and find groups that share entries.

    Arrangements are compared by arranging the entries' numbers.

    Returns:
        The groups, the pairs, and the parameters that are dense after all; see `Plan`.
    """
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
        # First count the uses of each entry: comparing all pairs takes long where a
        # parameter holds many layers, each a slice of it.
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
    """Return a parameter's sites, grouped by kind and arrangement, and arrangements.

    Concatenate the uses of a parameter only if there are more than two: concatenation
    copies the factors, but T separate uses have T² / 2 cross terms (an unrolled
    recurrent net).
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
