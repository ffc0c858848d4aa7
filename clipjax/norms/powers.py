"""Norms that are sums of powers: the p-norms and the root mean square."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ..floats import scaling_power, split
from ..sums import total
from .base import Axes, Norm, positive_root
from .largest import Linf

# XLA's CPU backend adds up to 4096 entries up one after another, more in a tree. Sums
# of fewer than 32 are left to it: they are good to two ulps, and the same as Optax's.
SEQUENTIAL = 4096
SHORT = 32


def _sum_of_squares(leaf: jax.Array, axes: Axes, is_computed: bool) -> jax.Array:
    """Sums |x|²; a short sum is made as accurate as a long one is on all backends."""
    if jnp.iscomplexobj(leaf):
        real = _sum_of_squares(leaf.real, axes, is_computed)
        return real + _sum_of_squares(leaf.imag, axes, is_computed)
    reduced = range(leaf.ndim) if axes is None else axes
    entries = math.prod(leaf.shape[i] for i in reduced)
    if entries < SHORT or leaf.size > SEQUENTIAL:
        return total(jnp.square(leaf), axes, is_computed)
    # Squares of short mantissas add up with next to no rounding, and hold all of the
    # sum but a small rest.
    high, low = split(leaf, 3 * jnp.finfo(leaf.dtype).nmant // 4)
    return _sum_of_products(high, high, axes) + _sum_of_products(leaf + high, low, axes)


def _sum_of_products(left: jax.Array, right: jax.Array, axes: Axes) -> jax.Array:
    """Sums products by contraction: XLA then sees one long axis, not nested loops."""
    reduced = tuple(range(left.ndim)) if axes is None else axes
    kept = tuple(i for i in range(left.ndim) if i not in reduced)
    sharding = jax.typeof(left).sharding
    is_split = any(sharding.spec[i] is not None for i in reduced)
    total = jax.lax.dot_general(
        left,
        right,
        ((reduced, reduced), (kept, kept)),
        precision=jax.lax.Precision.HIGHEST,
        # On an explicit mesh a sum over devices has to say so.
        out_sharding=NamedSharding(
            sharding.mesh, PartitionSpec(*(sharding.spec[i] for i in kept))
        )
        if is_split
        else None,
    )
    return total if axes is None else jnp.expand_dims(total, reduced)


@dataclasses.dataclass(frozen=True, repr=False)
class Lp(Norm):
    """The p-norm ``(Σ |x|^p)^(1/p)``, 1 ≤ p < inf; the modulus of complex entries."""

    p: float
    # Leaves are made on the fly; see `clipjax.sums`.
    is_computed: bool = dataclasses.field(default=False, kw_only=True, compare=False)
    needs_rescaling = True

    def __post_init__(self):
        """Refuses what is not a norm."""
        _require_exponent(self.p, "p")

    def __repr__(self) -> str:
        """Prints ``l1``, ``l2`` or ``lp(3)``."""
        return f"l{self.p:g}" if self.p in (1, 2) else f"lp({self.p:g})"

    def accumulate(self, leaf: jax.Array, axes: Axes) -> jax.Array:
        """Sums |x|^p."""
        if self.p == 2:
            return _sum_of_squares(leaf, axes, self.is_computed)
        powers = jnp.abs(leaf)
        powers = powers if self.p == 1 else powers**self.p
        return total(powers, axes, self.is_computed)

    def of_computed(self) -> Norm:
        """Sums up without a library."""
        return dataclasses.replace(self, is_computed=True)

    def finish(self, total: jax.Array, size: int | jax.Array) -> jax.Array:
        """Takes the p-th root."""
        del size
        return total if self.p == 1 else positive_root(total, self.p)

    def combine(self, norms: jax.Array, sizes: jax.Array) -> jax.Array:
        """Takes the p-norm of the norms, at a scale where their powers fit."""
        del sizes
        power = scaling_power(jnp.max(norms, initial=0))
        return self.finish(Lp.accumulate(self, norms * power, None), 1) / power

    def in_range(self, total: jax.Array) -> jax.Array:
        """Checks the sum of powers against the dtype's range, with a margin.

        Below the lower bound, entries whose powers were flushed to zero could
        have mattered: 2^56 of them would still be lost in rounding above it.
        """
        info = jnp.finfo(total.dtype)
        lowest = 0.0 if self.p == 1 else float(2.0 ** (0.55 * info.minexp))
        return (total >= lowest) & (total < jnp.inf)


@dataclasses.dataclass(frozen=True, repr=False)
class RMS(Lp):
    """The root mean square ``(Σ |x|² / size)^(1/2)``."""

    p: float = dataclasses.field(default=2, init=False)

    def __repr__(self) -> str:
        """Prints ``rms``."""
        return "rms"

    def finish(self, total: jax.Array, size: int | jax.Array) -> jax.Array:
        """Takes the root of the mean; an empty block has none and gives 0."""
        # XLA compiles the division in jnp.mean to this product, and Optax takes that.
        reciprocal = 1 / jnp.maximum(size, 1).astype(total.dtype)
        return positive_root(total * reciprocal, 2)

    def combine(self, norms: jax.Array, sizes: jax.Array) -> jax.Array:
        """Weighs the squares by the numbers of entries."""
        power = scaling_power(jnp.max(norms, initial=0))
        sizes = jnp.broadcast_to(sizes, norms.shape).astype(norms.dtype)
        squares = jnp.sum(sizes * jnp.square(norms * power))
        return self.finish(squares, jnp.sum(sizes)) / power


def lp(p: float, argument: str = "p") -> Norm:
    """Makes the p-norm ``(Σ |x|^p)^(1/p)``.

    Args:
        p: a number of at least 1; ``inf`` gives `linf`.
        argument: its name, for errors.

    Raises:
        TypeError: p is not a number.
        ValueError: p is below 1 or NaN.
    """
    if p != math.inf:
        _require_exponent(p, argument)
    return Linf() if p == math.inf else Lp(p)


def _require_exponent(p: Any, argument: str) -> None:
    if isinstance(p, bool) or not isinstance(p, int | float):
        raise TypeError(f"{argument} must be a number of at least 1, got {p!r}")
    if not 1 <= p < math.inf:
        raise ValueError(f"{argument} must be at least 1 and finite, got {p!r}")
