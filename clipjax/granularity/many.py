"""Granularities with many blocks, kept leaf by leaf: unit, element."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ..norms import Axes, Norm, linf
from ..trees import NamedLeaves, per_leaf, resolve
from .base import Block, Blocks, Granularity, stacked_axes


@dataclasses.dataclass(frozen=True, repr=False)
class Unit(Granularity):
    """One block per output unit of each leaf."""

    reduced: Any = None
    stacked: Any = None
    kind = "unit"
    summarised = True

    def names(self, leaves: NamedLeaves) -> tuple[str, ...]:
        """Names the leaves, which are what is reported."""
        return tuple(sorted(leaves.arrays))

    def axes(self, name: str, leaf: Any) -> Axes:
        """Sums over the unit's axes, by default by rank."""
        chosen = resolve(self.reduced, name, leaf)
        if chosen is not None:
            return _normalised_axes(chosen, name, leaf)
        stacked = stacked_axes(self.stacked, name, leaf)
        shape = leaf.shape[stacked:]
        if sum(n != 1 for n in shape) <= 1:
            inner = range(len(shape))
        elif len(shape) in (2, 3):
            inner = range(1)
        elif len(shape) in (4, 5):
            inner = range(len(shape) - 1)
        else:
            raise ValueError(
                f"axes must be given for {name!r} of shape {leaf.shape}: without "
                "them, unit() knows leaves of rank 0 to 5"
            )
        return tuple(stacked + i for i in inner)

    def require_shards(self, leaves, split) -> None:
        """Does not guess from a shard's shape which axes a unit spans."""
        for name, leaf in leaves.arrays.items():
            is_guess = resolve(self.reduced, name, leaf) is None and leaf.ndim > 1
            if split[name] and is_guess:
                raise ValueError(
                    f"{name or 'the update'} is split over {split[name]}, and a shard "
                    "does not tell which of its axes a unit spans: name them, with "
                    "unit(axes) or adaptive_grad_clip(axis=...), and split the leaf "
                    "along those only; or call the clip under jit"
                )

    def fold(self, partials, names, merge, leaves) -> dict[str, jax.Array]:
        """Keeps each leaf's units."""
        del names, merge, leaves
        return dict(partials)

    def spread(self, values, names, leaves) -> dict[str, jax.Array]:
        """Keeps each leaf's units, or gives every leaf the one value."""
        del names
        if isinstance(values, dict):
            return values
        return {name: values for name in leaves.arrays}

    def zeros(self, names, leaves, dtype) -> dict[str, jax.Array]:
        """Makes zeros that lie where the norms will."""
        del names
        return {
            name: _zeros_beside(leaf, self._kept_shape(name, leaf), dtype)
            for name, leaf in leaves.arrays.items()
        }

    def _from_leaves(self, entries, names, leaves) -> Blocks:
        del names, leaves
        return entries


@dataclasses.dataclass(frozen=True, repr=False)
class Element(Unit):
    """Every entry is its own block."""

    reduced: Any = dataclasses.field(default=None, init=False)
    stacked: Any = dataclasses.field(default=None, init=False)
    kind = "element"
    joins_devices = False

    def axes(self, name: str, leaf: Any) -> Axes:
        """Sums over nothing."""
        del name, leaf
        return ()

    def require_shards(self, leaves, split) -> None:
        """Takes any shard."""

    def block_norm(self, norm: Norm) -> Norm:
        """Takes the magnitude, which is every norm of a single entry."""
        del norm
        return linf

    def limit(self, norms: Blocks) -> Blocks:
        """Lets ±inf be clipped like any large entry; NaN stays."""
        return jax.tree.map(lambda n: jnp.minimum(n, jnp.finfo(n.dtype).max), norms)

    def summary(self, leaves: NamedLeaves, blocks: Blocks) -> Mapping[str, jax.Array]:
        """Reads the leaves themselves, rather than write their magnitudes down."""
        del blocks
        return leaves.arrays

    def rescale(self, leaf: jax.Array, block: Block) -> jax.Array:
        """Keeps the sign and gives a real entry its exact length."""
        if jnp.iscomplexobj(leaf):
            return super().rescale(leaf, block)
        return jnp.sign(leaf) * block.length


def _zeros_beside(leaf: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Makes zeros of a leaf's shape, reduced to 1 along some axes, split as it is."""
    if not isinstance(leaf, jax.Array):
        return jnp.zeros(shape, dtype)
    sharding = jax.typeof(leaf).sharding
    spec = [
        part if kept == whole else None
        for part, kept, whole in zip(sharding.spec, shape, leaf.shape, strict=True)
    ]
    if not any(spec):
        return jnp.zeros(shape, dtype)
    where = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return jnp.zeros(shape, dtype, device=where)


def _normalised_axes(chosen: Any, name: str, leaf: Any) -> tuple[int, ...]:
    axes = (chosen,) if isinstance(chosen, int) else tuple(chosen)
    if any(not -leaf.ndim <= axis < leaf.ndim for axis in axes):
        raise ValueError(
            f"axes must be axes of {name!r}, which has shape {leaf.shape}, "
            f"got {chosen!r}"
        )
    return tuple(sorted({axis % leaf.ndim for axis in axes}))


def unit(axes: Any = None, stacked: Any = None) -> Unit:
    """One norm per output unit: per column of a dense kernel, per filter.

    Args:
        axes: the axes that one unit spans. By default, by rank as Optax does: all
            for scalars and vectors (axes of size 1 aside), axis 0 at rank 2 and 3,
            all but the last at rank 4 and 5. Axes, a function of (path, leaf), or a
            table from path pattern to axes (the default elsewhere).
        stacked: how many leading axes stack separate layers, given as in `leaf`;
            the default axes are those of one layer. Not used where axes are given.
    """
    if isinstance(axes, list):
        axes = tuple(axes)
    return Unit(per_leaf(axes, None), per_leaf(stacked, None))


def element() -> Element:
    """Every entry by itself; any norm of one entry is its magnitude."""
    return Element()
