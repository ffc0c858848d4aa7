"""Thresholds of per-example clipping: for all examples, for each, and for groups."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..core.checks import require_number
from ..core.printing import printed
from ..core.trees import Leaves
from ..granularity import Group
from ..thresholds.base import Threshold


def _entries(l2_clip_norm: Any) -> tuple[list[Any], Any]:
    def is_entry(node: Any) -> bool:
        return node is None or isinstance(node, optax.GradientTransformation)

    return jax.tree.flatten(l2_clip_norm, is_leaf=is_entry)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["norms"], meta_fields=["labels"]
)
@dataclasses.dataclass(frozen=True)
class GroupThresholds:
    """Thresholds of groups of parameters that lie anywhere in the tree.

    It is a tree of the thresholds, for the argument ``l2_clip_norm`` of
    `clipjax.clipped_grad`; see `clipjax.privacy.split_threshold`.

    Attributes:
        norms: the threshold of each group, by label.
        labels: which parameter has which label.
    """

    norms: dict[str, Any]
    labels: Group

    def __repr__(self) -> str:
        return f"GroupThresholds({self.norms})"


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
        """Return the groups that a prefix tree, or labels, of thresholds define."""
        entries, structure = _entries(l2_clip_norm)
        numbered = jax.tree.unflatten(structure, range(len(entries)))
        if isinstance(numbered, GroupThresholds):
            labels = numbered.labels.label_of_each(leaves)
            positions = [numbered.norms[label] for label in labels]
        else:
            positions = leaves.prefix(numbered, "l2_clip_norm")
        members = [[] for _ in entries]
        for name, position in zip(leaves.names, positions, strict=True):
            members[position].append(name)
        filled = [i for i, names in enumerate(members) if names]
        return cls(
            tuple(tuple(members[i]) for i in filled), tuple(entries[i] for i in filled)
        )

    @staticmethod
    def check(l2_clip_norm: Any) -> None:
        """Check every threshold of a prefix tree."""
        for entry in _entries(l2_clip_norm)[0]:
            _require_of_one_example(entry)
            if entry is not None and not callable(entry):
                require_number("l2_clip_norm", entry)

    @staticmethod
    def bound(l2_clip_norm: Any) -> Any:
        """Return the bound on an example's norm that the groups' thresholds imply."""
        norms = []
        for entry in _entries(l2_clip_norm)[0]:
            if callable(entry):
                raise ValueError(
                    "l2_clip_norm must not be a function for a sensitivity: it looks "
                    "at the example, and its largest value over all examples that "
                    "there might be is not known. Pass a number, or "
                    "rescale_to_unit_norm=True, with which it does not matter"
                )
            if entry is None:
                return math.inf
            if jnp.ndim(entry):
                raise ValueError(
                    "l2_clip_norm must not be of shape [B] for a sensitivity: those "
                    "are the thresholds of this batch, and an example that is added "
                    f"may have a larger one, got shape {jnp.shape(entry)}. Pass a "
                    "number, or rescale_to_unit_norm=True"
                )
            is_number = isinstance(entry, int | float)
            # A negative threshold acts as 0.
            norms.append(entry if is_number else jnp.maximum(_widest(entry), 0))
        if all(isinstance(norm, int | float) for norm in norms):
            return math.hypot(*norms)
        # Not the root of squares, which may underflow to a sensitivity of 0.
        return functools.reduce(jnp.hypot, map(_widest, norms))

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
            limit = _widest(jnp.inf if norm is None else norm)
            if limit.shape not in ((), (size,)):
                raise ValueError(
                    f"l2_clip_norm must be scalars or of shape ({size},), one for each "
                    f"example, got shape {limit.shape}"
                )
            limits.append(jnp.broadcast_to(limit, (size,)))
        return limits


def _widest(norm: Any) -> jax.Array:
    return jnp.asarray(norm, jnp.result_type(float))  # float64 in double precision


def _require_of_one_example(entry: Any) -> None:
    """Refuse schedules and parts that belong to a clip of the batch's gradient."""
    module = (getattr(entry, "__module__", None) or "") if callable(entry) else ""
    accepted = "l2_clip_norm must be a number or a function of one example"
    if module.split(".")[0] == "optax":
        raise TypeError(
            f"{accepted}, got {printed(entry)} of Optax, a function of the number of "
            "the step: pass its value, l2_clip_norm=schedule(step)"
        )
    is_part = isinstance(entry, Threshold | optax.GradientTransformation)
    if is_part or module.startswith(("clipjax.thresholds", "clipjax.recipes")):
        raise TypeError(
            f"{accepted}, got {repr(entry) if is_part else printed(entry)}, which is "
            "for the gradient of a whole batch. A threshold that follows the norms or "
            "losses of examples would also be private data, and without noise no "
            "guarantee covers it: use privacy.quantile_threshold, or a number"
        )
