"""What all granularities share: the protocol between them and the engine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..norms import Axes, Norm
from ..rules import Rule
from ..scaling import rescale
from ..trees import NamedLeaves, resolve

Blocks = Any  # an array, or a dictionary of arrays: see `clipjax.granularity`
Merge = Callable[[Sequence[jax.Array]], jax.Array]


class Block(NamedTuple):
    """What the rule made of the blocks of one leaf, broadcasting against it.

    Attributes:
        norm: the norm before the clip, 1 where it is zero or not finite.
        length: the norm after the clip.
        threshold: the threshold.
        rule: what made the length of norm and threshold.
    """

    norm: jax.Array
    length: jax.Array
    threshold: jax.Array
    rule: Rule


class Granularity:
    """What the engine needs of a granularity. Parts are frozen dataclasses.

    Attributes:
        kind: the name in a clip's coordinates.
        summarised: blocks are too many to report one by one; `report` has one
            value per leaf instead.
        joins_devices: a block may lie on several devices.
        scales: updates are multiplied by length / norm, whatever was measured.
    """

    kind: str
    summarised: bool = False
    joins_devices: bool = True
    scales: bool = True

    def require_shards(self, leaves: NamedLeaves, split: Mapping[str, Any]) -> None:
        """Raises a ValueError if shards do not tell which entries form a block.

        Args:
            leaves: the updates' leaves, or their shards.
            split: the mesh axes that each is split over, none if it is whole.
        """

    def __repr__(self) -> str:
        """Prints the kind, with the settings that are not the default."""
        settings = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if getattr(self, field.name) != field.default
        ]
        return f"{self.kind}({', '.join(settings)})" if settings else self.kind

    def names(self, leaves: NamedLeaves) -> tuple[str, ...]:
        """Gives the names under which blocks (or leaves) are reported, sorted."""
        raise NotImplementedError

    def axes(self, name: str, leaf: Any) -> Axes:
        """Gives the axes of a leaf that are summed over; None is all of them."""
        del name, leaf

    def check(self, norm: Norm, rule: Rule) -> None:
        """Refuses parts that do not go together with it."""
        del norm, rule

    def block_norm(self, norm: Norm) -> Norm:
        """Gives the norm to measure a single block with."""
        return norm

    def limit(self, norms: Blocks) -> Blocks:
        """Settles which infinite norms the rule can deal with: here, none."""
        return norms

    def summary(self, leaves: NamedLeaves, blocks: Blocks) -> Mapping[str, jax.Array]:
        """Gives arrays whose norms, leaf by leaf, are those of the leaves."""
        del leaves
        return blocks

    def fold(
        self,
        partials: Mapping[str, jax.Array],
        names: tuple[str, ...],
        merge: Merge,
        leaves: NamedLeaves,
    ) -> Blocks:
        """Joins the partial results of the leaves into blocks."""
        raise NotImplementedError

    def spread(
        self, values: Blocks, names: tuple[str, ...], leaves: NamedLeaves
    ) -> dict[str, jax.Array]:
        """Gives each leaf its blocks' values, in a shape that broadcasts with it."""
        raise NotImplementedError

    def sizes(
        self,
        names: tuple[str, ...],
        leaves: NamedLeaves,
        shards: Mapping[str, int] | None = None,
    ) -> Blocks:
        """Counts the entries of each block; a leaf may be one of several shards."""
        counts = {}
        for name, leaf in leaves.arrays.items():
            entries = self._entries(name, leaf) * (shards[name] if shards else 1)
            counts[name] = np.broadcast_to(
                np.float32(entries), self._kept_shape(name, leaf)
            )
        return self.fold(counts, names, lambda parts: sum(parts[1:], parts[0]), leaves)

    def zeros(self, names: tuple[str, ...], leaves: NamedLeaves, dtype: Any) -> Blocks:
        """Makes zeros in the form of the norms."""
        sizes = self.sizes(names, leaves)
        return jax.tree.map(lambda size: jnp.zeros(size.shape, dtype), sizes)

    def table(
        self, prefix: Any, names: tuple[str, ...], leaves: NamedLeaves, dtype: Any
    ) -> Blocks:
        """Reads a prefix tree with a value per leaf as one value per block."""
        entries = {
            name: jnp.asarray(entry, dtype)
            for name, entry in leaves.broadcast(prefix, "threshold").items()
        }
        return self._from_leaves(entries, names, leaves)

    def _from_leaves(self, entries, names, leaves) -> Blocks:
        del entries, names, leaves
        raise ValueError(
            "threshold must be one number, array, schedule or Threshold for "
            f"granularity.{self.kind}(), not a table: it has a single block"
        )

    def rescale(self, leaf: jax.Array, block: Block) -> jax.Array:
        """Brings a leaf from the norms of its blocks to their new lengths."""
        return rescale(leaf, block.norm, block.length)

    def _kept_shape(self, name: str, leaf: Any) -> tuple[int, ...]:
        axes = self.axes(name, leaf)
        if axes is None:
            return ()
        return tuple(1 if i in axes else n for i, n in enumerate(leaf.shape))

    def _entries(self, name: str, leaf: Any) -> float:
        kept = math.prod(self._kept_shape(name, leaf))
        return math.prod(leaf.shape) / kept if kept else 0.0


def stacked_axes(setting: Any, name: str, leaf: Any) -> int:
    """Reads how many leading axes of a leaf stack layers, and checks it."""
    stacked = resolve(setting, name, leaf)
    if stacked is None:
        return 0
    if isinstance(stacked, bool) or not isinstance(stacked, int) or stacked < 0:
        raise ValueError(
            f"stacked must be a number of leading axes, got {stacked!r} for {name!r}"
        )
    if stacked > leaf.ndim:
        raise ValueError(
            f"stacked must be at most the rank of {name!r}, which has shape "
            f"{leaf.shape}, got {stacked!r}"
        )
    return stacked
