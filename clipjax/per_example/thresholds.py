"""Thresholds of per-example clipping: for all examples, for each, and for groups."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import require_number
from ..core.trees import Leaves


def _entries(l2_clip_norm: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(l2_clip_norm, is_leaf=lambda entry: entry is None)


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of parameters that are clipped together.

    Attributes:
        members: the names of the parameters of each group.
        norms: the threshold of each group, as the user passed it.
    """

    members: tuple[tuple[str, ...], ...]
    norms: tuple[Any, ...]

    @classmethod
    def of(cls, l2_clip_norm: Any, leaves: Leaves) -> Groups:
        """Return the groups that a prefix tree of thresholds defines."""
        entries, structure = _entries(l2_clip_norm)
        labels = jax.tree.unflatten(structure, range(len(entries)))
        by_name = dict(
            zip(leaves.names, leaves.prefix(labels, "l2_clip_norm"), strict=True)
        )
        members = [[] for _ in entries]
        for name in leaves.names:
            members[by_name[name]].append(name)
        filled = [i for i, names in enumerate(members) if names]
        return cls(
            tuple(tuple(members[i]) for i in filled), tuple(entries[i] for i in filled)
        )

    @staticmethod
    def check(l2_clip_norm: Any) -> None:
        """Check every threshold of a prefix tree."""
        for entry in _entries(l2_clip_norm)[0]:
            if entry is not None and not callable(entry):
                require_number("l2_clip_norm", entry)

    @staticmethod
    def bound(l2_clip_norm: Any) -> Any:
        """Return the bound on an example's norm that the groups' thresholds imply."""
        norms = []
        for entry in _entries(l2_clip_norm)[0]:
            if callable(entry):
                raise ValueError(
                    "l2_clip_norm must not be a function for a sensitivity: its "
                    "largest value is not known"
                )
            if entry is None:
                return math.inf
            is_number = isinstance(entry, int | float)
            # A negative threshold acts as 0.
            norms.append(entry if is_number else jnp.max(jnp.maximum(entry, 0)))
        if all(isinstance(norm, int | float) for norm in norms):
            return math.hypot(*norms)
        return jnp.sqrt(sum(jnp.square(jnp.asarray(norm)) for norm in norms))

    @staticmethod
    def bound_of_units(l2_clip_norm: Any) -> float:
        """Return that bound if each group is divided by its threshold."""
        entries = _entries(l2_clip_norm)[0]
        return math.sqrt(sum(entry is not None for entry in entries))

    def limits(self, batch: Sequence[Any], size: int) -> list[jax.Array]:
        """Return the examples' thresholds, one array of shape ``(size,)`` per group."""
        limits = []
        for norm in self.norms:
            if callable(norm):
                norm = jax.vmap(norm)(*batch)
            widest = jnp.result_type(float)  # float64 in double precision
            limit = jnp.asarray(jnp.inf if norm is None else norm, widest)
            if limit.shape not in ((), (size,)):
                raise ValueError(
                    f"l2_clip_norm must be scalars or of shape ({size},), one for each "
                    f"example, got shape {limit.shape}"
                )
            limits.append(jnp.broadcast_to(limit, (size,)))
        return limits
