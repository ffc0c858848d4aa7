"""The largest magnitude."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..distributed import pmax
from ..sums import largest
from .base import Axes, Norm


@dataclasses.dataclass(frozen=True, repr=False)
class Linf(Norm):
    """The largest magnitude ``max |x|``."""

    # Leaves are made on the fly; see `clipjax.sums`.
    is_computed: bool = dataclasses.field(default=False, kw_only=True, compare=False)

    def __repr__(self) -> str:
        """Prints ``linf``."""
        return "linf"

    def accumulate(self, leaf: jax.Array, axes: Axes) -> jax.Array:
        """Takes the largest magnitude; NaN counts as inf, if there is more than one."""
        size = jnp.abs(leaf)
        if axes != ():  # a maximum over the devices of a mesh may drop NaN
            size = jnp.where(jnp.isnan(size), jnp.inf, size)
        return largest(size, axes, self.is_computed)

    def of_computed(self) -> Norm:
        """Sums up without a library."""
        return dataclasses.replace(self, is_computed=True)

    def merge(self, partials: Sequence[jax.Array]) -> jax.Array:
        """Takes the larger, NaN above all."""
        result = partials[0]
        for partial in partials[1:]:
            result = jnp.maximum(result, partial)
        return result

    def collective(self, partial: Any, axis_names: Any) -> Any:
        """Takes the largest over the devices."""
        return pmax(partial, axis_names)

    def tally(self, leaf: jax.Array) -> jax.Array:
        """Takes the largest flag, as of magnitudes."""
        return largest((~jnp.isfinite(leaf)).astype(jnp.float32))

    def finish(self, total: jax.Array, size: int | jax.Array) -> jax.Array:
        """Is the norm already."""
        del size
        return total

    def combine(self, norms: jax.Array, sizes: jax.Array) -> jax.Array:
        """Takes the largest."""
        del sizes
        return jnp.max(norms, initial=0)
