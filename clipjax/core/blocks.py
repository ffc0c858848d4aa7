"""Blocks: the sets of entries of a tree that share one norm.

One value per block is a *list* of arrays, here called values: one scalar per block for
``whole``, ``group`` and ``leaf``; one array per leaf for ``unit`` and for leaves that
stack layers. Values are not concatenated into one array, for two reasons: XLA compiles
one kernel for all leaves of a shape only if each reads a scalar of its own, and
concatenating arrays that are split over a mesh gathers them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..norms import Axes, Norm
from .meshes import MeshAxes, gathered, over_devices
from .trees import Leaves

Values = list[Any]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The blocks of one tree, as a granularity defines them.

    Attributes:
        leaves: the leaves of the tree.
        mesh_axes: the manual mesh axes that each leaf is split over.
        summed: the axes of each leaf that a norm sums over.
        members: for each value, the positions of the leaves that its norm covers.
    """

    leaves: Leaves
    mesh_axes: list[MeshAxes]
    summed: list[Axes]
    members: list[list[int]]

    def over_devices(self, norm: Norm, sums: Sequence[jax.Array]) -> list[jax.Array]:
        """Reduce the sums of leaves over the devices that the leaves are split over."""
        return over_devices(sums, self.mesh_axes, norm.collective)

    def join(self, norm: Norm, sums: Sequence[jax.Array]) -> Values:
        """Join the sums of leaves into sums of blocks."""
        joined = []
        for members in self.members:
            own = [sums[i] for i in members] or [jnp.zeros((), self.leaves.dtype)]
            joined.append(norm.merge(jnp.stack(own)) if len(own) > 1 else own[0])
        return joined

    def map(self, function: Callable[..., Any], *values: Values) -> Values:
        """Apply a function block by block."""
        return [function(*each) for each in zip(*values, strict=True)]

    def fill(self, value: Any) -> Values:
        """Return the same value for every block."""
        return [value] * len(self.members)

    def spread(self, values: Values) -> list[Any]:
        """Return for each leaf the value of its block, to be broadcast by `shaped`."""
        spread: list[Any] = [None] * len(self.leaves.arrays)
        for value, members in zip(values, self.members, strict=True):
            for i in members:
                spread[i] = value
        return spread

    def shaped(self, value: jax.Array, leaf: int) -> jax.Array:
        """Return a value with the rank of a leaf, so that the two broadcast.

        A scalar broadcasts already, and is returned unchanged.
        """
        if not value.ndim:
            return value
        return jax.lax.expand_dims(value, self.summed[leaf])

    @functools.cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each value."""
        kept = [
            tuple(n for axis, n in enumerate(leaf.shape) if axis not in summed)
            for leaf, summed in zip(self.leaves.arrays, self.summed, strict=True)
        ]
        return [kept[members[0]] if members else () for members in self.members]

    @functools.cached_property
    def count(self) -> int:
        """The number of blocks; inside shard_map, of the blocks of one shard."""
        return sum(map(math.prod, self.shapes))

    @functools.cached_property
    def sizes(self) -> list[int]:
        """For each value, the number of entries of a block, over all devices."""
        entries = [
            math.prod(leaf.shape[axis] for axis in axes)
            * math.prod(map(jax.lax.axis_size, names))
            for leaf, axes, names in zip(
                self.leaves.arrays, self.summed, self.mesh_axes, strict=True
            )
        ]
        return [sum(entries[i] for i in members) for members in self.members]

    def vector(self, values: Values) -> jax.Array:
        """Return the values of all blocks in one array of shape ``(blocks,)``."""
        values = [
            jnp.broadcast_to(value, shape)
            for value, shape in zip(values, self.shapes, strict=True)
        ]
        if not values:
            return jnp.zeros((0,), self.leaves.dtype)
        if not any(self.shapes):
            return jnp.stack(values)
        return jnp.concatenate([gathered(value, 0).reshape(-1) for value in values])

    def of_vector(self, vector: jax.Array) -> Values:
        """Return the values that `vector` concatenated: its inverse."""
        values, start = [], 0
        for shape in self.shapes:
            size = math.prod(shape)
            part = jax.lax.slice_in_dim(vector, start, start + size)
            values.append(part.reshape(shape))
            start += size
        return values

    def per_leaf(self, entries: Sequence[Any]) -> Values:
        """Return the values of a table that has one entry per leaf.

        An entry is a number, or an array that broadcasts to the blocks of its leaf.
        """
        entries = [entries[members[0]] for members in self.members]
        for entry, shape in zip(entries, self.shapes, strict=True):
            require_fit(entry, shape)
        return entries


def require_fit(threshold: Any, shape: tuple[int, ...]) -> None:
    """Refuse a threshold that does not broadcast to the blocks of a leaf."""
    if not fits(jnp.shape(threshold), shape):
        raise ValueError(
            f"threshold of shape {jnp.shape(threshold)} does not fit blocks of shape "
            f"{shape}; pass one number, or one per block"
        )


def fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Return whether a shape broadcasts to another without enlarging it."""
    if len(shape) > len(target):
        return False
    trailing = target[len(target) - len(shape) :]
    return all(n in (1, m) for n, m in zip(shape, trailing, strict=True))
