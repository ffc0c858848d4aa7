"""Clips that rescale every gradient: soft clips and normalization."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import rules
from ..core.checks import Scalar, require_number
from ..core.clip import Clip, clip_by
from ..core.dtypes import narrow, widen
from ..core.meshes import AxisNames
from ..core.trees import Leaves
from ..thresholds.given import ThresholdLike, as_threshold


def soft_clip_by_global_norm(
    max_norm: ThresholdLike, *, axis_name: AxisNames = None, name: str = "clip"
) -> Clip:
    r"""Shorten the whole tree smoothly, below a maximum L2 norm.

    .. math:: u = g \frac{c}{c + \lVert g \rVert_2}

    Coordinates: ``whole × l2 × soft × constant``

    The factor is within a factor of two of the hard clip's,
    :math:`\tfrac12 \min(1, c/n) \le c/(c+n) \le \min(1, c/n)`, and half of it at
    :math:`n = c`. It shrinks every gradient, so that learning rates tuned for the hard
    clip do not carry over.

    | input | result |
    |---|---|
    | any norm n > 0 | norm n·c/(n+c), below both n and c |
    | zero gradient | zero |
    | max_norm 0 | exact zeros |
    | max_norm inf | bit-identical |
    | any NaN or inf | NaN everywhere, counted as non-finite |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        max_norm: the bound c, in the gradient's units: a number, an array, a schedule
            or a `clipjax.thresholds.Threshold`.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: max_norm is a bool, a string, or another value that is not a
            threshold.
        ValueError: max_norm is negative or NaN.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.soft_clip_by_global_norm(5.0)
        >>> updates, _ = clip.update(jnp.array([3.0, 4.0]), None)
        >>> print(updates)
        [1.5 2. ]

    References:
        Zhang, He, Sra, Jadbabaie, `Why gradient clipping accelerates training
        <https://arxiv.org/abs/1905.11881>`_, 2020; Gorbunov et al., `Methods for
        convex (L0, L1)-smooth optimization <https://arxiv.org/abs/2409.14989>`_, 2024
    """
    source = as_threshold(max_norm, "max_norm")
    return clip_by(source, rule=rules.soft, axis_name=axis_name, name=name)


def normalise_by_global_norm(
    norm: ThresholdLike = 1.0, *, axis_name: AxisNames = None, name: str = "clip"
) -> Clip:
    r"""Scale the whole tree to a fixed L2 norm.

    .. math:: u = c \, g / \lVert g \rVert_2

    Coordinates: ``whole × l2 × normalise × constant``

    Small gradients are lengthened as well: near a minimum the steps do not become
    shorter, so that the learning rate has to decay.
    ``clipjax.normalize_by_global_norm`` is the same function, in Optax's spelling.

    | input | result |
    |---|---|
    | any norm > 0 | norm c, to two ulps of the leaf's dtype; same direction |
    | zero gradient | zero |
    | norm 0 | exact zeros |
    | norm inf | bit-identical |
    | any NaN or inf | NaN everywhere, counted as non-finite |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        norm: the norm c of the result, in the gradient's units: a number, an array, a
            schedule or a `clipjax.thresholds.Threshold`.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: norm is a bool, a string, or another value that is not a threshold.
        ValueError: norm is negative or NaN.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.normalise_by_global_norm()
        >>> updates, _ = clip.update(jnp.array([3.0, 4.0]), None)
        >>> print(updates)
        [0.6 0.8]

    References:
        Hazan, Levy, Shalev-Shwartz, `Beyond convexity: stochastic quasi-convex
        optimization <https://arxiv.org/abs/1507.02030>`_, 2015
    """
    source = as_threshold(norm, "norm")
    return clip_by(source, rule=rules.normalise, axis_name=axis_name, name=name)


def scale_by_l0_l1(
    l0: Scalar, l1: Scalar, *, axis_name: AxisNames = None, name: str = "clip"
) -> optax.GradientTransformationExtraArgs:
    r"""Scale to a step that suits (L0, L1)-smoothness: a soft clip and a step size.

    .. math::
        u = \frac{g}{L_0 + L_1 \lVert g \rVert_2}
          = \frac{1}{L_0} \, g \, \frac{\gamma}{\gamma + \lVert g \rVert_2},
        \qquad \gamma = \frac{L_0}{L_1}

    Coordinates: ``whole × l2 × soft × constant``

    For functions whose Hessian satisfies :math:`\lVert \nabla^2 f \rVert \le L_0 + L_1
    \lVert \nabla f \rVert`. The threshold γ has the units of a gradient, and the step
    size 1/L0 those of a parameter over a gradient. Their product 1/L1, the length of
    the longest step, does not depend on L0. Chain ``optax.scale(-1)`` after it to
    descend.

    | input | result |
    |---|---|
    | any norm n | norm n/(L0 + L1·n), below 1/L1 |
    | l1 = 0 | the fixed step g/L0 |
    | any NaN or inf | NaN everywhere, counted as non-finite |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        l0: smoothness where the gradient vanishes, in gradient per parameter; positive.
        l1: its growth with the gradient norm, in one per parameter; at least 0.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``: the clip, then the step.

    Raises:
        TypeError: an argument is not a number.
        ValueError: l0 is not positive and finite, or l1 is negative or NaN.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> step = clipjax.scale_by_l0_l1(l0=3.0, l1=1.0)
        >>> grads = jnp.array([3.0, 4.0])
        >>> updates, _ = step.update(grads, step.init(grads))
        >>> print(updates)  # grads / (3 + 1 * 5)
        [0.375 0.5  ]

    References:
        Zhang, He, Sra, Jadbabaie, `Why gradient clipping accelerates training
        <https://arxiv.org/abs/1905.11881>`_, 2020; Gorbunov et al., `Methods for
        convex (L0, L1)-smooth optimization <https://arxiv.org/abs/2409.14989>`_, 2024
    """
    require_number("l0", l0, infinite=False)
    require_number("l1", l1, infinite=False)
    if not isinstance(l0, jax.Array) and l0 <= 0:
        raise ValueError(f"l0 must be a positive number, finite, got {l0!r}")
    if isinstance(l0, jax.Array) or isinstance(l1, jax.Array):
        gamma = jnp.where(l1 > 0, l0 / jnp.where(l1 > 0, l1, 1), jnp.inf)
    else:
        gamma = l0 / l1 if l1 > 0 else math.inf
    clip = soft_clip_by_global_norm(gamma, axis_name=axis_name, name=name)
    return optax.chain(clip, _divide_by(l0))


def _divide_by(divisor: Scalar) -> optax.GradientTransformation:
    """Divide floating and complex leaves; ``optax.scale`` divides integers as well."""

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        leaves = Leaves.of(updates)

        def divide(leaf: jax.Array) -> jax.Array:
            wide = widen(leaf, leaves.dtype)
            return narrow(wide / jnp.asarray(divisor).astype(wide.dtype), leaf)

        return leaves.tree(leaves.map(divide)), state

    return optax.GradientTransformation(init, update)
