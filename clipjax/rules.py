"""Rules: the length that a block of a given norm gets under a threshold.

A rule sees positive, finite norms and thresholds; `lengths` settles zero, infinite
and invalid ones in one place, for all rules alike.
"""

from __future__ import annotations

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp


class Rule:
    """What the engine needs of a rule. Parts are frozen dataclasses.

    Attributes:
        contractive: never lengthens a block.
        bounded: the length is at most the threshold.
    """

    contractive: bool = True
    bounded: bool = True

    def length(self, norm: jax.Array, threshold: jax.Array) -> jax.Array:
        """Gives the norm after the clip, elementwise, for positive finite inputs."""
        raise NotImplementedError

    def factor(self, norm: jax.Array, threshold: jax.Array) -> jax.Array:
        """Gives the multiplier, ``length / norm``, 1 at a zero norm."""
        norm, threshold = jnp.asarray(norm), jnp.asarray(threshold)
        return ratio(lengths(self, norm, threshold), norm)

    def __repr__(self) -> str:
        """Prints the rule's name, with the settings that are not the default."""
        settings = [
            f"{field.name}={getattr(self, field.name):g}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if getattr(self, field.name) != field.default
        ]
        name = type(self).__name__.lower()
        return f"{name}({', '.join(settings)})" if settings else name


@dataclasses.dataclass(frozen=True, repr=False)
class Hard(Rule):
    """``min(n, c)``; with an epsilon, ``n · min(1, c / (n + epsilon))``."""

    epsilon: float = 0.0

    def __post_init__(self):
        """Refuses what is no small number."""
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, numbers.Real):
            raise TypeError(f"epsilon must be a number, got {self.epsilon!r}")
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(
                f"epsilon must be at least 0 and finite, got {self.epsilon!r}"
            )

    def length(self, norm, threshold):
        """Cuts at the threshold."""
        if not self.epsilon:
            return jnp.minimum(norm, threshold)
        length = norm * jnp.minimum(1.0, threshold / (norm + self.epsilon))
        return jnp.minimum(length, threshold)  # rounding must not lengthen


@dataclasses.dataclass(frozen=True, repr=False)
class Soft(Rule):
    """``n · c / (n + c)``: smooth, and within a factor 2 of the hard rule."""

    def length(self, norm, threshold):
        """Takes half the harmonic mean, without a product that could overflow."""
        low, high = jnp.minimum(norm, threshold), jnp.maximum(norm, threshold)
        return low / (1.0 + low / high)


@dataclasses.dataclass(frozen=True, repr=False)
class Tanh(Rule):
    """``c · tanh(n / c)``."""

    def length(self, norm, threshold):
        """Saturates; rounding must not lengthen."""
        length = jnp.minimum(threshold * jnp.tanh(norm / threshold), norm)
        # Where rounding hides the difference, the quotient may even underflow.
        is_short = norm < threshold * float(jnp.finfo(norm.dtype).eps) ** 0.5
        return jnp.where(is_short, norm, length)


@dataclasses.dataclass(frozen=True, repr=False)
class Sqrt(Rule):
    """``n / √(1 + (n / c)²)``, also called pseudo-Huber or relativistic."""

    def length(self, norm, threshold):
        """Is symmetric in its arguments, so that the ratio stays below one."""
        low, high = jnp.minimum(norm, threshold), jnp.maximum(norm, threshold)
        return low / jnp.sqrt(1.0 + jnp.square(low / high))


@dataclasses.dataclass(frozen=True, repr=False)
class Normalise(Rule):
    """``c``, whatever the norm; a zero block stays zero."""

    contractive = False

    def length(self, norm, threshold):
        """Is the threshold."""
        return jnp.broadcast_to(
            threshold, jnp.broadcast_shapes(norm.shape, threshold.shape)
        )


@dataclasses.dataclass(frozen=True, repr=False)
class Band(Rule):
    """``clip(n, lower · c, c)``: also lengthens what is too short."""

    lower: float = 0.5
    contractive = False

    def __post_init__(self):
        """Refuses an empty band."""
        _require_fraction("lower", self.lower, "the threshold")

    def length(self, norm, threshold):
        """Cuts at both ends."""
        return jnp.clip(norm, self.lower * threshold, threshold)


@dataclasses.dataclass(frozen=True, repr=False)
class Skip(Rule):
    """``n`` up to the threshold, 0 beyond: drops a block rather than shorten it."""

    def length(self, norm, threshold):
        """Keeps or drops."""
        return jnp.where(norm <= threshold, norm, jnp.zeros_like(norm))


@dataclasses.dataclass(frozen=True, repr=False)
class Floored(Rule):
    """``max(min(n, c), δ·n)``: hard, but keeps at least a fraction δ of every norm."""

    fraction: float
    bounded = False

    def __post_init__(self):
        """Refuses what is no fraction."""
        _require_fraction("fraction", self.fraction, "the norm")

    def length(self, norm, threshold):
        """Takes the larger of the clipped norm and the fraction."""
        return jnp.maximum(jnp.minimum(norm, threshold), self.fraction * norm)


hard = Hard()
soft = Soft()
tanh = Tanh()
sqrt = Sqrt()
normalise = Normalise()
skip = Skip()


def band(lower: float = 0.5) -> Band:
    """Makes the two-sided rule; see `Band`.

    Args:
        lower: the lower end as a fraction of the threshold, from 0 to 1.

    Raises:
        TypeError: lower is not a number.
        ValueError: lower is out of range.
    """
    return Band(lower)


def floored(fraction: float) -> Floored:
    """Makes the rule that keeps a fraction of every norm; see `Floored`.

    Args:
        fraction: from 0, the hard rule, to 1, no clip.

    Raises:
        TypeError: fraction is not a number.
        ValueError: fraction is out of range.
    """
    return Floored(fraction)


def _require_fraction(name: str, value: float, of: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(
            f"{name} must be a fraction of {of}, from 0 to 1, got {value!r}"
        )


def lengths(rule: Rule, norm: jax.Array, threshold: jax.Array) -> jax.Array:
    """Applies a rule to any norms and thresholds, elementwise.

    | norm | threshold | length |
    |---|---|---|
    | 0 | any | 0 |
    | any | inf | the norm: not clipped |
    | finite | 0 | 0 |
    | any | negative or NaN | 0 |
    | inf or NaN | finite | NaN, for the guard to settle |
    """
    one, zero = jnp.ones_like(norm), jnp.zeros_like(norm)
    # Adding zeros broadcasts, and unlike broadcast_to takes the norm's sharding over.
    threshold = threshold.astype(norm.dtype) + zero
    measured = (norm > 0) & (norm < jnp.inf)
    usable = (threshold > 0) & (threshold < jnp.inf)
    length = rule.length(
        jnp.where(measured, norm, one), jnp.where(usable, threshold, one)
    )
    length = jnp.where(usable & measured, length, zero)
    length = jnp.where(jnp.isfinite(norm), length, jnp.full_like(norm, jnp.nan))
    return jnp.where(threshold == jnp.inf, norm, length)


def ratio(length: jax.Array, norm: jax.Array) -> jax.Array:
    """Gives ``length / norm``, and 1 where they are equal, zero or infinite."""
    same = length == norm
    return jnp.where(same, jnp.ones_like(norm), length / jnp.where(same, 1, norm))
