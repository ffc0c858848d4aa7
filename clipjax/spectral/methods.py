"""How singular values are measured and clipped: power iteration, SVD, Newton-Schulz."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import require_integer
from ..core.shorten import Multiplier
from ..rules import Rule, Skip, Sqrt
from .matrices import (
    decompose,
    frobenius_norm,
    largest_singular_value,
    matmul,
    soft_clip,
)


class Method:
    """How singular values are measured and brought to their lengths."""

    def check(self, rule: Rule) -> None:
        """Refuse a rule that the method cannot apply."""

    def measure(self, matrix: jax.Array) -> tuple[jax.Array, Any]:
        """Return the largest singular value of ``(…, rows, columns)``, and more.

        The value is NaN or inf if an entry is.
        """
        raise NotImplementedError

    def clip(
        self,
        matrix: jax.Array,
        found: Any,
        rule: Rule,
        threshold: jax.Array,
        by: Multiplier,
    ) -> jax.Array:
        """Return the clipped matrix, given what `measure` found."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class PowerIteration(Method):
    """Scale the matrix by σ₁, estimated from below by power iteration.

    The error shrinks with the square of the ratio of the two largest singular values at
    each of the steps, which are two products with the matrix each.
    """

    iterations: int = 16

    def __post_init__(self):
        require_integer("iterations", self.iterations, 1)

    def measure(self, matrix):
        return largest_singular_value(matrix, self.iterations), None

    def clip(self, matrix, found, rule, threshold, by):
        del found, rule, threshold
        wide = matrix * _inner(by.inverse).astype(matrix.dtype)
        return wide * _inner(by.length).astype(matrix.dtype)

    def __repr__(self) -> str:
        return "power-iteration"


@dataclasses.dataclass(frozen=True)
class SVD(Method):
    """Bring every singular value to its length, and keep the singular vectors.

    The derivative is not defined where singular values are equal.
    """

    def check(self, rule: Rule) -> None:
        # A leaf is reported and kept by what becomes of its largest singular value,
        # which must stay the largest, and be cut before the others are.
        if not rule.contractive or isinstance(rule, Skip):
            raise ValueError(
                f"rule={rule!r} does not shorten the largest singular values most: use "
                "a rule such as rules.hard"
            )

    def measure(self, matrix):
        if min(matrix.shape[-2:]) <= 1:
            return frobenius_norm(matrix), None
        left, sigma, right = decompose(matrix)
        return sigma[..., 0], (left, sigma, right)

    def clip(self, matrix, found, rule, threshold, by):
        if found is None:
            return PowerIteration().clip(matrix, found, rule, threshold, by)
        left, sigma, right = found
        # NaN and inf are settled by the multiplier of the largest value.
        finite = jnp.where(jnp.isfinite(sigma), sigma, 0)
        length = rule.lengths(finite, threshold[..., None])[..., None, :]
        clipped = matmul(left * length.astype(left.dtype), right)
        is_bad = jnp.isnan(_inner(by.length))
        return jnp.where(is_bad, jnp.full_like(clipped, jnp.nan), clipped)

    def __repr__(self) -> str:
        return "svd"


@dataclasses.dataclass(frozen=True)
class NewtonSchulz(Method):
    """Map every singular value σ to ``σ / √(1 + (σ/c)²)`` by matrix products alone."""

    iterations: int = 12

    def __post_init__(self):
        require_integer("iterations", self.iterations, 1)

    def check(self, rule: Rule) -> None:
        if not isinstance(rule, Sqrt):
            raise ValueError(f"rule must be rules.sqrt with {self!r}, got {rule!r}")

    def measure(self, matrix):
        return largest_singular_value(matrix, PowerIteration().iterations), None

    def clip(self, matrix, found, rule, threshold, by):
        if min(matrix.shape[-2:]) <= 1:
            return PowerIteration().clip(matrix, found, rule, threshold, by)
        return soft_clip(matrix, _inner(by.length), _inner(threshold), self.iterations)

    def __repr__(self) -> str:
        return "newton-schulz"


def _inner(value: jax.Array) -> jax.Array:
    return value[..., None, None]
