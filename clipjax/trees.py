"""The leaves of a gradient tree that a clip looks at, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp


def path_name(path: tuple[Any, ...]) -> str:
    """Writes a tree path as ``layers/0/kernel``."""
    # An nnx.Variable shows up as one more key, which says nothing to a reader.
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_clippable(leaf: Any) -> bool:
    """Tells whether a leaf holds floating or complex numbers."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, float | complex)
    return jnp.issubdtype(dtype, jnp.inexact)


@dataclasses.dataclass(frozen=True)
class NamedLeaves:
    """A tree taken apart into its clippable leaves, in tree order.

    Integer, float0, PRNG-key leaves and the like are kept aside and come back
    untouched from `tree`.
    """

    arrays: dict[str, Any]
    _leaves: list[Any]
    _treedef: Any
    _positions: dict[str, int]

    @classmethod
    def of(cls, tree: Any) -> NamedLeaves:
        """Takes a tree apart; works on arrays and on ``ShapeDtypeStruct``."""
        with_path, treedef = jax.tree_util.tree_flatten_with_path(tree)
        arrays, positions = {}, {}
        for position, (path, leaf) in enumerate(with_path):
            if not is_clippable(leaf):
                continue
            name = path_name(path)
            if name in arrays:  # keys such as 0 and "0" read alike
                name = jax.tree_util.keystr(path)
            is_struct = isinstance(leaf, jax.ShapeDtypeStruct)
            array = leaf if is_struct else jnp.asarray(leaf)
            if array.dtype == jnp.float8_e8m0fnu:
                raise TypeError(
                    f"{name or 'the update'} has dtype float8_e8m0fnu, which has "
                    "neither a sign nor a zero: leave such scales out, as with "
                    "optax.masked, or cast them"
                )
            arrays[name] = array
            positions[name] = position
        return cls(arrays, [leaf for _, leaf in with_path], treedef, positions)

    def map(self, function: Callable[[jax.Array], jax.Array]) -> NamedLeaves:
        """Applies a function to every clippable leaf."""
        return self.replace({n: function(leaf) for n, leaf in self.arrays.items()})

    def replace(self, arrays: dict[str, jax.Array]) -> NamedLeaves:
        """Gives the same tree other clippable leaves."""
        return dataclasses.replace(self, arrays=arrays)

    def tree(self) -> Any:
        """Puts the tree together again."""
        leaves = list(self._leaves)
        for name, position in self._positions.items():
            leaves[position] = self.arrays[name]
        return jax.tree_util.tree_unflatten(self._treedef, leaves)

    def broadcast(self, prefix: Any, argument: str) -> dict[str, Any]:
        """Gives each clippable leaf its entry of a prefix tree.

        Args:
            prefix: a tree whose leaves stand for whole sub-trees. None is a leaf.
            argument: how the caller names this tree, for the error message.

        Raises:
            ValueError: the prefix does not match the tree.
        """
        tree = jax.tree_util.tree_unflatten(self._treedef, self._leaves)
        try:
            entries = jax.tree_util.tree_leaves(
                jax.tree.map(
                    lambda entry, below: jax.tree.map(lambda _: _Entry(entry), below),
                    prefix,
                    tree,
                    is_leaf=lambda entry: entry is None,
                ),
            )
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{argument} must be a prefix of the tree of updates, but does not "
                f"match it: {error}"
            ) from error
        return {n: entries[p].value for n, p in self._positions.items()}


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Keeps a prefix entry, None included, from being taken for a sub-tree."""

    value: Any


@dataclasses.dataclass(frozen=True)
class ByPath:
    """A setting that differs from leaf to leaf: the first pattern that matches.

    Attributes:
        patterns: pairs of a shell-style pattern, such as ``"blocks/*/kernel"``, and a
            value. A pattern stands for the leaf of that path and for all below it.
        default: the value where no pattern matches.
    """

    patterns: tuple[tuple[str, Any], ...]
    default: Any

    def __call__(self, path: str, leaf: Any) -> Any:
        """Gives the setting of one leaf."""
        del leaf
        for pattern, value in self.patterns:
            if fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*"):
                return value
        return self.default


def per_leaf(setting: Any, default: Any) -> Any:
    """Accepts a value, a function of (path, leaf), or a table by path pattern."""
    if isinstance(setting, Mapping):
        return ByPath(tuple(setting.items()), default)
    return setting


def resolve(setting: Any, path: str, leaf: Any) -> Any:
    """Reads a setting made by `per_leaf` at one leaf."""
    if isinstance(setting, Callable):
        return setting(path, leaf)
    return setting
