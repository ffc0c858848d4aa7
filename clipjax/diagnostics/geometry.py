"""Norms of leaves, and angles between trees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.dtypes import scaling_power, widen
from ..core.measure import measure, measure_plainly
from ..core.meshes import AxisNames, mesh_axes
from ..core.trees import Leaves
from ..granularity import leaf as each_leaf
from ..granularity import whole
from ..norms import Norm, l1, l2, linf


def leaf_norms(
    tree: Any, norm: Norm = l2, *, axis_name: AxisNames = None
) -> dict[str, jax.Array]:
    """Return the norm of each leaf of a tree, accurate at any magnitude.

    Args:
        tree: gradients, updates or parameters.
        norm: how a leaf is measured.
        axis_name: mesh axes that leaves are split over, inside ``shard_map``.

    Returns:
        A dictionary from the leaf's path to its norm, a float32 scalar (float64 where
        any leaf is); inf where the leaf has a NaN or inf.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> print(clipjax.leaf_norms({"w": jnp.array([3.0, 4.0])})["w"])
        5.0
    """
    leaves = Leaves.of(tree)
    blocks = each_leaf().of(leaves, mesh_axes(leaves, axis_name))
    norms = measure(norm, blocks, leaves.arrays).norms
    return dict(zip(leaves.names, norms, strict=True))


def direction_cosine(
    before: Any, after: Any, *, axis_name: AxisNames = None
) -> jax.Array:
    """Return the cosine between two trees: 1 if a clip kept a gradient's direction.

    A clip by the norm of the whole tree has a cosine of 1. For a clip by value of
    independent Gaussian entries, it tends to √(2/π) ≈ 0.798 as the threshold falls;
    other distributions have other limits.

    Args:
        before: a tree of real or complex arrays.
        after: a tree of the same structure and shapes.
        axis_name: mesh axes that leaves are split over, inside ``shard_map``.

    Returns:
        The cosine of the angle between them as one vector; NaN if either is zero, is
        not finite, or has no entries.

    Raises:
        ValueError: the trees have different leaves.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> raw = jnp.array([3.0, 4.0])
        >>> print(f"{clipjax.direction_cosine(raw, jnp.clip(raw, -1.0, 1.0)):.4f}")
        0.9899
    """
    leaves = Leaves.of(before)
    others = leaves.aligned(after, "the leaves of after")
    for name, one, other in zip(leaves.names, leaves.arrays, others, strict=True):
        if one.shape != other.shape:
            raise ValueError(
                f"before and after must have the same shapes, got {one.shape} and "
                f"{other.shape} at {name!r}"
            )
    if not leaves.arrays:
        return jnp.asarray(jnp.nan, leaves.dtype)
    blocks = whole().of(leaves, mesh_axes(leaves, axis_name))

    def near_one(arrays: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        """Return arrays scaled to a largest entry near one, and their norm."""
        (peak,) = measure_plainly(linf, blocks, arrays)
        power = scaling_power(peak)
        wide = [widen(array, leaves.dtype) for array in arrays]
        scaled = [array * power.astype(array.dtype) for array in wide]
        return scaled, measure_plainly(l2, blocks, scaled)[0]

    (first, length), (second, other_length) = near_one(leaves.arrays), near_one(others)
    products = [
        jnp.sum(jnp.real(one * jnp.conj(other)))
        for one, other in zip(first, second, strict=True)
    ]
    product = jnp.sum(jnp.stack(blocks.over_devices(l1, products)))
    return product / (length * other_length)
