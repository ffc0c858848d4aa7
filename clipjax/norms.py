"""Norms: how a block of entries is measured.

A norm is a fold and then a scalar map: `Norm.accumulate` sums up one leaf,
`Norm.merge` joins leaves (and devices, by `Norm.collective`), `Norm.finish` turns
the sum into the norm. So a norm over many leaves, or over many devices, is the
same operation as a norm over one array.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from .distributed import gathered, resharded
from .floats import safe_scale, scaling_power, split

Axes = tuple[int, ...] | None


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


def _magnitude(leaf: jax.Array) -> jax.Array:
    return jnp.abs(leaf)


# XLA's CPU backend adds up to 4096 entries up one after another, more in a tree. Sums
# of fewer than 32 are left to it: they are good to two ulps, and the same as Optax's.
SEQUENTIAL = 4096
SHORT = 32


def _sum_of_squares(leaf: jax.Array, axes: Axes) -> jax.Array:
    """Sums |x|²; a short sum is made as accurate as a long one is on all backends."""
    if jnp.iscomplexobj(leaf):
        return _sum_of_squares(leaf.real, axes) + _sum_of_squares(leaf.imag, axes)
    reduced = range(leaf.ndim) if axes is None else axes
    entries = math.prod(leaf.shape[i] for i in reduced)
    if entries < SHORT or leaf.size > SEQUENTIAL:
        return jnp.sum(jnp.square(leaf), axis=axes, keepdims=axes is not None)
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


def _absolute_square(leaf: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(leaf):
        return jnp.square(leaf.real) + jnp.square(leaf.imag)
    return jnp.square(leaf)


def _positive_root(total: jax.Array, p: float) -> jax.Array:
    """The p-th root with derivative zero, not infinite, at zero."""
    positive = total > 0
    safe = jnp.where(positive, total, jnp.ones_like(total))
    root = jnp.sqrt(safe) if p == 2 else jnp.power(safe, 1 / p)
    # Multiplying a NaN or inf total keeps it; a plain zero here would hide it.
    return jnp.where(positive, root, jnp.where(total == 0, 0 * total, total))


@dataclasses.dataclass(frozen=True, repr=False)
class Lp(Norm):
    """The p-norm ``(Σ |x|^p)^(1/p)``, 1 ≤ p < inf; the modulus of complex entries."""

    p: float
    needs_rescaling = True

    def __post_init__(self):
        """Refuses what is not a norm."""
        if isinstance(self.p, bool) or not isinstance(self.p, int | float):
            raise TypeError(f"p must be a number of at least 1, got {self.p!r}")
        if not 1 <= self.p < math.inf:
            raise ValueError(f"p must be at least 1 and finite, got {self.p!r}")

    def __repr__(self) -> str:
        """Prints ``l1``, ``l2`` or ``lp(3)``."""
        return f"l{self.p:g}" if self.p in (1, 2) else f"lp({self.p:g})"

    def accumulate(self, leaf: jax.Array, axes: Axes) -> jax.Array:
        """Sums |x|^p."""
        if self.p == 2:
            return _sum_of_squares(leaf, axes)
        powers = _magnitude(leaf)
        powers = powers if self.p == 1 else powers**self.p
        return jnp.sum(powers, axis=axes, keepdims=axes is not None)

    def finish(self, total: jax.Array, size: int | jax.Array) -> jax.Array:
        """Takes the p-th root."""
        del size
        return total if self.p == 1 else _positive_root(total, self.p)

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
        return _positive_root(total * reciprocal, 2)

    def combine(self, norms: jax.Array, sizes: jax.Array) -> jax.Array:
        """Weighs the squares by the numbers of entries."""
        power = scaling_power(jnp.max(norms, initial=0))
        sizes = jnp.broadcast_to(sizes, norms.shape).astype(norms.dtype)
        squares = jnp.sum(sizes * jnp.square(norms * power))
        return self.finish(squares, jnp.sum(sizes)) / power


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


@dataclasses.dataclass(frozen=True, repr=False)
class Linf(Norm):
    """The largest magnitude ``max |x|``."""

    def __repr__(self) -> str:
        """Prints ``linf``."""
        return "linf"

    def accumulate(self, leaf: jax.Array, axes: Axes) -> jax.Array:
        """Takes the largest magnitude; NaN counts as inf, if there is more than one."""
        size = _magnitude(leaf)
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
        return jax.lax.pmax(partial, axis_names)

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


@dataclasses.dataclass(frozen=True, repr=False)
class Spectral(Linf):
    """The largest singular value of a matrix, by power iteration.

    A leaf of shape ``(…, columns)`` is read as the matrix ``(rest, columns)``,
    after the stacked axes that its granularity names; vectors are single rows.
    The estimate approaches the singular value from below, so that the result of a
    clip exceeds its threshold by the error that is left. The error shrinks with
    the square of the ratio of the two largest singular values at each iteration.
    """

    iterations: int = 16
    per_leaf_only = True

    def __post_init__(self):
        """Refuses a number of iterations that measures nothing."""
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int):
            raise TypeError(f"iterations must be an integer, got {self.iterations!r}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations!r}")

    def __repr__(self) -> str:
        """Prints ``spectral``."""
        return "spectral"

    def accumulate(self, leaf: jax.Array, axes: Axes) -> jax.Array:
        """Estimates σ₁ of each stacked matrix."""
        rank = leaf.ndim
        reduced = tuple(range(rank)) if axes is None else axes
        stack = tuple(n for i, n in enumerate(leaf.shape) if i not in reduced)
        kept = tuple(1 if i in reduced else n for i, n in enumerate(leaf.shape))
        columns = leaf.shape[-1] if reduced else 1
        rows = math.prod(leaf.shape[i] for i in reduced) // max(columns, 1)
        if rows * columns == 0:
            return jnp.zeros(kept, jnp.real(leaf).dtype)
        leaf = gathered(leaf, len(stack))
        sigma = self._power_iteration(leaf.reshape((*stack, rows, columns)))
        return sigma.reshape(kept) if axes is not None else sigma

    def _power_iteration(self, matrix: jax.Array) -> jax.Array:
        peak = jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True)
        power = scaling_power(peak)
        matrix = matrix * power.astype(matrix.dtype)
        adjoint = jnp.conj(jnp.swapaxes(matrix, -1, -2))
        # A fixed start keeps the clip a pure function; being random, it is almost
        # surely not orthogonal to the leading singular vector.
        start = jax.random.normal(jax.random.key(0), (matrix.shape[-1], 1))
        start = jnp.broadcast_to(start, (*matrix.shape[:-2], *start.shape))
        start = resharded(start, (*jax.typeof(matrix).sharding.spec[:-2], None, None))

        def step(_, vector):
            vector = adjoint @ (matrix @ vector)
            length = jnp.sqrt(jnp.sum(_absolute_square(vector), -2, keepdims=True))
            return vector / safe_scale(length).astype(vector.dtype)

        # The first step outside gives the carry the type that the loop leaves it with.
        vector = step(None, start.astype(matrix.dtype))
        vector = jax.lax.fori_loop(1, self.iterations, step, vector)
        vector = jax.lax.stop_gradient(vector)
        image = jnp.sum(_absolute_square(matrix @ vector), axis=(-2, -1))
        sigma = _positive_root(image, 2) / power[..., 0, 0]
        return jnp.where(jnp.isfinite(peak[..., 0, 0]), sigma, peak[..., 0, 0])


l1 = Lp(1)
l2 = Lp(2)
linf = Linf()
rms = RMS()
reproducible_l2 = ReproducibleL2()
"""The 2-norm, to the same bit on any mesh: sums of integers have no order.

The largest magnitude is found first, then squares are added up in 48 bits behind the
point at its scale. For N entries the norm is right to N · 2⁻⁵⁰ and half an ulp, at
worst: to 1e-6 for 10⁹ entries. It costs a second read and a second all-reduce, of the
maximum. Its derivative is that of `l2`.
"""


def lp(p: float) -> Norm:
    """Makes the p-norm ``(Σ |x|^p)^(1/p)``.

    Args:
        p: a number of at least 1; ``inf`` gives `linf`.

    Raises:
        TypeError: p is not a number.
        ValueError: p is below 1 or NaN.
    """
    return linf if p == math.inf else Lp(p)


def spectral(iterations: int = 16) -> Spectral:
    """Makes the spectral norm; see `Spectral`. Goes with ``granularity.leaf()``.

    Args:
        iterations: steps of power iteration, each two products with the leaf.
    """
    return Spectral(iterations)
