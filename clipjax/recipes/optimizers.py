"""Clips that use an optimizer's second moment or momentum."""

from __future__ import annotations

import optax

from .. import granularity, norms, rules
from ..core.checks import Scalar, require_fraction, require_number
from ..core.clip import clip_by
from ..core.entries import clip_entries
from ..core.meshes import AxisNames
from ..thresholds.entries import AverageMaximum, PowerAverage, SecondMoment
from ..thresholds.given import ThresholdLike
from ..thresholds.relative import RelativeToMomentum
from ..wrappers.momentum import momentum_of
from ..wrappers.with_optimizer import (
    CompoundClip,
    clip_after,
    clip_before,
    second_moment,
)
from .stand_ins import Surprise
from .tensorwise import gradient_stabilizer


def stable_update_clip(
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-6,
    threshold: ThresholdLike = 1.0,
    *,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> CompoundClip:
    r"""Scale by Adam, and shorten steps of outlying gradients (StableAdamW).

    .. math:: u_l = \frac{\hat m_l}{\sqrt{\hat v_l} + \epsilon} \Big/ \max\Bigl(1,
        \operatorname{RMS}\Bigl(\frac{g_l}{\sqrt{\max(\hat v_l, \epsilon^2)}}\Bigr)
        \Bigr)

    Coordinates: ``leaf × rms × hard × constant``

    Use it in place of ``optax.scale_by_adam``; weight decay and learning rate come
    after it. It measures the raw gradient relative to the second moment that includes
    it, and shortens Adam's step. The moments are not changed.

    | input | result |
    |---|---|
    | ratio ≤ threshold | Adam's step, bit-identical |
    | ratio > threshold, as in a spike | Adam's step times threshold / ratio |
    | zero gradient | Adam's step |
    | NaN or inf | Adam's result, counted; wrap in `clipjax.skip_nonfinite` |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        b1: weight of the past in the first moment.
        b2: weight of the past in the second moment.
        eps: added to the root, and the lower bound of the root in the ratio.
        threshold: the largest ratio that is not shortened.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: threshold is not a threshold.
        ValueError: threshold is negative or NaN.

    Example:
        >>> import clipjax, optax
        >>> optimizer = optax.chain(
        ...     clipjax.stable_update_clip(),
        ...     optax.add_decayed_weights(0.1),
        ...     optax.scale_by_learning_rate(1e-3),
        ... )

    References:
        Wortsman et al., `Stable and low-precision training for large-scale
        vision-language models <https://arxiv.org/abs/2304.13013>`_, 2023, algorithm 2
    """
    require_fraction("b1", b1)
    require_fraction("b2", b2)
    require_number("eps", eps, infinite=False)
    clip = clip_by(
        threshold,
        granularity=granularity.leaf(),
        norm=norms.rms,
        axis_name=axis_name,
        name=name,
        stand_in=Surprise(b2, eps),
    )
    adam = optax.scale_by_adam(b1, b2, eps)
    return clip_after(adam, clip, lambda g, adam: {"gradient": g, "adam": adam})


def clip_by_momentum(
    ratio: Scalar,
    max_norm: Scalar = 1.0,
    inner: optax.GradientTransformation | None = None,
    *,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> CompoundClip:
    r"""Clip each leaf to a multiple of the norm of its momentum (OLMo).

    .. math:: u_l = g_l
        \min\Bigl(1, \frac{\rho \lVert m_l \rVert_2}{\lVert g_l \rVert_2}\Bigr)

    Coordinates: ``leaf × l2 × hard × relative-to-momentum``

    m is the first moment of the optimizer that follows, before this step and without
    bias correction. It averages clipped gradients, so that a spike of any size raises
    the next threshold by a factor of at most :math:`\beta_1 + (1 - \beta_1) \rho`, 1.9
    for 0.9 and ρ = 10. For the same reason a small ratio is a trap. Where gradients are
    mostly noise, the norm of m is :math:`\sqrt{(1 - \beta_1) / (1 + \beta_1)}` times
    that of a gradient, 0.23 times for 0.9. A ratio below the inverse, 4.4, then
    shortens the gradients, which shortens m and so the next threshold, until all of
    them vanish. After its first step from zero, m is :math:`1 - \beta_1` times one
    gradient.

    | input | result |
    |---|---|
    | a leaf without momentum, as in the first step | clipped to max_norm |
    | a spike in one leaf | that leaf is shortened, all others bit-identical |
    | NaN or inf | see `clipjax.guards`; wrap in `clipjax.skip_nonfinite` |
    | norms of m below 1e-19 or above 1e19 | as 0 or inf |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        ratio: ρ, the largest ratio of the norms of gradient and momentum, at least 0.
        max_norm: the threshold of a leaf without momentum, in the gradient's units.
        inner: an optimizer that keeps a momentum under the name ``mu`` or ``trace``;
            None for ``optax.scale_by_adam()``.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is negative or NaN, or inner has no momentum.

    Example:
        >>> import clipjax, optax
        >>> optimizer = clipjax.clip_by_momentum(10.0, inner=optax.adamw(1e-3))

    References:
        `OLMo <https://github.com/allenai/OLMo/blob/main/olmo/optim.py>`_, the option
        ``max_grad_norm_ratio``, which adds 1e-6 to the gradient's norm
    """
    clip = clip_by(
        RelativeToMomentum(ratio, max_norm),
        granularity=granularity.leaf(),
        axis_name=axis_name,
        name=name,
    )
    return clip_before(
        optax.scale_by_adam() if inner is None else inner,
        clip,
        lambda _, state: {"momentum": momentum_of(state)},
    )


def spam_clip(
    inner: optax.GradientTransformation | None = None,
    theta: Scalar = 5000.0,
    *,
    warmup_steps: Scalar | None = None,
    period: Scalar | None = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> CompoundClip:
    r"""Clip every entry by the second moment of the optimizer that follows (SPAM).

    .. math::
        u_i = \operatorname{sign}(g_i) \min(\lvert g_i \rvert, \sqrt{\theta\, v_i})

    Coordinates: ``entry × hard × second-moment``

    v is the moment before this step as the optimizer stores it, without bias
    correction. For SPAM's resets wrap Adam in `clipjax.periodic_reset` first, and pass
    the same period here, so that the clip waits until v is an average again.

    | input | result |
    |---|---|
    | the first ``warmup_steps`` steps, also after a reset | not clipped |
    | v = 0 | not clipped; clipping to zero would freeze the entry for good |
    | a spike in one entry | √(θ·v) there, all other entries bit-identical |
    | NaN or inf | see `clipjax.guards` |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        inner: an optimizer that keeps a second moment under the name ``nu``; None for
            ``optax.scale_by_adam()``.
        theta: θ, the largest ratio of a square to its average.
        warmup_steps: the first step that is clipped, counted from 1; None for 20.
        period: steps from one reset of the optimizer to the next; None for no resets.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or inner has no second moment.

    Example:
        >>> import clipjax, optax
        >>> adam = clipjax.periodic_reset(optax.adam(1e-3), 500)
        >>> optimizer = clipjax.spam_clip(adam, period=500)

    References:
        Huang et al., `SPAM <https://arxiv.org/abs/2501.06842>`_, 2025, algorithm 1
    """
    source = SecondMoment(theta, 20 if warmup_steps is None else warmup_steps, period)
    clip = clip_entries(source, axis_name=axis_name, name=name)
    return clip_before(
        optax.scale_by_adam() if inner is None else inner,
        clip,
        lambda _, state: {"second_moment": second_moment(state)},
    )


def stable_spam_clip(
    gamma1: Scalar = 0.7,
    gamma2: Scalar = 0.9,
    gamma3: Scalar = 0.999,
    *,
    eps: Scalar | None = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> optax.GradientTransformationExtraArgs:
    r"""Clip outlying entries of each tensor, then fix its norm (Stable-SPAM).

    .. math::
        g'_i = g_i \frac{T_l}{\max_j \lvert g_j \rvert}
        \text{ where } \lvert g_i \rvert > T_l, \qquad
        T_l = \text{average of } \max_j \lvert g_j \rvert

    Coordinates: ``entry × hard × average-maximum``

    This is the first of two clips; `gradient_stabilizer` is the second. Each average
    counts its own steps. The reference has one counter for all, and at a reset sets it
    back but keeps the averages, so that T is then hundreds of times too large. The
    metrics of the two clips have the prefixes ``name`` and ``name_norm``. For the
    resets wrap Adam in `clipjax.periodic_reset`.

    | input | result |
    |---|---|
    | no entry above T | only the norm changes |
    | the first step | nothing is above T |
    | outliers | keep their proportions; the largest ends at T |
    | zero gradient of a tensor | zero; its averages stay |
    | NaN or inf | see `clipjax.guards`; all averages stay |

    Args:
        gamma1: weight of the past in the average norm.
        gamma2: weight of the past in the average square of the norm.
        gamma3: weight of the past in the average maximum.
        eps: added to the root of the average square; None for 1e-8.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clips' metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, optax
        >>> adam = clipjax.periodic_reset(optax.adam(1e-3), 1000)
        >>> optimizer = optax.chain(clipjax.stable_spam_clip(), adam)

    References:
        `Stable-SPAM <https://arxiv.org/abs/2502.17055v2>`_, 2025, algorithm 1
    """
    source = AverageMaximum(gamma3)
    return optax.chain(
        clip_entries(source, axis_name=axis_name, name=name),
        gradient_stabilizer(
            gamma1, gamma2, eps=eps, axis_name=axis_name, name=f"{name}_norm"
        ),
    )


def acclip(
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    alpha: Scalar = 1.0,
    eps: float | None = None,
    *,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> CompoundClip:
    r"""Clip the momentum, entry by entry, to the gradient's average size (ACClip).

    .. math:: u = m \min\Bigl(1, \frac{\tau}{\lvert m \rvert + \epsilon}\Bigr), \qquad
        m = \text{average of } g, \quad
        \tau^\alpha = \text{average of } \lvert g \rvert^\alpha

    Coordinates: ``entry × hard(epsilon=1e-05) × power-average``

    The update is the clipped momentum; only a learning rate has to follow. As
    published, both averages start at zero without bias correction. (The public code is
    an earlier version, which also divides by the root of a second moment.)

    | input | result |
    |---|---|
    | zero gradients | zero |
    | a spike in one entry | the momentum is cut at τ there |
    | NaN or inf | see `clipjax.guards`; momentum and τ stay |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        b1: weight of the past in the momentum, from 0 to 1.
        b2: weight of the past in τ, from 0 to 1.
        alpha: α, the power that is averaged, above 0.
        eps: added to \|m\|; None for 1e-5.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, optax
        >>> optimizer = optax.chain(clipjax.acclip(), optax.scale_by_learning_rate(0.1))

    References:
        Zhang, Karimireddy, Veit, Kim, Reddi, Kumar, Sra, `Why are adaptive methods good
        for attention models? <https://arxiv.org/abs/1912.03194>`_, 2020, algorithm 2
    """
    require_fraction("b1", b1)
    eps = 1e-5 if eps is None else eps
    require_number("eps", eps, infinite=False)
    clip = clip_entries(
        PowerAverage(b2, alpha),
        rule=rules.Hard(epsilon=eps),
        axis_name=axis_name,
        name=name,
    )
    momentum = optax.ema(b1, debias=False)
    return clip_after(momentum, clip, lambda g, _: {"gradient": g}, holds=True)
