"""What JAX knows of an array and of the current mesh."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
from jax import typeof
from jax.core import Tracer as Tracer
from jax.experimental import checkify as checkify
from jax.sharding import AxisType, get_abstract_mesh, reshard
from jax.sharding import auto_axes as auto_axes

from .versions import reads_internals


@reads_internals
def is_weakly_typed(array: Any) -> bool:
    """Return whether an array takes the dtype of the one that it is combined with."""
    return typeof(array).weak_type


def identity(array: Any) -> Hashable:
    """Return a key that two arrays share only if they are one array.

    The tracers of ``vmap`` do not tell: JAX 0.12 returns two for one gradient.
    """
    axes = []
    while isinstance(array, Tracer) and hasattr(array, "batch_dim"):
        axes.append(array.batch_dim)
        array = array.val
    return id(array), *axes


@reads_internals
def varying_axes(array: Any) -> frozenset[Hashable]:
    """Return the manual mesh axes over which an array varies, according to its type."""
    return frozenset(typeof(array).manual_axis_type.varying)


@reads_internals
def spec_of(array: Any) -> jax.sharding.PartitionSpec:
    """Return an array's partition on an Explicit mesh, or None per axis elsewhere."""
    return typeof(array).sharding.spec


@reads_internals
def explicit_sharding(array: Any) -> jax.sharding.NamedSharding | None:
    """Return the sharding of an array on an Explicit mesh, or None on other meshes."""
    sharding = typeof(array).sharding
    return sharding if sharding.mesh.explicit_axes else None


def resharded(array: jax.Array, spec: Any) -> jax.Array:
    """Partition an array by a spec, if it lies on an Explicit mesh."""
    spec = jax.sharding.PartitionSpec(*spec)
    return array if spec_of(array) == spec else reshard(array, spec)


@reads_internals
def manual_axes() -> tuple[Hashable, ...]:
    """Return the axes of the current mesh that ``shard_map`` has made manual."""
    return get_abstract_mesh().manual_axes


@reads_internals
def mesh_is_explicit() -> bool:
    """Return whether the current mesh has an Explicit axis."""
    return AxisType.Explicit in get_abstract_mesh().axis_types


@reads_internals
def mesh_size() -> int:
    """Return the number of devices of the current mesh."""
    return get_abstract_mesh().size


@reads_internals
def device_memory() -> int | None:
    """Return the bytes that the first device can hold; None where it does not tell."""
    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit")
