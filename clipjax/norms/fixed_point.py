"""The 2-norm from sums of integers, which have no order."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from .base import Axes
from .powers import Lp


@dataclasses.dataclass(frozen=True, repr=False)
class ReproducibleL2(Lp):
    """The 2-norm from sums of integers; see `reproducible_l2`."""

    p: float = dataclasses.field(default=2, init=False)
    at_scale = True
    derivative = Lp(2)

    # Fractional bits of a square in each of two sums of 64-bit integers. Squares are
    # below 2^4, so that there is room for 2^37 of them.
    HIGH, LOW = 22, 26

    def __repr__(self) -> str:
        """Prints ``reproducible(l2)``."""
        return "reproducible(l2)"

    def precision(self) -> Any:
        """Needs 64 bits, whatever the settings."""
        return jax.enable_x64(True)

    def accumulate(self, leaf: jax.Array, axes: Axes) -> jax.Array:
        """Sums |x|² in fixed point, the high bits and then the low."""
        if jnp.iscomplexobj(leaf):
            return self.accumulate(leaf.real, axes) + self.accumulate(leaf.imag, axes)
        # What NaN and inf turn into does not matter: the peak is not finite then.
        square = jnp.square(leaf.astype(jnp.float64)) * 2**self.HIGH
        high = jnp.floor(square)
        low = jnp.round((square - high) * 2**self.LOW)
        keep = axes is not None
        parts = (part.astype(jnp.int64) for part in (high, low))
        return jnp.stack([jnp.sum(part, axis=axes, keepdims=keep) for part in parts])

    def settle(self, total: jax.Array) -> jax.Array:
        """Puts the two sums together."""
        high, low = total.astype(jnp.float64)
        return (high + low * 2.0**-self.LOW) * 2.0**-self.HIGH
