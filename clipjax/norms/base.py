"""What the engine needs of a norm."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..sums import Axes


class Norm:
    """What the engine needs of a norm. Parts are frozen dataclasses.

    Attributes:
        per_leaf_only: the norm is defined for one leaf, not across leaves.
        needs_rescaling: the sum may leave the range of its dtype where the norm
            itself does not, so that extreme leaves are measured at another scale.
        at_scale: leaves are always measured at a scale where entries are below 4.
        derivative: the norm whose derivative to take, if not its own.
    """

    per_leaf_only: bool = False
    needs_rescaling: bool = False
    at_scale: bool = False
    derivative: Norm | None = None

    def precision(self) -> Any:
        """Gives the context to sum up in."""
        return contextlib.nullcontext()

    def accumulate(self, leaf: jax.Array, axes: Axes) -> jax.Array:
        """Sums up a leaf over ``axes`` (None: all of them), keeping them as 1."""
        raise NotImplementedError

    def of_computed(self) -> Norm:
        """Gives the norm that sums up leaves made on the fly; see `clipjax.sums`."""
        return self

    def merge(self, partials: Sequence[jax.Array]) -> jax.Array:
        """Joins the sums of several leaves of one block, in a tree for accuracy."""
        while len(partials) > 1:
            eights = (partials[i : i + 8] for i in range(0, len(partials), 8))
            partials = [sum(some[1:], start=some[0]) for some in eights]
        return partials[0]

    def collective(self, partial: Any, axis_names: Any) -> Any:
        """Joins the sums of several devices."""
        return jax.lax.psum(partial, axis_names)

    def settle(self, total: jax.Array) -> jax.Array:
        """Turns a leaf's sum, now over all devices, into a float."""
        return total

    def tally(self, leaf: jax.Array) -> jax.Array:
        """Gives zero if all entries are finite, as a sum that `collective` joins."""
        # NaN if any is NaN or inf; XLA's CPU backend would write flags to memory.
        return jnp.sum(jnp.abs(leaf - leaf)).astype(jnp.float32)

    def finish(self, total: jax.Array, size: int | jax.Array) -> jax.Array:
        """Turns a sum over ``size`` entries into the norm."""
        raise NotImplementedError

    def combine(self, norms: jax.Array, sizes: jax.Array) -> jax.Array:
        """Gives the norm of the whole from the norms of its parts."""
        raise NotImplementedError

    def in_range(self, total: jax.Array) -> jax.Array:
        """Tells where a sum can be trusted: no overflow, no lost small entries."""
        del total
        return jnp.asarray(True)


def positive_root(total: jax.Array, p: float) -> jax.Array:
    """The p-th root with derivative zero, not infinite, at zero."""
    positive = total > 0
    safe = jnp.where(positive, total, jnp.ones_like(total))
    root = jnp.sqrt(safe) if p == 2 else jnp.power(safe, 1 / p)
    # Multiplying a NaN or inf total keeps it; a plain zero here would hide it.
    return jnp.where(positive, root, jnp.where(total == 0, 0 * total, total))
