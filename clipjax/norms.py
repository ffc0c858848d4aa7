r"""Norms: how a block of entries is measured.

A norm defines the term that a leaf adds to the sum of its block, how the sums of leaves
and devices are combined, and how the norm is computed from the sum. Sums are
accumulated in float32 or wider. The derivative of every norm at zero is 0, and a
complex entry counts by its modulus.

| norm | value |
|---|---|
| `l1` | Σ \|x\| |
| `l2` | (Σ \|x\|²)^(1/2) |
| `rms` | (Σ \|x\|² / size)^(1/2), 0 for a block without entries |
| `linf` | max \|x\| |
| `lp` (p) | (Σ \|x\|^p)^(1/p), 1 ≤ p < ∞ |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .core.dtypes import inverse_power
from .core.meshes import pmax

Axes = tuple[int, ...]


class Norm:
    """The protocol between a norm and the engine. Norms are frozen dataclasses.

    Attributes:
        sums_terms: whether `combine` is a sum of `terms`.
        scales_by_largest: whether a block of extreme magnitude is measured relative to
            its largest entry; otherwise it is multiplied by 2^64 or 2^-64, depending on
            the sum.
    """

    collective = staticmethod(jax.lax.psum)  # over devices, or `pmax`
    sums_terms = True
    scales_by_largest = False

    def accumulate(self, leaf: jax.Array, axes: Axes) -> jax.Array:
        """Return the sum over some axes of a leaf, which has the accumulation dtype."""
        raise NotImplementedError

    def merge(self, sums: jax.Array) -> jax.Array:
        """Return the sum of a block from the sums of its leaves, stacked on axis 0."""
        return jnp.sum(sums, axis=0)

    def finish(self, total: jax.Array, size: Any) -> jax.Array:
        """Return norms from sums.

        Args:
            total: the sum of one block, or an array of them.
            size: the number of entries of a block, or an array of those; at least 1.
        """
        raise NotImplementedError

    def terms(self, norm: jax.Array, size: Any) -> list[jax.Array]:
        """Return the terms whose sums over blocks determine the norm of the whole.

        Args:
            norm: an array with one norm per block.
            size: the number of entries of a block, one number or one per block.

        Returns:
            Arrays of the norms' shape. The last one is infinite where a norm is
            infinite, and finite for every finite norm in the range that this norm's
            ``terms`` supports.
        """
        raise NotImplementedError

    def of_terms(self, totals: Sequence[jax.Array], size: float) -> jax.Array:
        """Return the norm of the whole, of ``size`` entries, from the reduced terms."""
        raise NotImplementedError

    def combine(self, norms: Sequence[jax.Array], sizes: Sequence[Any]) -> jax.Array:
        """Return the norm of the whole from arrays of the norms of its blocks.

        Args:
            norms: arrays with one norm per block.
            sizes: for each of these, how many entries one of its blocks has, a number
                or one number per block.
        """
        each = [self.terms(norm, n) for norm, n in zip(norms, sizes, strict=True)]
        reduced = [[jnp.sum(term) for term in terms] for terms in each]
        totals: list[Any] = [
            sum(same[1:], same[0]) for same in zip(*reduced, strict=True)
        ]
        counts = [
            float(np.sum(size)) * (1 if np.ndim(size) else math.prod(norm.shape))
            for norm, size in zip(norms, sizes, strict=True)
        ]
        return self.of_terms(totals, sum(counts))

    def least(self, dtype: Any) -> float:
        """Return the smallest sum that underflow cannot have changed noticeably."""
        del dtype
        return 0.0

    def __repr__(self) -> str:
        return type(self).__name__.lower()


@dataclasses.dataclass(frozen=True, repr=False)
class L1(Norm):
    """The sum of magnitudes."""

    def accumulate(self, leaf, axes):
        return jnp.sum(jnp.abs(leaf), axes)

    def finish(self, total, size):
        del size
        return total

    def terms(self, norm, size):
        del size
        return [norm]

    def of_terms(self, totals, size):
        del size
        return totals[0]


@dataclasses.dataclass(frozen=True, repr=False)
class L2(Norm):
    """The Euclidean norm."""

    def accumulate(self, leaf, axes):
        if jnp.iscomplexobj(leaf):
            return self.accumulate(leaf.real, axes) + self.accumulate(leaf.imag, axes)
        return jnp.sum(jnp.square(leaf), axes)

    def finish(self, total, size):
        del size
        return _root(total)

    def terms(self, norm, size):
        # Squares at two scales: one of them is in range for results from 4e-34 to 5e33
        # in float32. A scale from the largest norm would cover all magnitudes, but cost
        # one more all-reduce where the norms themselves are sharded.
        del size
        scale = _two_scales(norm.dtype)
        scaled = [norm * power for power in (scale, 1 / scale)]
        if norm.size == 1:
            # The maximum keeps XLA from rewriting (norm · power)² as norm² · power² for
            # a single number: its first factor can leave the range.
            scaled = [jnp.maximum(x, 0) for x in scaled]
        return [jnp.square(x) for x in scaled]

    def of_terms(self, totals, size):
        del size
        scale = _two_scales(totals[0].dtype)
        enlarged, reduced = map(_exact_root, totals)
        enlarged = enlarged / scale
        return jnp.where(enlarged < jnp.inf, enlarged, reduced * scale)

    def least(self, dtype):
        # Above this sum, even 2^56 squares that were flushed to zero would not have
        # changed it by more than its rounding.
        return float(2.0 ** math.ceil(0.55 * jnp.finfo(dtype).minexp))


@dataclasses.dataclass(frozen=True, repr=False)
class RMS(L2):
    """The root mean square."""

    def finish(self, total, size):
        return _root(total * np.asarray(1 / np.maximum(size, 1), total.dtype))

    def terms(self, norm, size):
        return [term * size for term in super().terms(norm, 1)]

    def of_terms(self, totals, size):
        return super().of_terms([total * (1 / max(size, 1)) for total in totals], 1)


@dataclasses.dataclass(frozen=True, repr=False)
class Linf(Norm):
    """The largest magnitude."""

    collective = staticmethod(pmax)
    sums_terms = False

    def accumulate(self, leaf, axes):
        size = jnp.abs(leaf)
        # XLA's maximum may lose NaN, but never inf.
        size = jnp.where(jnp.isnan(size), jnp.inf, size)
        return jnp.max(size, axes, initial=0.0)

    def merge(self, sums):
        return jnp.max(sums, axis=0)

    def finish(self, total, size):
        del size
        return total

    def combine(self, norms, sizes):
        del sizes
        return jnp.max(jnp.stack([jnp.max(norm, initial=0.0) for norm in norms]))


@dataclasses.dataclass(frozen=True)
class Lp(Norm):
    """The p-norm, for any p of at least 1."""

    p: float
    scales_by_largest = True
    sums_terms = False

    def __post_init__(self):
        _require_exponent("p", self.p)

    def accumulate(self, leaf, axes):
        return jnp.sum(jnp.abs(leaf) ** self.p, axes)

    def finish(self, total, size):
        del size
        # The derivatives of the root at zero are those of the constant 0.
        is_zero = total == 0
        root = jnp.where(is_zero, jnp.ones_like(total), total) ** (1 / self.p)
        return jnp.where(is_zero, jnp.zeros_like(total), root)

    def combine(self, norms, sizes):
        del sizes
        power = inverse_power(Linf().combine(norms, ()))
        powers = [jnp.sum((norm * power) ** self.p) for norm in norms]
        return self.finish(sum(powers[1:], powers[0]), 1) / power

    def least(self, dtype):
        return float(2.0 ** math.ceil(0.55 * jnp.finfo(dtype).minexp))

    def __repr__(self) -> str:
        return f"lp({self.p:g})"


def _root(total: jax.Array) -> jax.Array:
    """Return the square root, which is 0 at 0 with derivative 0.

    For subnormal numbers it is the root of the smallest normal number, 1e-19 in
    float32, so that the derivative stays finite.
    """
    tiny = jnp.asarray(jnp.finfo(total.dtype).tiny, total.dtype)
    return jax.lax.sqrt(jax.lax.max(total, tiny)) * jax.lax.sign(total)


def _exact_root(total: jax.Array) -> jax.Array:
    """Return the square root, exactly 0 at 0, with derivative 0 there."""
    positive = total > 0
    root = jnp.sqrt(jnp.where(positive, total, jnp.ones_like(total)))
    return jnp.where(positive, root, total)


def _two_scales(dtype: Any) -> float:
    return 2.0 ** (3 * jnp.finfo(dtype).maxexp // 8)


l1 = L1()
l2 = L2()
linf = Linf()
rms = RMS()


def lp(p: float, argument: str = "p") -> Norm:
    """Return the p-norm ``(Σ |x|^p)^(1/p)``.

    Args:
        p: a number of at least 1; for 1, 2 and ``inf``, `l1`, `l2` and `linf`.
        argument: the argument's name, for errors.

    Raises:
        TypeError: p is not a number.
        ValueError: p is below 1 or NaN.
    """
    if isinstance(p, int | float) and not isinstance(p, bool):
        known = {1: l1, 2: l2, math.inf: linf}
        if p in known:
            return known[p]
    _require_exponent(argument, p)
    return Lp(p)


def _require_exponent(argument: str, p: Any) -> None:
    accepted = "a number of at least 1, or inf"
    if isinstance(p, bool) or not isinstance(p, int | float):
        raise TypeError(f"{argument} must be {accepted}, got {p!r}")
    if not p >= 1:
        raise ValueError(f"{argument} must be {accepted}, got {p!r}")
