"""The record of the latest skipped steps, which is part of a skip wrapper's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from ..core.meshes import shared
from ..thresholds.window import in_ring

NONE = -1


class SkipRecord(NamedTuple):
    """The latest skipped steps, for `clipjax.skipped_steps` to read.

    Attributes:
        steps_seen: int32 number of updates so far, including skipped ones.
        skipped_rows: an int32 ring buffer of shape ``(record_size, 3)``: for each of
            the latest skipped steps the number of updates before it, its ``batch_id``,
            and the position of the leaf or block that was the reason. -1 stands for a
            slot that is still empty, for no identifier, and for no block.
    """

    steps_seen: Int[Array, ""]
    skipped_rows: Int[Array, "record_size 3"]


def empty_record(size: int) -> SkipRecord:
    """Return the record before the first step."""
    return SkipRecord(jnp.zeros((), jnp.int32), jnp.full((size, 3), NONE, jnp.int32))


def next_record(
    record: SkipRecord,
    is_skipped: jax.Array,
    skipped_count: jax.Array,
    block: jax.Array | int,
    extra: Mapping[str, Any],
) -> SkipRecord:
    """Return the record after one more step.

    Args:
        record: the record before the step.
        is_skipped: whether the step was skipped.
        skipped_count: int32 number of earlier skipped steps.
        block: position of the leaf or block that was the reason, or -1.
        extra: the extra arguments of the update; ``batch_id`` is optional.
    """
    seen, rows = record
    row = jnp.stack([seen, _batch_id(extra.get("batch_id")), jnp.int32(block)])
    written = in_ring(rows, skipped_count, row)
    return SkipRecord(
        jnp.asarray(optax.safe_increment(seen)), jnp.where(is_skipped, written, rows)
    )


def _batch_id(value: Any) -> jax.Array:
    """Return a batch's identifier, checked, or -1 for None."""
    if value is None:
        return jnp.int32(NONE)
    accepted = "batch_id must be an integer from 0 to 2147483647"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        if not 0 <= value <= np.iinfo(np.int32).max:
            raise ValueError(f"{accepted}, got {value!r}")
        value = np.int32(value)
    if jnp.shape(value) or not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise TypeError(f"{accepted}, got {value!r}")
    return shared(value, "batch_id").astype(jnp.int32)
