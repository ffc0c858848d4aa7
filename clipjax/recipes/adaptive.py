"""Clips whose threshold is measured along with the gradient."""

from __future__ import annotations

from typing import Any

from .. import granularity
from ..engine import Clip, clip_by
from ..thresholds.relative import relative_to_params


def adaptive_grad_clip(
    clipping: Any,
    eps: Any = 1e-3,
    axis: Any = None,
    *,
    stacked: Any = None,
    name: str = "clip",
) -> Clip:
    r"""Clips each output unit to a fraction of its parameters' norm (AGC).

    .. math::
        u_j = g_j \min\Bigl(1, \lambda
            \frac{\max(\lVert w_j \rVert_2, \epsilon)}{\lVert g_j \rVert_2}\Bigr)

    Coordinates: ``unit × l2 × hard × relative-to-params``

    A drop-in for ``optax.adaptive_grad_clip``. The parameters are those before the
    update. The paper leaves the last linear layer unclipped: wrap the clip in
    ``optax.masked`` for that.

    | input | result |
    |---|---|
    | a unit's norm ≤ its threshold | that unit bit-identical |
    | zero parameters | allowed the norm ``clipping · eps`` |
    | None in the gradient | stays None, whatever the parameters hold there |
    | NaN or inf in a unit | NaN in that unit only, counted as non-finite |
    | rank above 5 without axis | ValueError when traced |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        clipping: λ, the largest ratio of gradient norm to parameter norm.
        eps: parameter norms below this count as this, in the parameters' units.
        axis: the axes that one unit spans; by default by rank, as Optax chooses: all
            for scalars and vectors, 0 at rank 2 and 3, all but the last at rank 4 and
            5. Axes, a function of (path, leaf), or a table from path pattern to axes.
        stacked: leading axes that stack separate layers; see
            `clipjax.granularity.unit`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs`` that needs params in ``update``.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative or NaN; or, in ``update``, params are not
            given.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.adaptive_grad_clip(0.1)
        >>> params, grads = jnp.array([[6.0], [8.0]]), jnp.array([[3.0], [4.0]])
        >>> updates, _ = clip.update(grads, clip.init(params), params)
        >>> print(updates.T)
        [[0.6 0.8]]

    References:
        Brock, De, Smith, Simonyan, `High-performance large-scale image recognition
        without normalization <https://arxiv.org/abs/2102.06171>`_, 2021, equation 3
    """
    return clip_by(
        relative_to_params(clipping, eps),
        granularity=granularity.unit(axis, stacked),
        name=name,
    )
