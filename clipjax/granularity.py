"""Granularities: which entries of a gradient tree share one norm.

| granularity | one block for |
|---|---|
| `whole` | the tree |
| `group` | each label of leaves |
| `leaf` | each leaf, or each layer of a leaf that stacks layers |
| `unit` | each output unit of each leaf |

Single entries and singular values are clipped by separate transformations, see
`clipjax.clip_entries` and `clipjax.clip_singular_values`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from .core.blocks import Blocks
from .core.meshes import MeshAxes
from .core.settings import Setting, takes_tree
from .core.trees import Leaves
from .norms import Axes

# Each may be a plain value, a function of (path, leaf), or a table from path pattern.
Stacked = int | Mapping[str, int] | Callable[[str, Any], int] | None
Axis = int | Sequence[int]
UnitAxes = Axis | Mapping[str, Axis] | Callable[[str, Any], Axis] | None
# A prefix tree of strings, whatever its containers, or a function.
Labels = Any


class Granularity:
    """The protocol between a granularity and the engine.

    Granularities are frozen dataclasses.

    Attributes:
        kind: the name in a clip's coordinates.
        reports_blocks: whether blocks are few enough to report each of them.
        labels: the names of the blocks, where the clip's own settings define them.
        takes_table: whether a clip accepts a table of thresholds, one per leaf or
            label.
    """

    kind: str
    reports_blocks: bool = False
    labels: tuple[str, ...] = ()
    takes_table: bool = True

    def of(self, leaves: Leaves, mesh_axes: list[MeshAxes]) -> Blocks:
        """Return the blocks of a tree."""
        raise NotImplementedError

    def names(self, leaves: Leaves) -> list[str]:
        """Return the names of the blocks that are reported, in order."""
        del leaves
        return list(self.labels)

    def table(self, entries: Any, blocks: Blocks, argument: str) -> list[Any]:
        """Return one value per block from a prefix tree with one entry per leaf."""
        return blocks.per_leaf(blocks.leaves.prefix(entries, argument))

    def __repr__(self) -> str:
        settings = [
            f"{field.name}={value!r}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"{self.kind}({', '.join(settings)})" if settings else self.kind


@dataclasses.dataclass(frozen=True, repr=False)
class Whole(Granularity):
    """One block: the whole tree."""

    kind = "whole"
    takes_table = False

    def of(self, leaves, mesh_axes):
        everything = list(range(len(leaves.arrays)))
        return Blocks(leaves, mesh_axes, _all_axes(leaves), [everything])


@dataclasses.dataclass(frozen=True, repr=False)
class Leaf(Granularity):
    """One block per leaf, or per layer of a leaf that stacks layers."""

    stacked: Setting | None = None
    kind = "leaf"
    reports_blocks = True

    def of(self, leaves, mesh_axes):
        layers = _stacked_axes(self.stacked, leaves)
        for i, (split, count) in enumerate(zip(mesh_axes, layers, strict=True)):
            if split and count:
                raise ValueError(
                    f"{leaves.names[i] or 'the update'} is split over {split}, and a "
                    "shard does not tell which layers of a stack it holds: leave "
                    "stacked out, or call the clip under jit"
                )
        summed = [
            tuple(range(count, leaf.ndim))
            for count, leaf in zip(layers, leaves.arrays, strict=True)
        ]
        return Blocks(leaves, mesh_axes, summed, [[i] for i in range(len(summed))])

    def names(self, leaves):
        names = []
        layers = _stacked_axes(self.stacked, leaves)
        for name, leaf, count in zip(leaves.names, leaves.arrays, layers, strict=True):
            number = math.prod(leaf.shape[:count])
            width = len(str(number - 1))
            names += (
                [f"{name}[{i:0{width}}]" for i in range(number)] if count else [name]
            )
        return names


@dataclasses.dataclass(frozen=True, repr=False)
class Group(Granularity):
    """One block per label; see `group`."""

    labelling: Any
    members: tuple[str, ...] = ()
    kind = "group"
    reports_blocks = True

    @property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """The labels, if the settings define them without a tree."""
        if self.members or callable(self.labelling):
            return self.members
        return tuple(sorted(set(self.labelling.leaves)))

    def names(self, leaves):
        return list(self.labels) or sorted(set(self.label_of_each(leaves)))

    def of(self, leaves, mesh_axes):
        # optax.tree_map_params initializes a state from a placeholder without leaves.
        own = self.label_of_each(leaves) if leaves.arrays else []
        names = self.labels or sorted(set(own))
        members = [[i for i, label in enumerate(own) if label == n] for n in names]
        for name, positions in zip(names, members, strict=True):
            if leaves.arrays and not positions:
                raise ValueError(
                    f"no leaf has the label {name!r}; the leaves are "
                    f"{', '.join(leaves.names)}"
                )
        return Blocks(leaves, mesh_axes, _all_axes(leaves), members)

    def table(self, entries, blocks, argument):
        names = self.names(blocks.leaves)
        if not isinstance(entries, Mapping) or set(names) != set(entries):
            raise ValueError(
                f"{argument} must be one number or a dictionary with an entry for each "
                f"of the groups {', '.join(map(repr, names))}, got {entries!r}"
            )
        return [entries[name] for name in names]

    def label_of_each(self, leaves: Leaves) -> list[str]:
        """Return the label of each leaf."""
        labelling = self.labelling
        if not callable(labelling):
            labels = leaves.prefix(labelling.tree(), "labels")
        elif takes_tree(labelling):
            labels = leaves.prefix(labelling(leaves.tree(leaves.arrays)), "labels")
        else:
            labels = leaves.map(lambda leaf, name: labelling(name, leaf), leaves.names)
        for name, label in zip(leaves.names, labels, strict=True):
            if not isinstance(label, str):
                raise TypeError(
                    f"labels must give a string for each leaf, got {label!r} for "
                    f"{name!r}"
                )
            if self.members and label not in self.members:
                raise ValueError(
                    f"leaf {name!r} has the label {label!r}, which has no threshold; "
                    f"the groups are {', '.join(map(repr, self.members))}"
                )
        return labels

    def __repr__(self) -> str:
        # The labels are more informative than the repr of a tree or a function.
        return f"group({', '.join(self.labels)})" if self.labels else "group"


@dataclasses.dataclass(frozen=True, repr=False)
class Unit(Granularity):
    """One block per output unit of each leaf; see `unit`."""

    axes: Setting | None = None
    stacked: Setting | None = None
    kind = "unit"

    def of(self, leaves, mesh_axes):
        stacked = _stacked_axes(self.stacked, leaves)
        chosen = [None] * len(stacked) if self.axes is None else self.axes(leaves)
        summed = [
            _unit_axes(leaves, i, axes, stacked[i]) for i, axes in enumerate(chosen)
        ]
        for i, leaf in enumerate(leaves.arrays):
            if mesh_axes[i] and chosen[i] is None and leaf.ndim > 1:
                raise ValueError(
                    f"{leaves.names[i] or 'the update'} is split over {mesh_axes[i]}, "
                    "and a shard does not tell which of its axes a unit spans: name "
                    "them, with unit(axes) or adaptive_grad_clip(axis=...), and split "
                    "the leaf along those only; or call the clip under jit"
                )
        return Blocks(leaves, mesh_axes, summed, [[i] for i in range(len(summed))])


def _all_axes(leaves: Leaves) -> list[Axes]:
    return [tuple(range(leaf.ndim)) for leaf in leaves.arrays]


def _stacked_axes(setting: Setting | None, leaves: Leaves) -> list[int]:
    """Return how many leading axes of each leaf stack layers."""
    if setting is None:
        return [0] * len(leaves.arrays)
    counts = [0 if count is None else count for count in setting(leaves)]
    for i, count in enumerate(counts):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(
                f"stacked must be a number of leading axes, got {count!r} for "
                f"{leaves.names[i]!r}"
            )
        if count > leaves.arrays[i].ndim:
            raise ValueError(
                f"stacked must be at most the rank of {leaves.names[i]!r}, which has "
                f"shape {leaves.arrays[i].shape}, got {count!r}"
            )
    return counts


def _unit_axes(leaves: Leaves, position: int, chosen: Any, stacked: int) -> Axes:
    """Return the axes that a unit spans, by default the ones that Optax chooses."""
    leaf = leaves.arrays[position]
    if chosen is not None:
        axes = (chosen,) if isinstance(chosen, int) else tuple(chosen)
        if any(not -leaf.ndim <= axis < leaf.ndim for axis in axes):
            raise ValueError(
                f"axes must be axes of {leaves.names[position]!r}, which has shape "
                f"{leaf.shape}, got {chosen!r}"
            )
        return tuple(sorted({axis % leaf.ndim for axis in axes}))
    shape = leaf.shape[stacked:]
    if sum(n != 1 for n in shape) <= 1:
        inner = range(len(shape))
    elif len(shape) > 5:
        raise ValueError(
            f"axes must be given for {leaves.names[position]!r} of shape "
            f"{leaf.shape}: without them, unit() knows leaves of rank 0 to 5"
        )
    else:
        inner = range(1) if len(shape) <= 3 else range(len(shape) - 1)
    return tuple(stacked + i for i in inner)


@dataclasses.dataclass(frozen=True)
class _FrozenTree:
    """A tree of labels that can be compared and hashed."""

    treedef: Any
    leaves: tuple[Any, ...]

    def tree(self) -> Any:
        return jax.tree.unflatten(self.treedef, self.leaves)


def _entries(setting: Any) -> list[Any]:
    """Return the values that a setting may have, unless a function computes them."""
    values = setting.values() if isinstance(setting, Mapping) else [setting]
    return [value for value in values if value is not None and not callable(value)]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _stacked(stacked: Stacked) -> Setting | None:
    """Check the argument ``stacked``, and return it as a setting."""
    for entry in _entries(stacked):
        accepted = (
            "stacked must be a number of leading axes, a function of (path, leaf) or a "
            "table from path pattern to number"
        )
        if not _is_integer(entry):
            raise TypeError(f"{accepted}, got {entry!r}")
        if entry < 0:
            raise ValueError(f"{accepted}, at least 0, got {entry!r}")
    return None if stacked is None else Setting.of(stacked, 0, "stacked")


def whole() -> Whole:
    """Return the granularity with one norm for the whole tree."""
    return Whole()


def leaf(stacked: Stacked = None) -> Leaf:
    """Return the granularity with one norm per leaf.

    Args:
        stacked: how many leading axes of a leaf stack separate layers, as ``nnx.scan``
            and ``nn.scan`` create them: each layer then has its own norm. A number, a
            function of (path, leaf), or a table from path pattern, such as
            ``{"blocks/*": 1}``, to a number (0 elsewhere).
    """
    return Leaf(_stacked(stacked))


def group(labels: Labels, members: Sequence[str] = ()) -> Group:
    """Return the granularity with one norm per label.

    Args:
        labels: a prefix tree of strings; or a function of (path, leaf) to a string,
            where a path reads ``encoder/0/kernel``; or, as for ``optax.partition``, a
            function of the tree to such a prefix tree.
        members: all labels; by default those of the prefix tree. Blocks are in the
            order of the sorted labels. With a function and no members, the state does
            not store the labels, and `clipjax.metrics` numbers the groups.

    Raises:
        ValueError: in ``init`` and ``update``, a leaf has a label that is not a member,
            or a member has no leaf.
    """
    if not callable(labels):
        every_label, treedef = jax.tree.flatten(labels)
        for label in every_label:
            if not isinstance(label, str):
                raise TypeError(
                    "labels must be strings, in a prefix tree or given by a function, "
                    f"got {label!r}"
                )
        labels = _FrozenTree(treedef, tuple(every_label))
    # Sorted like the keys of the state's dictionary, which JAX sorts.
    return Group(labels, tuple(sorted(members)))


def unit(axes: UnitAxes = None, stacked: Stacked = None) -> Unit:
    """Return the granularity with one norm per output unit.

    A unit is a column of a dense kernel, or a filter of a convolution.

    Args:
        axes: the axes that one unit spans. The default depends on the rank, as in
            Optax: all axes for scalars and vectors (not counting axes of size 1), axis
            0 for rank 2 and 3, all but the last for rank 4 and 5. Pass one axis or
            several, a function of (path, leaf) to axes, or a table from path pattern to
            axes (leaves that match no pattern use the default).
        stacked: how many leading axes stack separate layers, given as in `leaf`; the
            default axes are those of one layer. Not used where axes are given.
    """
    if isinstance(axes, list):
        axes = tuple(axes)
    for entry in _entries(axes):
        given = entry if isinstance(entry, tuple | list) else [entry]
        if not all(_is_integer(axis) for axis in given):
            raise TypeError(
                "axes must be integers, a function of (path, leaf) or a table from "
                f"path pattern to integers, got {entry!r}"
            )
    return Unit(
        None if axes is None else Setting.of(axes, None, "axes"),
        _stacked(stacked),
    )
