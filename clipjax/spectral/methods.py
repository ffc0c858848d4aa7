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
    """The protocol of a method that measures and clips singular values."""

    def check(self, rule: Rule) -> None:
        """Refuse a rule that the method cannot apply."""

    def measure(self, matrix: jax.Array) -> tuple[jax.Array, Any]:
        """Return the largest singular value of ``(…, rows, columns)``, and extras.

        The singular value is NaN or inf if an entry is. The extras are for `clip`.
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
        """Return the clipped matrix, given the extras that `measure` returned."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class PowerIteration(Method):
    """Scale the matrix by σ₁, estimated from below by power iteration.

    Each step takes two products with the matrix, and multiplies the error by the square
    of the ratio of the second largest singular value to the largest.
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
    """Map every singular value by the rule, and keep the singular vectors.

    The derivative is undefined where singular values are equal.
    """

    def check(self, rule: Rule) -> None:
        # Whether a leaf is unchanged, and its reported norm, follow from its largest
        # singular value: it must be the first that the rule cuts, and stay the largest.
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
        # Matrices with NaN or inf are handled below, by the largest value's multiplier.
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
