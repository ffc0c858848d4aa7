"""The largest magnitude."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..distributed import pmax
from .base import Axes, Norm


@dataclasses.dataclass(frozen=True, repr=False)
class Linf(Norm):
    """The largest magnitude ``max |x|``."""

    def __repr__(self) -> str:
        """Prints ``linf``."""
        return "linf"

    def accumulate(self, leaf: jax.Array, axes: Axes) -> jax.Array:
        """Takes the largest magnitude; NaN counts as inf, if there is more than one."""
        size = jnp.abs(leaf)
        if axes != ():  # a maximum over the devices of a mesh may drop NaN
            size = jnp.where(jnp.isnan(size), jnp.inf, size)
        return jnp.max(size, axis=axes, keepdims=axes is not None, initial=0)

    def merge(self, partials: Sequence[jax.Array]) -> jax.Array:
        """Takes the larger, NaN above all."""
        largest = partials[0]
        for partial in partials[1:]:
            largest = jnp.maximum(largest, partial)
        return largest

    def collective(self, partial: Any, axis_names: Any) -> Any:
        """Takes the largest over the devices."""
        return pmax(partial, axis_names)

    def tally(self, leaf: jax.Array) -> jax.Array:
        """Takes the largest flag, as of magnitudes."""
        return jnp.max((~jnp.isfinite(leaf)).astype(jnp.float32), initial=0)

    def finish(self, total: jax.Array, size: int | jax.Array) -> jax.Array:
        """Is the norm already."""
        del size
        return total

    def combine(self, norms: jax.Array, sizes: jax.Array) -> jax.Array:
        """Takes the largest."""
        del sizes
        return jnp.max(norms, initial=0)
