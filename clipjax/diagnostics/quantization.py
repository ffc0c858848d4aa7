"""A report of the information that a quantizer preserves."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.dtypes import (
    accumulation_dtype,
    format_limits,
    safe_divisor,
    scaling_power,
    widen,
)
from ..core.meshes import gathered
from ..core.trees import Leaves
from .geometry import direction_cosine


class QuantizationReport(NamedTuple):
    """How well a leaf survives a quantizer, by two measures that can disagree.

    Attributes:
        cosine: the cosine of the angle between the quantized leaf and the reference,
            which depends mostly on large entries; NaN where either is zero.
        nonzero_fraction: the fraction of the reference's nonzero entries that are
            nonzero after quantization; all entries count the same. NaN if there are
            none.
        occupied_fraction: the fraction of the format's finite numbers that occur.
    """

    cosine: Float[Array, ""]
    nonzero_fraction: Float[Array, ""]
    occupied_fraction: Float[Array, ""]


def quantization_report(
    tree: Any, dtype: Any = jnp.int8, *, reference: Any = None
) -> dict[str, QuantizationReport]:
    r"""Measure the effect of quantizing a tree leaf by leaf.

    .. math:: q = \operatorname{round}\Bigl(
        x \, \frac{q_\text{max}}{\max \lvert x \rvert} \Bigr)

    The quantizer has one scale per leaf, and rounds to the nearest number of the
    format. A clip before it reduces that scale. The function works under ``jit``, and
    outside it does not wait for the device.

    | input | result |
    |---|---|
    | a leaf of zeros | cosine and nonzero_fraction NaN |
    | NaN or inf in a leaf | cosine NaN |
    | integer, float0, PRNG-key, None leaves | left out |

    Args:
        tree: the gradients, updates or parameters to quantize, with real leaves.
        dtype: the format: a signed integer or floating dtype of at most 16 bits.
            Integers are symmetric: int8 has the 255 numbers from -127 to 127.
        reference: a tree of the same structure to compare the result with, such as the
            gradient before a clip; None for the tree itself.

    Returns:
        A dictionary from the leaf's path to its report, of float32 scalars (float64
        for float64 leaves).

    Raises:
        TypeError: dtype is not such a format, or a leaf is complex.
        ValueError: reference has no leaf of the same name and shape.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> grads = {"w": jnp.append(jnp.full(999, 0.1), 1000.0)}
        >>> clipped, _ = clipjax.quantization_clip(jnp.int8).update(grads, None)
        >>> for tree in (grads, clipped):
        ...     report = clipjax.quantization_report(tree, jnp.int8, reference=grads)
        ...     print(f"{report['w'].cosine:.3f} {report['w'].nonzero_fraction:.3f}")
        1.000 0.001
        0.711 1.000
    """
    format_limits(dtype)
    leaves = Leaves.of(tree)
    originals = leaves.arrays
    if reference is not None:
        originals = leaves.aligned(reference, "the leaves of reference")
    return {
        name: _compared(name, leaf, original, jnp.dtype(dtype))
        for name, leaf, original in zip(
            leaves.names, leaves.arrays, originals, strict=True
        )
    }


def _compared(
    name: str, leaf: jax.Array, original: jax.Array, dtype: Any
) -> QuantizationReport:
    if leaf.shape != original.shape:
        raise ValueError(
            f"reference must have shapes like those of tree, got {original.shape} for "
            f"{leaf.shape} at {name!r}"
        )
    for part in (leaf, original):
        if jnp.iscomplexobj(part):
            raise TypeError(f"leaves must be real, got {part.dtype} at {name!r}")
    quantized = _quantized(leaf, dtype)
    dtype_of_result = quantized.dtype
    was_nonzero = original != 0
    stays = jnp.sum(was_nonzero & (quantized != 0)).astype(dtype_of_result)
    # Sorted as one vector, so that equal numbers are neighbors.
    ordered = jnp.sort(gathered(quantized, 0).reshape(-1))
    is_first = jnp.append(True, ordered[1:] != ordered[:-1])[: ordered.size]
    occupied = jnp.sum(is_first & jnp.isfinite(ordered))
    return QuantizationReport(
        direction_cosine(quantized, original),
        stays / jnp.sum(was_nonzero).astype(dtype_of_result),
        occupied.astype(dtype_of_result) / _number_of_levels(dtype),
    )


def _quantized(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Round to the numbers of a format, in the accumulation dtype."""
    wide = widen(leaf, accumulation_dtype([leaf]))
    largest, _ = format_limits(dtype)
    peak = jnp.max(jnp.abs(wide), initial=0)
    power = scaling_power(peak)
    wide = wide * power / safe_divisor(peak * power)
    scaled = jnp.clip(wide * largest, -largest, largest)
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.round(scaled)
    return scaled.astype(dtype).astype(wide.dtype)


def _number_of_levels(dtype: Any) -> int:
    if jnp.issubdtype(dtype, jnp.integer):
        return 2 * int(jnp.iinfo(dtype).max) + 1
    bits = jnp.finfo(dtype).bits
    codes = np.arange(2**bits).astype(np.uint16 if bits == 16 else np.uint8)
    numbers = codes.view(dtype).astype(np.float32)
    return len(np.unique(numbers[np.isfinite(numbers)]))
