"""Granularities with few blocks, kept in one array: whole, leaf, group."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..distributed import gathered
from ..norms import Axes
from ..trees import NamedLeaves, per_leaf
from .base import Blocks, Granularity, stacked_axes


@dataclasses.dataclass(frozen=True, repr=False)
class Whole(Granularity):
    """One block: the whole tree."""

    kind = "whole"

    def names(self, leaves: NamedLeaves) -> tuple[str, ...]:
        """Has none to tell apart."""
        del leaves
        return ()

    def fold(self, partials, names, merge, leaves) -> Blocks:
        """Joins all leaves."""
        del names, leaves
        return merge(list(partials.values())) if partials else jnp.zeros(())

    def spread(self, values, names, leaves) -> dict[str, jax.Array]:
        """Gives every leaf the same value."""
        del names
        return {name: values for name in leaves.arrays}


@dataclasses.dataclass(frozen=True, repr=False)
class Leaf(Granularity):
    """One block per leaf, or per layer of a leaf that stacks layers."""

    stacked: Any = None
    kind = "leaf"

    def axes(self, name: str, leaf: Any) -> Axes:
        """Sums over all but the stacked axes."""
        stacked = stacked_axes(self.stacked, name, leaf)
        return tuple(range(stacked, leaf.ndim)) if stacked else None

    def names(self, leaves: NamedLeaves) -> tuple[str, ...]:
        """Names the leaves, and the layers of a stack as ``blocks/kernel[3]``."""
        return tuple(sorted(n for names in self._members(leaves) for n in names))

    def _members(self, leaves: NamedLeaves) -> list[list[str]]:
        members = []
        for name, leaf in leaves.arrays.items():
            count = math.prod(self._kept_shape(name, leaf))
            is_stack = self.axes(name, leaf) is not None
            members.append(
                [f"{name}[{i:0{len(str(count - 1))}}]" for i in range(count)]
                if is_stack
                else [name]
            )
        return members

    def require_shards(self, leaves, split) -> None:
        """Does not guess from a shard's shape which layers of a stack it holds."""
        for name, leaf in leaves.arrays.items():
            if split[name] and self.axes(name, leaf) is not None:
                raise ValueError(
                    f"{name or 'the update'} is split over {split[name]}, and a shard "
                    "does not tell which layers of a stack it holds: leave stacked "
                    "out, or call the clip under jit"
                )

    def fold(self, partials, names, merge, leaves) -> Blocks:
        """Lines the leaves up by name; one that is absent from the tree gives 0."""
        del merge
        by_name = {}
        for members, partial in zip(
            self._members(leaves), partials.values(), strict=True
        ):
            flat = _unsplit(partial).reshape(-1)
            by_name |= {name: flat[i] for i, name in enumerate(members)}
        if not names:
            return jnp.zeros((0,))
        dtype = next(iter(by_name.values())).dtype if by_name else jnp.float32
        absent = jnp.zeros((), dtype)
        return jnp.stack([by_name.get(name, absent) for name in names])

    def spread(self, values, names, leaves) -> dict[str, jax.Array]:
        """Gives each leaf its value, or each layer of a stack."""
        place = {name: i for i, name in enumerate(names)}
        spread = {}
        for (name, leaf), members in zip(
            leaves.arrays.items(), self._members(leaves), strict=True
        ):
            parts = [values[place[member]] for member in members]
            shape = self._kept_shape(name, leaf)
            spread[name] = jnp.stack(parts).reshape(shape) if shape else parts[0]
        return spread

    def _from_leaves(self, entries, names, leaves) -> Blocks:
        shaped = {
            name: jnp.broadcast_to(entry, self._stack_shape(name, leaves.arrays[name]))
            for name, entry in entries.items()
        }
        return self.fold(shaped, names, max, leaves)

    def _stack_shape(self, name: str, leaf: Any) -> tuple[int, ...]:
        axes = self.axes(name, leaf)
        return () if axes is None else leaf.shape[: leaf.ndim - len(axes)]


