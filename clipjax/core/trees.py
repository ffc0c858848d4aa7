"""The leaves of a tree that a clip measures, in tree order, with their names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .dtypes import accumulation_dtype

KeyPath = tuple[Any, ...]

# Containers whose arrays are not coordinates of the gradient: the norm of a sparse
# array with repeated indices, or of quantized values without their scales, would be
# wrong.
_REFUSED = ("JAXSparse", "QTensor", "QArray")


@dataclasses.dataclass(frozen=True)
class Leaves:
    """The floating-point and complex leaves of a tree.

    `tree` returns all other leaves (integers, float0, PRNG keys, strings) unchanged.

    Attributes:
        arrays: the leaves, arrays or ``ShapeDtypeStruct``, in tree order.
    """

    arrays: list[Any]
    _tree: Any
    _every_leaf: list[Any]
    _treedef: Any
    _positions: list[int]

    @classmethod
    def of(cls, tree: Any) -> Leaves:
        """Return the leaves of a tree.

        Raises:
            TypeError: a leaf is a sparse or quantized container, or has the dtype
                float8_e8m0fnu, which has neither a sign nor a zero.
        """
        every_leaf, treedef = jax.tree.flatten(tree, is_leaf=_is_refused)
        positions = [i for i, leaf in enumerate(every_leaf) if is_clippable(leaf)]
        arrays = [
            leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)
            for leaf in (every_leaf[i] for i in positions)
        ]
        leaves = cls(arrays, tree, every_leaf, treedef, positions)
        refused = [i for i, leaf in enumerate(every_leaf) if _is_refused(leaf)]
        if refused or any(leaf.dtype == jnp.float8_e8m0fnu for leaf in arrays):
            raise TypeError(leaves._refusal(refused))
        return leaves

    def map(self, function: Callable[..., Any], *others: Sequence[Any]) -> list[Any]:
        """Apply a function to each leaf, and to the matching entries of other lists."""
        return [function(*each) for each in zip(self.arrays, *others, strict=True)]

    def tree(self, arrays: Sequence[Any]) -> Any:
        """Return the tree with other arrays in place of the leaves."""
        every_leaf = list(self._every_leaf)
        for position, array in zip(self._positions, arrays, strict=True):
            every_leaf[position] = array
        return jax.tree.unflatten(self._treedef, every_leaf)

    @functools.cached_property
    def dtype(self) -> Any:
        """The dtype of norms and sums: float64 if any leaf has it, else float32."""
        return accumulation_dtype(self.arrays)

    @functools.cached_property
    def paths(self) -> list[KeyPath]:
        """The JAX key paths of the leaves."""
        every_path = jax.tree_util.tree_leaves_with_path(self._tree)
        return [every_path[i][0] for i in self._positions]

    @functools.cached_property
    def names(self) -> list[str]:
        """The leaves' names, such as ``layers/0/kernel``; no two are alike."""
        names: list[str] = []
        for path, node in jax.tree_util.tree_leaves_with_path(
            self._tree, is_leaf=_is_variable
        ):
            # A variable of flax.nnx is a node of its own; its key "value" is left out.
            below = jax.tree_util.tree_leaves_with_path(node)
            single = len(below) == 1
            names += [path_name(path if single else path + rest) for rest, _ in below]
        own = [names[i] for i in self._positions]
        # Keys such as 0 and "0", or "a/b" and "a" above "b", give the same name.
        return [
            jax.tree_util.keystr(path) if own.count(name) > 1 else name
            for path, name in zip(self.paths, own, strict=True)
        ]

    @property
    def by_name(self) -> dict[str, Any]:
        """The leaves by name, in tree order."""
        return dict(zip(self.names, self.arrays, strict=True))

    def tree_by_name(self, arrays: Mapping[str, Any]) -> Any:
        """Return the tree with other arrays, given by name, in place of the leaves."""
        return self.tree([arrays[name] for name in self.names])

    def aligned(self, tree: Any, what: str) -> list[Any]:
        """Return the leaves of another tree that have the paths of these.

        Raises:
            ValueError: the tree, called ``what``, lacks one of the leaves.
        """
        other = Leaves.of(tree)
        if other._treedef == self._treedef and other._positions == self._positions:
            return other.arrays
        by_path = dict(zip(other.paths, other.arrays, strict=True))
        missing = [
            name
            for path, name in zip(self.paths, self.names, strict=True)
            if path not in by_path
        ]
        if missing:
            raise ValueError(f"{what} have no leaf {', '.join(missing)}")
        return [by_path[path] for path in self.paths]

    def placed(self, tree: Any, arrays: Sequence[Any]) -> Any:
        """Return another tree with arrays in place of its leaves at these paths."""
        other = Leaves.of(tree)
        by_path = dict(zip(other.paths, other.arrays, strict=True))
        by_path |= dict(zip(self.paths, arrays, strict=True))
        return other.tree([by_path[path] for path in other.paths])

    def prefix(self, prefix: Any, argument: str) -> list[Any]:
        """Return for each leaf its entry in a prefix tree, in which None is an entry.

        Raises:
            ValueError: the prefix, called ``argument``, does not match the tree.
        """
        every_entry = [None] * len(self._every_leaf)
        numbered = jax.tree.unflatten(self._treedef, list(range(len(every_entry))))

        def spread(entry: Any, below: Any) -> None:
            for position in jax.tree.leaves(below):
                every_entry[position] = entry

        try:
            jax.tree.map(spread, prefix, numbered, is_leaf=lambda entry: entry is None)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{argument} must be a prefix of the tree of updates, but does not "
                f"match it: {error}"
            ) from error
        return [every_entry[i] for i in self._positions]

    def _refusal(self, containers: Sequence[int]) -> str:
        """Return the error message for these containers, or for a dtype."""
        narrow = [
            i
            for i, leaf in zip(self._positions, self.arrays, strict=True)
            if leaf.dtype == jnp.float8_e8m0fnu
        ]
        paths = jax.tree_util.tree_leaves_with_path(self._tree, is_leaf=_is_refused)
        name = path_name(paths[[*containers, *narrow][0]][0]) or "the update"
        if containers:
            kind = type(self._every_leaf[containers[0]]).__name__
            return (
                f"{name} is a {kind}, whose arrays are not the coordinates of the "
                "gradient: convert it to a dense array, or leave it out with "
                "optax.masked"
            )
        return (
            f"{name} has dtype float8_e8m0fnu, which has neither a sign nor a zero: "
            "leave such scales out, as with optax.masked, or cast them"
        )


