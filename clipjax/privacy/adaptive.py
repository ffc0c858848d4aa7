"""A clipping threshold that follows a quantile of the norms, from noisy counts only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt32

from ..core.checks import Scalar, require_limits, require_number, require_steps
from ..core.state import checked_state
from ..per_example.relations import CHANGES, relation_name
from .checks import words_of
from .metrics import clipped_excess, noisy_fraction, require_positive_scalar

# Folded into the key, so that this noise is independent of the gradient's noise, and of
# a metric's, with the same key.
_PURPOSE = 0x7175616E


class QuantileState(NamedTuple):
    """The state of `quantile_threshold`.

    The threshold and the noisy fraction may be published. The state as a whole may not:
    whoever knows the key can subtract the noise.

    Attributes:
        threshold: C, for the next step.
        noisy_clip_fraction: the noisy fraction of the last batch above its threshold.
        threshold_steps: int32 number of batches so far.
        threshold_key: the words of the key, from `jax.random.key_data`.
        pending_excess: int32 number of examples above the threshold minus the number
            below, in the parts so far of an incomplete batch. It has no noise and is
            not private; between batches it is 0.
    """

    threshold: Float[Array, ""]
    noisy_clip_fraction: Float[Array, ""]
    threshold_steps: Int[Array, ""]
    threshold_key: UInt32[Array, " words"]
    pending_excess: Int[Array, ""]


class PrivateThreshold(NamedTuple):
    """A threshold updated from the norms of each batch: a pair of functions.

    Attributes:
        init: ``init()`` returns the first state, with the first threshold.
        update: ``update(example_norms, state, is_padding_example=None, is_last=True)``
            returns the next state. With ``is_last=False``, which may be traced, the
            examples are a part of a larger batch: they are counted, and nothing else
            changes until its last part. Pass ``is_padding_example`` wherever
            `clipjax.clipped_grad` gets it: without it, rows of padding count as
            examples, and void the guarantee.
    """

    init: Callable[[], QuantileState]
    update: Callable[..., QuantileState]


def quantile_threshold(
    initial: Scalar = 0.1,
    *,
    quantile: Scalar = 0.5,
    learning_rate: Scalar = 0.2,
    count_deviation: Scalar,
    expected_size: Scalar,
    key: jax.Array,
    floor: Scalar = 0.0,
    cap: Scalar = math.inf,
    steps: int | None = None,
) -> PrivateThreshold:
    r"""Track a quantile of the examples' norms, as a threshold that is private.

    .. math:: C_{t+1} = \max\bigl(C_{\min},\, C_t e^{-\eta (\tilde b_t - \gamma)}\bigr)

    with the target quantile γ, and the noisy fraction b̃ of examples whose norm is at
    most C, which is 1 less `clipjax.privacy.noisy_clip_fraction`. The thresholds of
    `clipjax.thresholds` use norms without noise, and void a guarantee.

    **The guarantee.** Each step releases two things about one batch: the noisy sum of
    clipped gradients and the noisy count. With the gradient's noise multiplier from
    `clipjax.privacy.split_noise_multiplier`, both together cost what one Gaussian
    mechanism costs, under the neighboring relation that is given there. All later
    thresholds follow from what was released. For the accountant to see one noise
    multiplier, the gradient is clipped with ``rescale_to_unit_norm=True``: its
    sensitivity is then 1/m under ADD_OR_REMOVE_ONE whatever C is. The noisy update is
    multiplied by C afterwards; Adam needs no multiplication.

    **The order.** A batch is clipped by the threshold of the state *before* its own
    update: clip with ``state.threshold`` first, then call ``update`` with the norms.

    | input | result |
    |---|---|
    | an example of norm NaN or inf | counts as above C: many of them make C grow |
    | a padding example | counts as absent |
    | absent examples, up to m | count as half above and half below |
    | a batch without examples | b̃ = 1/2 and noise |
    | floor = 0 | C stays above 0: the smallest normal number is the floor |
    | more batches than planned | C stays, and nothing more is released |
    | a state that is not this threshold's | ValueError |
    | meshes | as for `clipjax.privacy.noisy_clip_fraction` |

    Args:
        initial: the first threshold, above 0, in the gradient's units. It must not
            come from the private data.
        quantile: γ, between 0 and 1: the fraction of examples to leave unclipped.
        learning_rate: η.
        count_deviation: σ_b, the standard deviation of the noise on the number of
            examples, above 0. Andrew et al. take m/20.
        expected_size: m, the expected number of examples in a batch, fixed.
        key: a key from `jax.random.key`. The key and the number of the step determine
            the noise of the step, which differs from that of
            `clipjax.privacy.gaussian_noise` with the same key. Thresholds of several
            groups need different keys, or their noise is the same.
        floor: the lowest threshold. A floor above 0 is bounded adaptive clipping: C
            does not follow small norms of the majority down, which would clip the few
            examples with large norms ever more.
        cap: the highest threshold.
        steps: the number of batches that the guarantee was computed for; None does not
            count them.

    Returns:
        A `PrivateThreshold`, with a `QuantileState`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, jax, jax.numpy as jnp, optax
        >>> from clipjax import privacy
        >>> m, sigma, sigma_b = 100.0, 1.0, 5.0
        >>> thresholds = privacy.quantile_threshold(
        ...     count_deviation=sigma_b, expected_size=m, key=jax.random.key(1)
        ... )
        >>> noise = privacy.gaussian_noise(
        ...     1 / m, privacy.split_noise_multiplier(sigma, sigma_b), jax.random.key(2)
        ... )
        >>> @jax.jit
        ... def step(w, noise_state, state, x):
        ...     grad = clipjax.clipped_grad(
        ...         lambda w, x: jnp.sum((w - x) ** 2),
        ...         l2_clip_norm=state.threshold,
        ...         rescale_to_unit_norm=True,
        ...         return_grad_norms=True,
        ...         normalize_by=m,
        ...     )
        ...     total, output = grad(w, x)
        ...     noisy, noise_state = noise.update(total, noise_state)
        ...     w = w - 0.5 * state.threshold * noisy
        ...     return w, noise_state, thresholds.update(output.grad_norms, state)
        >>> w, state = jnp.zeros(2), thresholds.init()
        >>> noise_state = noise.init(w)
        >>> x = jax.random.normal(jax.random.key(3), (100, 2)) + 1
        >>> for _ in range(40):
        ...     w, noise_state, state = step(w, noise_state, state, x)
        >>> print(state.threshold_steps, 1.5 < state.threshold < 3.5)  # median: 2.35
        40 True

    References:
        Andrew, Thakkar, McMahan, Ramaswamy, `Differentially private learning with
        adaptive clipping <https://arxiv.org/abs/1905.03871>`_, 2021; with a floor:
        `Bounded adaptive clipping <https://arxiv.org/abs/2506.01396>`_, 2025.
    """
    require_positive_scalar("initial", initial)
    require_positive_scalar("quantile", quantile)
    if not isinstance(quantile, jax.Array) and quantile >= 1:
        raise ValueError(f"quantile must be between 0 and 1, got {quantile!r}")
    require_number("learning_rate", learning_rate, infinite=False)
    require_positive_scalar("count_deviation", count_deviation)
    require_positive_scalar("expected_size", expected_size)
    require_limits(floor, cap)
    _require_within(initial, floor, cap)
    if steps is not None:
        require_steps("steps", steps)
    words, implementation = words_of(key)

    def init() -> QuantileState:
        return QuantileState(
            jnp.array(initial, jnp.float32),
            jnp.full((), 0.5, jnp.float32),
            jnp.zeros((), jnp.int32),
            jnp.array(words, copy=True),
            jnp.zeros((), jnp.int32),
        )

    def update(
        example_norms: jax.Array,
        state: QuantileState,
        is_padding_example: Any = None,
        is_last: Any = True,
    ) -> QuantileState:
        state = checked_state(state, init, True, "quantile_threshold")
        if jnp.asarray(is_last).dtype != bool:
            raise TypeError(f"is_last must be a bool, got {is_last!r}")
        excess = state.pending_excess + clipped_excess(
            example_norms, state.threshold, is_padding_example
        )
        key = jax.random.wrap_key_data(state.threshold_key, impl=implementation)
        key = jax.random.fold_in(key, _PURPOSE)
        key = jax.random.fold_in(key, state.threshold_steps)
        fraction = noisy_fraction(excess, count_deviation, expected_size, key)
        rate = jnp.asarray(learning_rate, jnp.float32)
        # b̃ - γ with b̃ = 1 - fraction
        shrink = 1 - fraction - jnp.asarray(quantile, jnp.float32)
        threshold = within_limits(state.threshold * jnp.exp(-rate * shrink), floor, cap)
        is_released = is_last
        if steps is not None:
            is_released = is_last & (state.threshold_steps < steps)
        count = jnp.asarray(optax.safe_increment(state.threshold_steps))
        return QuantileState(
            jnp.where(is_released, threshold, state.threshold),
            jnp.where(is_released, fraction, state.noisy_clip_fraction),
            jnp.where(is_last, count, state.threshold_steps),
            state.threshold_key,
            jnp.where(is_last, 0, excess),
        )

    return PrivateThreshold(init, update)


def split_noise_multiplier(
    noise_multiplier: float,
    count_deviation: float,
    neighboring_relation: Any = "ADD_OR_REMOVE_ONE",
) -> float:
    r"""Return the gradient's noise multiplier when a noisy count is released as well.

    .. math:: \sigma_\Delta = \bigl( \sigma^{-2} - (b / \sigma_b)^2 \bigr)^{-1/2}

    A step that releases the sum of clipped gradients with the noise multiplier σ_Δ, and
    a count of shifted bits with the deviation σ_b, costs what a Gaussian mechanism with
    the noise multiplier σ costs: with both divided by their noise, one example changes
    the pair by at most 1/σ in the L2 norm. b is the most that one example changes the
    count, 1/2 under ADD_OR_REMOVE_ONE and REPLACE_SPECIAL, and 1 under REPLACE_ONE. σ
    and σ_Δ are in units of the gradient's sensitivity under the same relation.

    Args:
        noise_multiplier: σ, for the accountant; see `clipjax.privacy.noise_multiplier`.
        count_deviation: σ_b, that of `clipjax.privacy.quantile_threshold` or
            `clipjax.privacy.noisy_clip_fraction`. For two counts with the deviations
            a and c, it is ``(a**-2 + c**-2) ** -0.5``.
        neighboring_relation: ``ADD_OR_REMOVE_ONE``, ``REPLACE_SPECIAL`` or
            ``REPLACE_ONE``: a name, or a member of
            ``dp_accounting.NeighboringRelation``.

    Returns:
        σ_Δ, slightly above σ: for `clipjax.privacy.gaussian_noise`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or σ_b is at most b σ: the count alone
            would cost more than σ allows.

    Example:
        >>> from clipjax import privacy
        >>> round(privacy.split_noise_multiplier(1.0, 12.8), 5)
        1.00076

    References:
        Andrew, Thakkar, McMahan, Ramaswamy, `Differentially private learning with
        adaptive clipping <https://arxiv.org/abs/1905.03871>`_, 2021, theorem 1.
    """
    for name, value in (
        ("noise_multiplier", noise_multiplier),
        ("count_deviation", count_deviation),
    ):
        if isinstance(value, jax.Array):
            raise TypeError(f"{name} must be a number, for the accountant, got {value}")
        require_positive_scalar(name, value)
    relation = relation_name(neighboring_relation)
    bit = CHANGES[relation] / 2
    share = bit * noise_multiplier / count_deviation
    if share >= 1:
        raise ValueError(
            f"count_deviation must be above {bit * noise_multiplier:g} with the noise "
            f"multiplier {noise_multiplier!r} and {relation}, got {count_deviation!r}: "
            "the count alone would cost more than the noise multiplier allows"
        )
    return noise_multiplier / math.sqrt((1 - share) * (1 + share))


def within_limits(
    threshold: Float[Array, ""], floor: Scalar, cap: Scalar
) -> Float[Array, ""]:
    """Return a threshold between floor and cap that is positive and finite."""
    info = jnp.finfo(jnp.float32)
    lowest = jnp.maximum(jnp.asarray(floor, jnp.float32), info.tiny)
    highest = jnp.minimum(jnp.asarray(cap, jnp.float32), info.max)
    return jnp.clip(threshold, lowest, highest)


def _require_within(initial: Any, floor: Any, cap: Any) -> None:
    limits = (floor, initial, cap)
    known = [value for value in limits if not isinstance(value, jax.Array)]
    if known != sorted(known):
        raise ValueError(
            f"initial must be from floor={floor!r} to cap={cap!r}, got {initial!r}"
        )
