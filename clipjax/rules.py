"""Rules: maps from the norm of a block and its threshold to its norm after the clip.

The norm after the clip is called the length of the block. In the formulas, n is the
norm of the block before the clip and c is its threshold.

| norm | threshold | length, for every rule |
|---|---|---|
| 0 | any | 0 |
| any | inf | the norm: not clipped |
| finite | 0 | 0 |
| inf | finite | not used: the guard decides what the block becomes, NaN by default |
"""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp

from .core.checks import require_fraction, require_number
from .core.printing import changed_settings


class Rule:
    """The protocol between a rule and the engine. Rules are frozen dataclasses.

    Attributes:
        contractive: whether the length is never above the norm.
        bounded: whether the length is never above the threshold; if so,
            `clipjax.clipped_grad` cuts a longer one.
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
        name = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
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
    """``c``, whatever the norm; a zero block stays zero.

    Per example, it is AUTO-V of Bu et al.
    """

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
    """``n`` up to the threshold, 0 beyond: drops a block instead of shortening it.

    Per example, it is the indicator that fastDP calls ``global``.
    """

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


@dataclasses.dataclass(frozen=True, repr=False)
class Automatic(Rule):
    """``c · n / (n + γ)``: near c for all but norms of about γ and below."""

    stability: float = 0.01
    contractive = False

    def __post_init__(self):
        require_number("stability", self.stability, infinite=False)

    def length(self, norm, threshold):
        return _portion(norm, self.stability, threshold)


@dataclasses.dataclass(frozen=True, repr=False)
class Psac(Rule):
    """``c · n / (n + r / (n + r))``: as `Automatic`, but with a γ that falls with n."""

    r: float = 0.01
    contractive = False

    def __post_init__(self):
        require_number("r", self.r, infinite=False)

    def length(self, norm, threshold):
        # r / (n + r), without a sum that could overflow.
        return _portion(norm, 1.0 / (1.0 + norm / self.r), threshold)


@dataclasses.dataclass(frozen=True, repr=False)
class GlobalAdapt(Rule):
    """``min(n / multiple, c)``: hard, on gradients that are all divided by one number.

    Blocks up to Z = multiple · c keep their lengths relative to each other.
    """

    multiple: float

    def __post_init__(self):
        require_number("multiple", self.multiple, lowest=1.0, infinite=False)

    def length(self, norm, threshold):
        return jnp.minimum(norm / self.multiple, threshold)


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


def automatic(stability: float = 0.01) -> Automatic:
    r"""Return the rule of automatic clipping; see `Automatic`.

    .. math:: C \, \frac{n}{n + \gamma}

    The threshold C only scales the result, as the learning rate of SGD does, and Adam
    cancels it, so that C need not be tuned. γ alone determines which gradients count as
    short: at a norm of γ the length is C / 2. It is a norm, in the gradient's units,
    and does not scale with C: gradients that are all multiplied by 100, as by a sum
    over 100 terms in place of a mean, need 100 γ for the same directions. Gradients
    shorter than C - γ are lengthened.

    With 1 / (n + γ), this is AUTO-S and DP-NSGD. γ = 0 is AUTO-V, `rules.normalise`.

    Args:
        stability: γ, at least 0.

    Raises:
        TypeError: stability is not a number.
        ValueError: stability is out of range.

    References:
        Bu, Wang, Zha, Karypis, `Automatic clipping: differentially private deep
        learning made easier and stronger <https://arxiv.org/abs/2206.07136>`_, 2023;
        Yang, Zhang, Chen, Liu, `Normalized/clipped SGD with perturbation for
        differentially private non-convex optimization
        <https://arxiv.org/abs/2206.13033>`_, 2022.
    """
    return Automatic(stability)


def psac(r: float = 0.01) -> Psac:
    r"""Return the rule of per-sample adaptive clipping, DP-PSAC; see `Psac`.

    .. math:: C \, \frac{n}{n + r / (n + r)}

    The multiplier C / (n + r / (n + r)) is about C for the shortest gradients, where
    that of `automatic` is C / γ. For r < 1 it is largest, C / (2√r - r), at the norm
    √r - r. The length grows with the norm and stays below C. Do not pass the multiplier
    as a threshold: the clip would divide by n a second time. The formula adds a norm to
    numbers without units, so that it depends on the scale of the gradient: scale the
    loss, or choose r, so that norms of about √r count as short.

    Args:
        r: at least 0; 0 is `rules.normalise`.

    Raises:
        TypeError: r is not a number.
        ValueError: r is out of range.

    References:
        Xia et al., `Differentially private learning with per-sample adaptive clipping
        <https://arxiv.org/abs/2212.00328>`_, 2023.
    """
    return Psac(r)


def global_adapt(multiple: float) -> GlobalAdapt:
    r"""Return the rule of DPSGD-Global-Adapt, with a fixed Z; see `GlobalAdapt`.

    .. math:: n \, \frac{C}{Z} \ \text{ if } n \le Z, \quad C \ \text{ otherwise},
        \qquad Z = \text{multiple} \cdot C

    All gradients up to Z are divided by the same number, so that their sum keeps its
    direction. The paper adapts Z to a noisy count of the gradients beyond it, which a
    rule cannot do: choose a Z that norms seldom exceed, such as 50 C.

    Args:
        multiple: Z / C, at least 1; 1 is the hard rule.

    Raises:
        TypeError: multiple is not a number.
        ValueError: multiple is out of range.

    References:
        Esipova, Ghomi, Luo, Cresswell, `Disparate impact in differential privacy from
        gradient misalignment <https://arxiv.org/abs/2206.07737>`_, 2023.
    """
    return GlobalAdapt(multiple)


def _portion(
    norm: jax.Array, other: float | jax.Array, threshold: jax.Array
) -> jax.Array:
    """Return ``threshold · norm / (norm + other)``, for ``other`` of at least 0."""
    # The device flushes a subnormal norm to zero, and 0 / 0 would be NaN.
    share = 1.0 + other / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
    # The minimum, since a division that is rounded up must not lengthen.
    return jnp.minimum(threshold / share, threshold)


def valid(threshold: jax.Array) -> jax.Array:
    """Replace a negative threshold or NaN by 0, so that the update is zero."""
    return jax.lax.select(threshold >= 0, threshold, jnp.zeros_like(threshold))


def ratio(length: jax.Array, norm: jax.Array) -> jax.Array:
    """Return ``length / norm``, and 1 where they are equal, zero or infinite."""
    same = length == norm
    return jnp.where(same, jnp.ones_like(norm), length / jnp.where(same, 1, norm))
