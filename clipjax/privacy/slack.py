"""SlaClip: release a gradient and the slack of its clip by one Gaussian mechanism."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.checks import Scalar, require_integer, require_limits, require_number
from ..core.trees import Leaves
from ..per_example.direct import widened
from ..per_example.rounding import root
from .adaptive import within_limits
from .metrics import require_positive_scalar


class WithSlack(NamedTuple):
    """A gradient, and the slack between its norm and the threshold.

    Attributes:
        gradient: the clipped gradient of an example, or a sum of those.
        slack: its slack, of shape ``[K]``, or the sum of those.
    """

    gradient: Any
    slack: Float[Array, " slots"]


def with_slack(threshold: Scalar, slots: int) -> Callable[[Any], WithSlack]:
    r"""Return a transform for `clipjax.clipped_grad` that adds the slack to a gradient.

    .. math:: g \mapsto \bigl[\operatorname{clip}_C(g);\, s\bigr], \qquad
        s_k = \sqrt K \operatorname{clip}\bigl(C - n - k C / K,\, 0,\, C / K\bigr),
        \quad k = 0, \dots, K - 1

    with the norm n. The slack C - n fills slots of size C/K one after another: a norm
    just below C fills a part of the first slot, and a norm near 0 fills all of them.
    Summed over the batch, slot k is C/√K times the number of examples with norms below
    C - (k + 1) C/K, plus fractions for norms between that and C - kC/K. The noisy sum
    is an estimate of the norms' distribution function.

    **The guarantee.** The pair is no longer than C, so that both parts are released as
    one Gaussian mechanism with the sensitivity of the gradient alone, under every
    neighboring relation. Proof: let n ≤ C, and let the slack fill j slots and the
    fraction f of the next, (j + f) C / K = C - n. Then

    .. math:: \textstyle\sum_k s_k^2 = \frac{C^2}{K} (j + f^2)
        \le \frac{C^2}{K} (j + f) = C (C - n),
        \qquad n^2 + C (C - n) = C^2 - n (C - n) \le C^2.

    The bound is attained at n = 0 and at n ≥ C. `clipjax.clipped_grad` does not rely on
    the proof: it measures the pair and clips it by C again, with its bounds on
    rounding, so that the sensitivity it reports holds for any threshold that is passed
    here, and with any rule; the formula of the slack holds with the default rule. The
    transform needs every example's gradient. Slack is not computed from reported norms,
    which are no bounds: where terms cancel, those of ``method="ghost"`` can be too
    small.

    Args:
        threshold: C, above 0 and finite, the ``l2_clip_norm`` of `clipped_grad`: a
            number, or an array that depends on noisy values only.
        slots: K. The noise of an estimated fraction is σ √K / m, with the noise
            multiplier σ and the expected batch size m. Zou et al. take the largest K up
            to ``(m / (5.152 * σ)) ** (2 / 3)``: 13 for m = 256 and σ = 1.

    Returns:
        A function that maps the gradient of one example to a `WithSlack`, in float32 or
        wider, for ``pre_clipping_transform``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, jax, jax.numpy as jnp
        >>> from clipjax import privacy
        >>> grad = clipjax.clipped_grad(
        ...     lambda w, x: jnp.sum(x @ w),
        ...     l2_clip_norm=2.0,
        ...     pre_clipping_transform=privacy.with_slack(2.0, slots=4),
        ...     normalize_by=3.0,
        ... )
        >>> x = jnp.array([[3.0, 4.0], [0.3, 0.4], [0.0, 1.75]])
        >>> total = grad(jnp.zeros(2), x)
        >>> noise = privacy.gaussian_noise(grad.sensitivity(), 1.0, jax.random.key(0))
        >>> noisy, state = noise.update(total, noise.init(total))
        >>> print(noisy.gradient.shape, noisy.slack.shape)
        (2,) (4,)
        >>> print(jnp.round(total.slack * 3, 2))  # not private
        [1.5 1.  1.  0. ]

    References:
        Zou, Wang, Zhu, Li, Dong, Sassone, Wu, `SlaClip: Gradient norm slacks can be
        indicator for adaptive clipping in DP-SGD
        <https://icml.cc/virtual/2026/poster/66390>`_, ICML 2026.
    """
    require_positive_scalar("threshold", threshold)
    require_integer("slots", slots, 1)

    def transform(gradient: Any) -> WithSlack:
        leaves = Leaves.of(gradient)
        arrays = [widened(leaf) for leaf in leaves.arrays]
        limit = jnp.asarray(threshold, leaves.dtype)
        squares = [jnp.sum(jnp.square(jnp.abs(leaf))) for leaf in arrays]
        norm = root(
            sum((s.astype(limit.dtype) for s in squares), jnp.zeros_like(limit))
        )
        is_long = norm > limit
        factor = jnp.where(is_long, limit / jnp.where(is_long, norm, 1), 1)
        clipped = [factor.astype(leaf.real.dtype) * leaf for leaf in arrays]
        slot = limit / slots
        starts = slot * jnp.arange(slots, dtype=limit.dtype)
        slack = math.sqrt(slots) * jnp.clip(limit - norm - starts, 0, slot)
        return WithSlack(leaves.tree(clipped), slack)

    return transform


def slack_threshold(
    threshold: Scalar,
    noisy_slack: Float[Array, " slots"],
    *,
    learning_rate: Scalar = 0.5,
    floor: Scalar = 0.1,
    cap: Scalar = 50.0,
) -> Float[Array, ""]:
    r"""Return the next threshold of SlaClip from the noisy slack of a batch.

    .. math::
        r = \operatorname{clip}(\hat s_K / C, 0, 1), \qquad
        \gamma = 1 - (1 - r) / 2, \qquad
        C' = \operatorname{clip}\bigl(C e^{\eta (\gamma - \hat s_1)},
        C_{\min}, C_{\max}\bigr)

    with the estimated fractions ŝ₁ of norms below C, and ŝ_K of norms near 0: the noisy
    slack times √K. The target is that at least half of the norms are below C; more, if
    many are near 0. The function uses released values only, so that it costs no
    privacy, under any neighboring relation; without noise on the slack, there is no
    guarantee.

    The formulas are those of the published code. It divides ŝ_K by C although ŝ_K is a
    pure number, so that the fixed point depends on the unit of the gradient.

    Args:
        threshold: C of this batch, above 0.
        noisy_slack: the noisy sum of slack, divided by the fixed expected batch size
            and by C: ``rescale_to_unit_norm=True`` and ``normalize_by`` of
            `clipjax.clipped_grad` do both, and the noise then does not depend on C.
        learning_rate: η.
        floor: C_min.
        cap: C_max.

    Returns:
        C', for the next batch, a float32 scalar.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, jax, jax.numpy as jnp
        >>> from clipjax import privacy
        >>> m = 500.0
        >>> noise = privacy.gaussian_noise(1 / m, 1.0, jax.random.key(0))
        >>> @jax.jit
        ... def step(w, state, threshold, x):
        ...     grad = clipjax.clipped_grad(
        ...         lambda w, x: jnp.sum((w - x) ** 2),
        ...         l2_clip_norm=threshold,
        ...         rescale_to_unit_norm=True,
        ...         pre_clipping_transform=privacy.with_slack(threshold, slots=8),
        ...         normalize_by=m,
        ...     )
        ...     noisy, state = noise.update(grad(w, x), state)
        ...     w = w - 0.5 * threshold * noisy.gradient
        ...     return w, state, privacy.slack_threshold(threshold, noisy.slack)
        >>> w, threshold = jnp.zeros(2), jnp.float32(0.1)
        >>> state = noise.init(w)
        >>> x = jax.random.normal(jax.random.key(1), (500, 2)) + 1
        >>> for _ in range(40):
        ...     w, state, threshold = step(w, state, threshold, x)
        >>> print(2.0 < threshold < 4.0)
        True

    References:
        Zou, Wang, Zhu, Li, Dong, Sassone, Wu, `SlaClip: Gradient norm slacks can be
        indicator for adaptive clipping in DP-SGD
        <https://icml.cc/virtual/2026/poster/66390>`_, ICML 2026, equations 28 to 30,
        as in the `authors' code <https://github.com/meta-pytorch/opacus/pull/824>`_.
    """
    require_positive_scalar("threshold", threshold)
    require_number("learning_rate", learning_rate, infinite=False)
    require_limits(floor, cap)
    slack = jnp.asarray(noisy_slack)
    if slack.ndim != 1 or not slack.size:
        raise ValueError(
            f"noisy_slack must be of shape [K], with K ≥ 1, got shape {slack.shape}"
        )
    fractions = math.sqrt(slack.size) * slack.astype(jnp.float32)
    limit = jnp.asarray(threshold, jnp.float32)
    near_zero = jnp.clip(fractions[-1] / limit, 0, 1)
    target = (1 + near_zero) / 2
    rate = jnp.asarray(learning_rate, jnp.float32)
    return within_limits(limit * jnp.exp(rate * (target - fractions[0])), floor, cap)
