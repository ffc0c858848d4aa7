"""Settings that may differ from leaf to leaf."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from .trees import Leaves


@dataclasses.dataclass(frozen=True, repr=False)
class Setting:
    """A setting that may differ from leaf to leaf.

    Attributes:
        value: a plain value, a function of (path, leaf), or the pairs of a table from
            path patterns to values.
        default: the value where no pattern of a table matches.
        argument: the argument's name, for errors.
    """

    value: Any
    default: Any
    argument: str

    @classmethod
    def of(cls, value: Any, default: Any, argument: str) -> Setting:
        """Return the setting that an argument stands for."""
        if isinstance(value, Mapping):
            value = _Table(tuple(value.items()))
        return cls(default if value is None else value, default, argument)

    def __call__(self, leaves: Leaves) -> list[Any]:
        """Return the setting of each leaf.

        A pattern is shell-style, such as ``"blocks/*/kernel"``. It matches the leaf of
        that name and all leaves below it; the first matching pattern counts.

        Raises:
            ValueError: a pattern matches no leaf.
        """
        if isinstance(self.value, _Table):
            return self._looked_up(self.value.rows, leaves)
        if isinstance(self.value, Callable):
            return [
                self.value(name, leaf)
                for name, leaf in zip(leaves.names, leaves.arrays, strict=True)
            ]
        return [self.value] * len(leaves.arrays)

    def __repr__(self) -> str:
        if isinstance(self.value, _Table):
            return repr(dict(self.value.rows))
        return getattr(self.value, "__qualname__", repr(self.value))

    def _looked_up(self, rows: Sequence[tuple[str, Any]], leaves: Leaves) -> list[Any]:
        for pattern, _ in rows:
            # A tree without leaves is Optax's placeholder, and matches no pattern.
            if leaves.arrays and not any(matches(n, pattern) for n in leaves.names):
                raise ValueError(
                    f"{self.argument} has the pattern {pattern!r}, which matches no "
                    f"leaf; the leaves are {', '.join(leaves.names)}"
                )
        return [
            next((value for row, value in rows if matches(name, row)), self.default)
            for name in leaves.names
        ]


@dataclasses.dataclass(frozen=True)
class _Table:
    rows: tuple[tuple[str, Any], ...]


def matches(name: str, pattern: str) -> bool:
    """Return whether a shell-style pattern matches a name, or one that is above it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}/*")


def takes_tree(function: Callable[..., Any]) -> bool:
    """Return whether a function takes one argument, the tree, and not (path, leaf)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.default is p.empty
    ]
    return len(required) == 1
