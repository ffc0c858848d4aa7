"""Clips that learn one threshold for each tensor, or for each group of tensors."""

from __future__ import annotations

import math
import re
from typing import Any

import optax

from .. import granularity, rules
from ..core.checks import Scalar, require_fraction, require_number
from ..core.clip import Clip, clip_by
from ..core.meshes import AxisNames
from ..granularity import Labels, Stacked
from ..thresholds.averages import moment_ratio
from ..thresholds.tensorwise import AdaptiveBand, AdaptiveTensorwise, MinimumOf


def adagc(
    lambda_abs: Scalar = 1.0,
    lambda_rel: Scalar = 1.05,
    beta: Scalar = 0.98,
    warmup_steps: Scalar = 100,
    *,
    minimum_of: MinimumOf = "raw",
    floor: Scalar | None = None,
    stacked: Stacked = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip each tensor to a multiple of its average clipped norm (AdaGC).

    .. math:: u_l = g_l \min\Bigl(1, \lambda_\text{rel}
        \frac{\gamma_l}{\lVert g_l \rVert}\Bigr), \qquad
        \gamma_l \leftarrow \beta \gamma_l + (1 - \beta) \lVert u_l \rVert

    Coordinates: ``leaf × l2 × hard × adaptive-tensorwise``

    During the warm-up the whole tree is clipped to λ_abs, and γ is a tensor's smallest
    norm so far. After it, γ grows by a factor of at most
    :math:`\beta + (1 - \beta) \lambda_\text{rel}` per step, 1.001 by default: gradients
    that grow faster are throttled, by design.

    | input | result |
    |---|---|
    | norm ≤ λ_rel · γ | bit-identical |
    | zero gradient of a tensor | zero; its γ stays, so that it is never frozen |
    | a tensor without a norm yet | clipped with the whole tree |
    | a spike in the warm-up | clipped to λ_abs; does not change the minimum |
    | NaN or inf in a tensor | see `clipjax.guards`; every γ stays |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        lambda_abs: the global norm allowed in the warm-up, in the gradient's units.
        lambda_rel: the largest ratio of a norm to γ.
        beta: weight of the past in γ, from 0 to 1.
        warmup_steps: the number of steps of the warm-up.
        minimum_of: the norms whose minimum is γ in the warm-up: ``raw``, as in the
            authors' code, or ``clipped``, as in some other implementations.
        floor: the least γ, in the gradient's units; None for 0.
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
        >>> clip = clipjax.adagc(warmup_steps=1)
        >>> state = clip.init(jnp.zeros(1))
        >>> for norm in (1.0, 100.0):
        ...     updates, state = clip.update(jnp.array([norm]), state)
        >>> print(updates)
        [1.05]

    References:
        Wang et al., `AdaGC <https://arxiv.org/abs/2502.11034>`_, 2025, algorithm 1
    """
    least = 0.0 if floor is None else floor
    source = AdaptiveTensorwise(
        lambda_abs, lambda_rel, beta, warmup_steps, minimum_of, least
    )
    leaf = granularity.leaf(stacked)
    return clip_by(source, granularity=leaf, axis_name=axis_name, name=name)


def by_function(path: str, leaf: Any) -> str:
    """Return a leaf's label: its path, with ``*`` for the numbers of layers."""
    del leaf
    return re.sub(r"\d+", "*", path)


def aggc(
    labels: Labels | None = None,
    alpha_low: optax.ScalarOrSchedule = 1.0,
    alpha_high: optax.ScalarOrSchedule = 1.0,
    beta: Scalar = 0.98,
    *,
    raises: bool = False,
    min_norm: Scalar | None = None,
    max_up_scale: Scalar | None = None,
    max_down_scale: Scalar | None = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip the norm of each group of tensors to a band around its average (AGGC).

    .. math:: \ell_k = \operatorname{clip}(n_k, \alpha_\text{low} S_k,
        \alpha_\text{high} S_k), \qquad S_k \leftarrow \beta S_k + (1 - \beta)\, \ell_k

    Coordinates: ``group × l2 × hard × adaptive-band``

    A group holds the tensors of one function in all layers, such as all query
    projections. With ``raises``, norms below the band are lengthened, too. Where α_high
    is below 1 the band lies below the average, so that nearly every step is clipped,
    and S falls to zero unless ``max_down_scale`` stops it, as in the authors' runs; it
    then acts as a lower learning rate. In the reference S starts at zero, which makes
    its second step very short; here S starts at the first norm.

    | input | result |
    |---|---|
    | the first step | bit-identical |
    | norm in the band, or below and not ``raises`` | bit-identical |
    | zero gradient of a group | zero; its average stays |
    | NaN or inf in a group | see `clipjax.guards`; every average stays |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        labels: a prefix tree of strings, or a function of (path, leaf) to a string;
            None for the path without its numbers. The default is not a function, which
            ``optax.inject_hyperparams`` would treat as a schedule.
        alpha_low: the band's lower end as a multiple of S, a number or a schedule.
        alpha_high: the band's upper end.
        beta: weight of the past in S, from 0 to 1.
        raises: whether to lengthen norms below the band.
        min_norm: the least lower end, in the gradient's units; None for 0.
        max_up_scale: the largest factor to lengthen by, at least 1; None for no limit.
        max_down_scale: the least factor to shorten by, from 0 to 1; None for no limit.
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
        >>> alpha = optax.linear_schedule(0.6, 0.7, 300, transition_begin=400)
        >>> clip = clipjax.aggc(alpha_high=alpha, beta=0.95, max_down_scale=0.9)

    References:
        `AGGC <https://arxiv.org/abs/2601.11864>`_, Findings of ACL 2026
    """
    source = AdaptiveBand(
        *(alpha_low, alpha_high, beta, raises),
        0.0 if min_norm is None else min_norm,
        math.inf if max_up_scale is None else max_up_scale,
        0.0 if max_down_scale is None else max_down_scale,
    )
    rule = rules.normalise if raises else rules.hard
    group = granularity.group(by_function if labels is None else labels)
    return clip_by(source, granularity=group, rule=rule, axis_name=axis_name, name=name)


def gradient_stabilizer(
    gamma1: Scalar = 0.7,
    gamma2: Scalar = 0.9,
    *,
    eps: Scalar | None = None,
    stacked: Stacked = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Scale each tensor to a norm near one, from the moments of its norms.

    .. math:: u = \frac{g}{\lVert g \rVert} \frac{\hat m}{\sqrt{\hat v} + \epsilon},
        \qquad \hat m, \hat v = \text{averages of } \lVert g \rVert
        \text{ and } \lVert g \rVert^2

    Coordinates: ``leaf × l2 × normalise × moment-ratio``

    Both averages include the current norm and have a bias correction. Whatever the
    scale of the gradient, the result has a norm near 1: put a scale-invariant optimizer
    such as Adam after it, or tune the learning rate again.

    | input | result |
    |---|---|
    | the first step | norm 1 |
    | a spike of any size | norm near :math:`(1 - \gamma_1) / \sqrt{1 - \gamma_2}` |
    | zero gradient of a tensor | zero; its averages stay |
    | NaN or inf in a tensor | see `clipjax.guards`; all averages stay |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        gamma1: weight of the past in the average norm, from 0 to 1.
        gamma2: weight of the past in the average square, from 0 to 1.
        eps: added to the root; None for 1e-8.
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
        >>> clip = clipjax.gradient_stabilizer()
        >>> updates, _ = clip.update(jnp.array([30.0, 40.0]), clip.init(jnp.zeros(2)))
        >>> print(jnp.round(updates, 3))
        [0.6 0.8]

    References:
        `GradientStabilizer: fix the norm, not the gradient
        <https://arxiv.org/abs/2502.17055v3>`_, 2026; as AdaGN in Stable-SPAM before
    """
    require_fraction("gamma1", gamma1)
    require_fraction("gamma2", gamma2)
    eps = 1e-8 if eps is None else eps
    require_number("eps", eps, infinite=False)
    source = moment_ratio(gamma1, gamma2, epsilon=eps)
    return clip_by(
        source,
        granularity=granularity.leaf(stacked),
        rule=rules.normalise,
        axis_name=axis_name,
        name=name,
    )
