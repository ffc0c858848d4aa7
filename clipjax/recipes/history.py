"""Clips whose threshold is learned from the norms so far."""

from __future__ import annotations

import math
from typing import Literal

import jax

from .. import granularity, thresholds
from ..core.checks import (
    Scalar,
    require_bool,
    require_choice,
    require_fraction,
    require_number,
    require_steps,
)
from ..core.clip import Clip, clip_by
from ..core.meshes import AxisNames
from ..granularity import Stacked
from ..thresholds.outliers import Mode


def autoclip(
    percentile: Scalar = 10.0,
    window: int | None = None,
    *,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip to a percentile of the global norms so far (AutoClip).

    .. math:: u = g \min(1, c_t / n_t), \qquad c_t = Q_p(n_1, \dots, n_t)

    Coordinates: ``whole × l2 × hard × quantile``

    The percentile includes the current norm, so that the first step is never clipped.
    At the default percentile about nine steps in ten are clipped, which is closer to
    normalization than to a guard against spikes. The paper stores all norms, clipjax
    the latest ``window``.

    | input | result |
    |---|---|
    | norm ≤ percentile | bit-identical |
    | one spike among the norms | hardly moves the percentile |
    | NaN or inf | see `clipjax.guards`; does not enter the history |
    | zero gradient | zero; does not enter the history |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        percentile: from 0 to 100.
        window: how many of the latest norms to keep; None for 1000.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.autoclip(percentile=50)
        >>> state = clip.init(jnp.zeros(1))
        >>> for norm in (1.0, 3.0):
        ...     updates, state = clip.update(jnp.array([norm]), state)
        >>> print(updates)
        [2.]

    References:
        Seetharaman, Wichern, Pardo, Le Roux, `AutoClip
        <https://arxiv.org/abs/2007.14469>`_, 2020
    """
    require_number("percentile", percentile, infinite=False)
    if not isinstance(percentile, jax.Array) and percentile > 100:
        raise ValueError(
            f"percentile must be a number from 0 to 100, got {percentile!r}"
        )
    size = 1000 if window is None else window
    source = thresholds.quantile(percentile / 100, size, include_current=True)
    return clip_by(source, axis_name=axis_name, name=name)


def quantile_clip(
    quantile: Scalar = 0.95,
    max_norm: Scalar | None = None,
    window: int | None = None,
    *,
    minimum_history: Scalar | None = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip to a quantile of the latest global norms, and to a cap.

    .. math:: u = g \min(1, c_t / n_t), \qquad
        c_t = \min(Q_q(n_{t-W}, \dots, n_{t-1}), c_\text{max})

    Coordinates: ``whole × l2 × hard × quantile``

    Large training code bases use this capped percentile. Until the window is full, only
    the cap clips. With ``minimum_history=1``, ``window=100`` and a quantile of 0.1 to
    0.2 it is quantile-clipped SGD, which is robust to heavy tails and corrupted
    samples.

    | input | result |
    |---|---|
    | norm ≤ threshold | bit-identical |
    | less history than minimum_history | clipped to max_norm only |
    | one spike among the norms | hardly moves the quantile |
    | NaN or inf | see `clipjax.guards`; does not enter the history |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        quantile: from 0 to 1.
        max_norm: the largest threshold, in the gradient's units; None for no cap.
        window: how many of the latest norms to keep; None for 1000.
        minimum_history: how many norms to observe before the quantile clips; None for a
            full window.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.quantile_clip(0.5, max_norm=5.0, minimum_history=1)
        >>> state = clip.init(jnp.zeros(1))
        >>> for norm in (1.0, 3.0, 100.0):
        ...     updates, state = clip.update(jnp.array([norm]), state)
        >>> print(updates)  # the median of 1 and 3
        [2.]

    References:
        Merad, Gaïffas, `Robust stochastic optimization via gradient quantile clipping
        <https://arxiv.org/abs/2309.17316>`_, 2024
    """
    require_fraction("quantile", quantile)
    size = 1000 if window is None else window
    source = thresholds.quantile(
        quantile,
        size,
        minimum_history=size if minimum_history is None else minimum_history,
        cap=_cap("max_norm", max_norm),
    )
    return clip_by(source, axis_name=axis_name, name=name)


def zclip(
    alpha: Scalar = 0.97,
    z_thresh: Scalar = 2.5,
    max_grad_norm: Scalar = 1.0,
    warmup_steps: Scalar = 25,
    *,
    mode: Mode = "zscore",
    clip_option: Literal["adaptive_scaling", "mean"] = "adaptive_scaling",
    clip_factor: Scalar | None = None,
    skip_update_on_spike: bool = False,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip global norms that are outliers by their z-score (ZClip).

    .. math:: z = \frac{n - \mu}{\sigma + 10^{-6}}, \qquad
        c = \mu + z_\text{thresh}^2 \frac{\sigma}{z} \text{ if } z > z_\text{thresh}

    Coordinates: ``whole × l2 × hard × zscore``

    Mean and variance are those of the first norms, then exponential averages, to which
    an outlier contributes its clipped norm. As published, the clipped norm falls from
    :math:`\mu + z\sigma` towards μ as the outlier grows; with ``percentile`` it is
    always :math:`\mu + z\sigma`. The reference's σ may be zero, so that a constant norm
    plus rounding is an outlier; here σ is at least a thousandth of μ.

    | input | result |
    |---|---|
    | no outlier, norm ≤ max_grad_norm | bit-identical |
    | an outlier | shortened as above, and to max_grad_norm |
    | in the warm-up | clipped to max_grad_norm only |
    | NaN or inf | see `clipjax.guards`; the statistics stay as they are |
    | zero gradient | zero; the statistics stay as they are |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        alpha: weight of the past in the averages, from 0 to 1.
        z_thresh: the z-score above which a norm is an outlier.
        max_grad_norm: a cap on all norms, in the gradient's units; None for no cap.
        warmup_steps: how many norms to observe before outliers are clipped.
        mode: ``zscore``; ``percentile``: to μ + z_thresh·σ; or ``mean``: to μ.
        clip_option: with ``zscore``, ``adaptive_scaling`` as above, or ``mean``: to μ.
        clip_factor: a multiplier of an outlier's length; None for 1.
        skip_update_on_spike: whether to leave outliers out of the statistics.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.zclip(max_grad_norm=None, warmup_steps=2)
        >>> state = clip.init(jnp.zeros(1))
        >>> for norm in (1.0, 3.0, 100.0):  # a mean of 2, a standard deviation of 1
        ...     updates, state = clip.update(jnp.array([norm]), state)
        >>> print(f"{updates[0]:.3f}")  # 2 + 2.5² · 1 / 98
        2.064

    References:
        Kumar, Owen, Roy Chowdhury, Güra, `ZClip <https://arxiv.org/abs/2504.02507>`_,
        2025, equations 4 to 8
    """
    require_number("z_thresh", z_thresh, infinite=False)
    require_fraction("alpha", alpha)
    require_number("warmup_steps", warmup_steps, lowest=1, infinite=False)
    require_choice("clip_option", clip_option, ("adaptive_scaling", "mean"))
    require_bool("skip_update_on_spike", skip_update_on_spike)
    if clip_factor is not None:
        require_number("clip_factor", clip_factor, infinite=False)
    source = thresholds.zscore(
        z_thresh,
        decay=alpha,
        warmup=warmup_steps,
        mode="mean" if (mode, clip_option) == ("zscore", "mean") else mode,
        factor=1.0 if clip_factor is None else clip_factor,
        remember="inliers" if skip_update_on_spike else "target",
        cap=_cap("max_grad_norm", max_grad_norm),
    )
    return clip_by(source, axis_name=axis_name, name=name)


def clip_update_by_history(
    window: int | None = None,
    sigma: Scalar = 3.0,
    *,
    minimum_history: Scalar | None = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip to the mean of the latest global norms plus some standard deviations.

    .. math:: u = g \min\Bigl(1, \frac{\mu_W + k\,\sigma_W}{n}\Bigr)

    Coordinates: ``whole × l2 × hard × mean-plus-std``

    Put it after the optimizer, where it also bounds updates that the momentum drives.
    The history stores raw norms, so that the threshold cannot collapse; a spike
    therefore raises it until the spike leaves the window.

    | input | result |
    |---|---|
    | norm ≤ threshold | bit-identical |
    | less history than minimum_history | bit-identical |
    | a constant norm | may vary by k thousandths |
    | NaN or inf | see `clipjax.guards`; does not enter the history |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        window: how many of the latest norms to keep; None for 128.
        sigma: k, the number of standard deviations.
        minimum_history: how many norms to observe before the first clip; None for half
            the window.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, optax
        >>> optimizer = optax.chain(optax.adam(1e-3), clipjax.clip_update_by_history())

    References:
        ``clip_update_norm`` of Levanter
    """
    require_number("sigma", sigma, infinite=False)
    size = 128 if window is None else window
    require_steps("window", size)
    history = size // 2 if minimum_history is None else minimum_history
    source = thresholds.mean_plus_std(size, sigma, minimum_history=history)
    return clip_by(source, axis_name=axis_name, name=name)


def norm_growth_limiter(
    growth: Scalar = 1.01,
    *,
    slowest_decay: Scalar | None = None,
    floor: Scalar | None = None,
    stacked: Stacked = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Limit the ratio by which the norm of each leaf grows from one step to the next.

    .. math:: u_t = g_t \min\Bigl(1, \gamma \frac{r_{t-1}}{\lVert g_t \rVert}\Bigr),
        \qquad r_t = \max(\lVert u_t \rVert, \delta\, r_{t-1})

    Coordinates: ``leaf × l2 × hard × relative-to-previous``

    As published, r is the norm of the last output, so that a single tiny gradient stops
    a leaf for hundreds of steps. Here r falls by a ratio of at least δ per step.

    | input | result |
    |---|---|
    | the first step | bit-identical |
    | norm ≤ γ · r | bit-identical |
    | zero gradient | zero; r stays |
    | NaN or inf in a leaf | see `clipjax.guards`; every r stays |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        growth: γ, at least 1.
        slowest_decay: δ, from 0 (as published) to 1; None for 0.5.
        floor: the least threshold, in the gradient's units; None for 0.
        stacked: leading axes that stack separate layers; see
            `clipjax.granularity.leaf`.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.norm_growth_limiter(1.5)
        >>> state = clip.init(jnp.zeros(1))
        >>> for norm in (1.0, 100.0):
        ...     updates, state = clip.update(jnp.array([norm]), state)
        >>> print(updates)
        [1.5]

    References:
        Chen et al., `Fira <https://arxiv.org/abs/2410.01623>`_, 2024, equation 6; Zhu
        et al., `APOLLO <https://arxiv.org/abs/2412.05270>`_, 2024
    """
    source = thresholds.relative_to_previous(
        growth,
        slowest_decay=0.5 if slowest_decay is None else slowest_decay,
        floor=0.0 if floor is None else floor,
    )
    leaf = granularity.leaf(stacked)
    return clip_by(source, granularity=leaf, axis_name=axis_name, name=name)


def _cap(name: str, value: Scalar | None) -> Scalar:
    """Return a cap, inf for None; errors use the name of the recipe's argument."""
    value = math.inf if value is None else value
    require_number(name, value)
    return value