def zeros_like(tree: Any, dtype: Any = None) -> Any:
    """Return a tree of zeros of the same structure: a memory with one per parameter.

    Args:
        tree: arrays or ``ShapeDtypeStruct``. A leaf that is not numeric becomes a
            scalar.
        dtype: the dtype of the zeros; None for the dtype of each leaf.
    """

    def zero(leaf: Any) -> jax.Array:
        kind = getattr(leaf, "dtype", None)
        if kind is not None and not jnp.issubdtype(kind, jnp.number):
            return jnp.zeros((), jnp.float32)
        # With an explicit dtype: zeros_like alone keeps a leaf's weak type, and the
        # memory's type would change at the first step.
        return jnp.zeros_like(leaf, dtype=dtype or jnp.result_type(leaf))

    return jax.tree.map(zero, tree)


def is_clippable(leaf: Any) -> bool:
    """Return whether a leaf holds floating-point or complex numbers."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, float | complex)
    return not _is_refused(leaf) and jnp.issubdtype(dtype, jnp.inexact)


def path_name(path: KeyPath) -> str:
    """Return a path as text, such as ``layers/0/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_refused(node: Any) -> bool:
    return any(kind.__name__ in _REFUSED for kind in type(node).__mro__)


def _is_variable(node: Any) -> bool:
    # By name, since flax is an optional dependency.
    return any(
        kind.__name__ == "Variable" and kind.__module__.startswith("flax.nnx")
        for kind in type(node).__mro__
    )