def _unsplit(partial: Any) -> Any:
    """Gathers one number for each layer, which an explicit mesh may have split."""
    return gathered(partial, 0) if isinstance(partial, jax.Array) else partial


@dataclasses.dataclass(frozen=True, repr=False)
class Group(Granularity):
    """One block per label."""

    labels: Any
    members: tuple[str, ...] | None = None
    kind = "group"

    def __repr__(self) -> str:
        """Prints the kind; the labels are a tree or a function."""
        return self.kind

    def _label_of(self, leaves: NamedLeaves) -> dict[str, Any]:
        if callable(self.labels):
            labels = {n: self.labels(n, leaf) for n, leaf in leaves.arrays.items()}
        else:
            labels = leaves.broadcast(_thaw(self.labels), "labels")
        for name, label in labels.items():
            if not isinstance(label, str):
                raise TypeError(
                    f"labels must give a string for each leaf, got {label!r} "
                    f"for {name!r}"
                )
            if self.members is not None and label not in self.members:
                raise ValueError(
                    f"labels gives {label!r} for {name!r}, which has no threshold; "
                    f"the groups are {', '.join(map(repr, self.members))}"
                )
        return labels

    def names(self, leaves: NamedLeaves) -> tuple[str, ...]:
        """Gives the labels."""
        labels = self._label_of(leaves)
        return self.members or tuple(sorted(set(labels.values())))

    def fold(self, partials, names, merge, leaves) -> Blocks:
        """Joins the leaves of each group; an empty group gives 0."""
        labels = self._label_of(leaves)
        dtype = next(iter(partials.values())).dtype if partials else jnp.float32
        groups = []
        for group in names:
            parts = [p for name, p in partials.items() if labels[name] == group]
            groups.append(merge(parts) if parts else jnp.zeros((), dtype))
        return jnp.stack(groups) if groups else jnp.zeros((0,), dtype)

    def spread(self, values, names, leaves) -> dict[str, jax.Array]:
        """Gives each leaf its group's value."""
        place = {name: i for i, name in enumerate(names)}
        labels = self._label_of(leaves)
        return {name: values[place[labels[name]]] for name in leaves.arrays}

    def table(self, prefix, names, leaves, dtype) -> Blocks:
        """Reads a dictionary from label to value."""
        del leaves
        if not isinstance(prefix, Mapping) or set(names) - set(prefix):
            raise ValueError(
                "threshold must be one number or a dictionary with an entry for "
                f"each of the groups {', '.join(map(repr, names))}, got {prefix!r}"
            )
        return jnp.stack([jnp.asarray(prefix[name], dtype) for name in names])


@dataclasses.dataclass(frozen=True)
class _Frozen:
    """A tree of labels as a value that compares and hashes."""

    treedef: Any
    leaves: tuple[Any, ...]


def _thaw(frozen: _Frozen) -> Any:
    return jax.tree_util.tree_unflatten(frozen.treedef, frozen.leaves)


def whole() -> Whole:
    """One norm for the whole tree."""
    return Whole()


def leaf(stacked: Any = None) -> Leaf:
    """One norm per leaf.

    Args:
        stacked: how many leading axes of a leaf stack separate layers, as
            ``nnx.scan`` and ``nn.scan`` make them: each layer then has its own norm.
            A number, a function of (path, leaf), or a table from path pattern, such
            as ``{"blocks/*": 1}``, to a number (none elsewhere).
    """
    return Leaf(per_leaf(stacked, None))


def group(labels: Any, members: Sequence[str] | None = None) -> Group:
    """One norm per label.

    Args:
        labels: a prefix tree of strings, or a function of (path, leaf) to a string.
        members: all the labels there are; by default, those that occur. A leaf with
            another label is then an error, and an absent label is an empty group.
    """
    if not callable(labels):
        leaves, treedef = jax.tree_util.tree_flatten(labels)
        labels = _Frozen(treedef, tuple(leaves))
    return Group(labels, None if members is None else tuple(sorted(members)))
