"""Which mesh axes a leaf is split over, and the one reduction across devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

AxisNames = Hashable | tuple[Hashable, ...] | None


def as_tuple(axis_name: AxisNames) -> tuple[Hashable, ...]:
    """Reads an ``axis_name`` argument: None, one name, or a tuple of names."""
    if axis_name is None:
        return ()
    return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def varying_axes(leaf: jax.Array) -> frozenset[Hashable]:
    """Gives the manual mesh axes over which the leaf's type says it differs."""
    kind = jax.typeof(leaf)
    manual = getattr(kind, "manual_axis_type", None)
    if manual is not None:
        return frozenset(manual.varying)
    return frozenset(getattr(kind, "vma", ()))


def split_axes(leaf: jax.Array, axis_name: AxisNames) -> tuple[Hashable, ...]:
    """Gives those of ``axis_name`` over which the leaf is split.

    Inside ``shard_map`` the leaf's type tells, so that a replicated leaf is
    counted once. Under ``pmap``, and with ``check_vma=False``, types do not say,
    and every leaf is taken to be split over all of them.
    """
    names = as_tuple(axis_name)
    types_tell = any(
        name in varying_axes(jnp.asarray(jax.lax.axis_index(name))) for name in names
    )
    if not types_tell:
        return names
    varying = varying_axes(leaf)
    return tuple(name for name in names if name in varying)


def gathered(leaf: jax.Array, kept: int) -> jax.Array:
    """Gathers all but the first axes on an explicit mesh; elsewhere XLA does."""
    spec = jax.typeof(leaf).sharding.spec
    return resharded(leaf, (*spec[:kept], *(None for _ in spec[kept:])))


def resharded(leaf: jax.Array, spec: Any) -> jax.Array:
    """Splits a leaf as told over an explicit mesh."""
    spec = jax.sharding.PartitionSpec(*spec)
    is_so = jax.typeof(leaf).sharding.spec == spec
    return leaf if is_so else jax.sharding.reshard(leaf, spec)


def refuse_local(leaves: Mapping[str, jax.Array], axis_name: AxisNames) -> None:
    """Refuses to measure shards as if they were the whole.

    Raises:
        ValueError: no ``axis_name`` is given and a leaf's type says that it varies.
    """
    if axis_name is not None:
        return
    for name, leaf in leaves.items():
        axes = tuple(sorted(varying_axes(leaf), key=str))
        if axes:
            raise ValueError(
                f"{name or 'the update'} differs over the mesh axes {axes}, so that "
                f"its norm would be that of one shard: pass axis_name={axes}, or "
                "axis_name=() for a clip on each device by itself"
            )


def shard_counts(
    leaves: Mapping[str, jax.Array], axis_name: AxisNames
) -> dict[str, int]:
    """Counts over how many devices each leaf is split."""
    return {
        name: math.prod(map(jax.lax.axis_size, split_axes(leaf, axis_name)))
        for name, leaf in leaves.items()
    }


def reduce_over_devices(
    partials: dict[str, jax.Array],
    axes: dict[str, tuple[Hashable, ...]],
    collective: Callable[[Any, Any], Any],
) -> dict[str, jax.Array]:
    """Joins per-leaf partial results with one collective per set of axes.

    Args:
        partials: one array a leaf.
        axes: the mesh axes each leaf is split over.
        collective: ``jax.lax.psum`` or ``jax.lax.pmax``.
    """
    reduced = dict(partials)
    # A dict keeps the order: every process must issue the same collectives in turn.
    for names in dict.fromkeys(names for names in axes.values() if names):
        members = [leaf for leaf in partials if axes[leaf] == names]
        flat = jnp.concatenate([partials[leaf].reshape(-1) for leaf in members])
        flat = collective(flat, names)
        start = 0
        for leaf in members:
            size = partials[leaf].size
            part = flat[start : start + size]
            reduced[leaf] = part.reshape(partials[leaf].shape)
            start += size
    return reduced
