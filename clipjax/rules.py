"""Rules: maps from the norm of a block and its threshold to its length after the clip.

| norm | threshold | length, for every rule |
|---|---|---|
| 0 | any | 0 |
| any | inf | the norm: not clipped |
| finite | 0 | 0 |
| inf | finite | not used: the guard decides what the block becomes, NaN by default |
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from .core.checks import require_fraction, require_number
from .core.printing import changed_settings


class Rule:
    """The protocol between a rule and the engine. Rules are frozen dataclasses.

    Attributes:
        contractive: whether the length is never above the norm.
        bounded: whether the length is never above the threshold.
    """

    contractive: bool = True
    bounded: bool = True

    def length(self, norm: jax.Array, threshold: jax.Array) -> jax.Array:
        """Return the norm after the clip, for positive and finite inputs."""
        raise NotImplementedError

    def lengths(self, norm: jax.Array, threshold: jax.Array) -> jax.Array:
        """Return the norm after the clip, elementwise, for any inputs.

        Args:
            norm: at least 0, and not NaN.
            threshold: likewise, of the norm's dtype and a shape that broadcasts to the
                norm's; see `valid`.
        """
        threshold = threshold + jnp.zeros_like(norm)
        usable = (norm > 0) & (norm < jnp.inf) & (threshold > 0) & (threshold < jnp.inf)
        one = jnp.ones_like(norm)
        length = self.length(
            jnp.where(usable, norm, one), jnp.where(usable, threshold, one)
        )
        edge = jnp.where(threshold < jnp.inf, jnp.zeros_like(norm), norm)
        return jnp.where(usable, length, edge)

    def factor(self, norm: jax.Array, threshold: jax.Array) -> jax.Array:
        """Return the multiplier ``length / norm``, which is 1 at a norm of zero."""
        norm = jnp.asarray(norm)
        length = self.lengths(norm, valid(jnp.asarray(threshold).astype(norm.dtype)))
        return ratio(length, norm)

    def __repr__(self) -> str:
        settings = changed_settings(self)
        name = type(self).__name__.lower()
        return f"{name}({', '.join(settings)})" if settings else name


@dataclasses.dataclass(frozen=True, repr=False)
class Hard(Rule):
    """``min(n, c)``; with an epsilon, ``n · min(1, c / (n + epsilon))``."""

    epsilon: float = 0.0

    def __post_init__(self):
        require_number("epsilon", self.epsilon, infinite=False)

    def lengths(self, norm, threshold):
        if isinstance(self.epsilon, jax.Array) or self.epsilon:
            return super().lengths(norm, threshold)
        return jnp.minimum(norm, threshold)  # correct in every edge case

    def length(self, norm, threshold):
        length = norm * jnp.minimum(1.0, threshold / (norm + self.epsilon))
        return jnp.minimum(length, threshold)  # rounding must not lengthen


@dataclasses.dataclass(frozen=True, repr=False)
class Soft(Rule):
    """``n · c / (n + c)``: smooth, and within a factor 2 of the hard rule."""

    def length(self, norm, threshold):
        # Half the harmonic mean, without a product that could overflow.
        low, high = jnp.minimum(norm, threshold), jnp.maximum(norm, threshold)
        return low / (1.0 + low / high)


@dataclasses.dataclass(frozen=True, repr=False)
class Tanh(Rule):
    """``c · tanh(n / c)``."""

    def length(self, norm, threshold):
        # The minimum, since rounding must not lengthen.
        length = jnp.minimum(threshold * jnp.tanh(norm / threshold), norm)
        # Where rounding hides the difference, the quotient may even underflow.
        is_short = norm < threshold * float(jnp.finfo(norm.dtype).eps) ** 0.5
        return jnp.where(is_short, norm, length)


@dataclasses.dataclass(frozen=True, repr=False)
class Sqrt(Rule):
    """``n / √(1 + (n / c)²)``, also called pseudo-Huber or relativistic."""

    def length(self, norm, threshold):
        # The formula is symmetric in both, and this order keeps the quotient at most 1.
        low, high = jnp.minimum(norm, threshold), jnp.maximum(norm, threshold)
        return low / jnp.sqrt(1.0 + jnp.square(low / high))


@dataclasses.dataclass(frozen=True, repr=False)
class Normalise(Rule):
    """``c``, whatever the norm; a zero block stays zero."""

    contractive = False

    def length(self, norm, threshold):
        return jnp.broadcast_to(
            threshold, jnp.broadcast_shapes(norm.shape, threshold.shape)
        )


@dataclasses.dataclass(frozen=True, repr=False)
class Band(Rule):
    """``clip(n, lower · c, c)``: also lengthens blocks that are too short."""

    lower: float = 0.5
    contractive = False

    def __post_init__(self):
        require_fraction("lower", self.lower)

    def length(self, norm, threshold):
        return jnp.clip(norm, self.lower * threshold, threshold)


@dataclasses.dataclass(frozen=True, repr=False)
class Skip(Rule):
    """``n`` up to the threshold, 0 beyond: drops a block instead of shortening it."""

    def length(self, norm, threshold):
        return jnp.where(norm <= threshold, norm, jnp.zeros_like(norm))


@dataclasses.dataclass(frozen=True, repr=False)
class Floored(Rule):
    """``max(min(n, c), δ·n)``: hard, but keeps at least a fraction δ of every norm."""

    fraction: float
    bounded = False

    def __post_init__(self):
        require_fraction("fraction", self.fraction)

    def length(self, norm, threshold):
        return jnp.maximum(jnp.minimum(norm, threshold), self.fraction * norm)


hard = Hard()
soft = Soft()
tanh = Tanh()
sqrt = Sqrt()
normalise = normalize = Normalise()
skip = Skip()


def band(lower: float = 0.5) -> Band:
    """Return the two-sided rule; see `Band`.

    Args:
        lower: the lower end as a fraction of the threshold, from 0 to 1.

    Raises:
        TypeError: lower is not a number.
        ValueError: lower is out of range.
    """
    return Band(lower)


def floored(fraction: float) -> Floored:
    """Return the rule that keeps a fraction of every norm; see `Floored`.

    Args:
        fraction: from 0, the hard rule, to 1, no clip.

    Raises:
        TypeError: fraction is not a number.
        ValueError: fraction is out of range.
    """
    return Floored(fraction)


def valid(threshold: jax.Array) -> jax.Array:
    """Replace a negative threshold or NaN by 0, which stops all updates."""
    return jax.lax.select(threshold >= 0, threshold, jnp.zeros_like(threshold))


def ratio(length: jax.Array, norm: jax.Array) -> jax.Array:
    """Return ``length / norm``, and 1 where they are equal, zero or infinite."""
    same = length == norm
    return jnp.where(same, jnp.ones_like(norm), length / jnp.where(same, 1, norm))
