"""Error feedback: a wrapper that adds the part cut off to later gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core.checks import Scalar, require_number
from ..core.clip import clip_by
from ..core.dtypes import accumulation_dtype, narrow, widen
from ..core.meshes import AxisNames
from ..core.trees import Leaves, is_clippable, zeros_like
from .inner import as_transformation, checked_own_state, first_bad_leaf


class ErrorFeedbackState(NamedTuple):
    """The state of `error_feedback`.

    Attributes:
        residual: the sum of all parts cut off, less those added back, a tree of the
            parameters' structure and shapes: float32, or float64 for float64 leaves (or
            their complex counterparts). It stays zero for leaves that are not clipped.
        inner_state: the state of the wrapped clip.
    """

    residual: Any
    inner_state: Any


def error_feedback(
    clip: optax.GradientTransformation,
    cap: Scalar | None = None,
    *,
    axis_name: AxisNames = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Add the part that a clip cuts off to the next gradient.

    .. math::
        r_t = g_t + \Delta_t, \qquad
        u_t = \operatorname{clip}(r_t), \qquad
        \Delta_{t+1} = r_t - u_t

    Clipping alone is biased where the distribution of gradients is skewed. With error
    feedback and no cap, the sum of all updates plus the residual :math:`\Delta` equals
    the sum of all gradients. So the mean update tends to the mean gradient, as long as
    the residual stays bounded: if gradients are longer than the threshold on average,
    it grows without bound, and a cap is needed. The clip gets :math:`r` in the
    residual's precision, and the rounding of the update to the gradient's dtype is fed
    back too.

    Put the wrapped clip in front of the optimizer: the residual is in the gradient's
    units. Put ``optax.MultiSteps`` around both. The residual costs one more copy of the
    parameters in memory.

    | input | result |
    |---|---|
    | the clip changes nothing, residual 0 | bit-identical, residual stays 0 |
    | cap 0 | the clip alone |
    | NaN or inf in any leaf | the clip of the gradient alone; residual bit-identical |
    | finite leaves whose sums overflow | residual bit-identical |
    | bfloat16 or float16 gradients | update in their dtype, residual in float32 |
    | integer, float0, PRNG-key, None leaves | as the clip returns them; residual 0 |
    | a state that is not this wrapper's, None included | ValueError |

    Args:
        clip: the clip, or any transformation that shortens gradients.
        cap: the largest global L2 norm that the residual may have, in the gradient's
            units: a number or array of at least 0. A longer residual is scaled down to
            it, and the rest is lost. By default there is no cap.
        axis_name: mesh or pmap axes that leaves are split over, inside ``shard_map``
            and ``pmap``; the clip needs them as well.

    Returns:
        An ``optax.GradientTransformationExtraArgs``. The clip gets the parameters and
        all extra arguments.

    Raises:
        TypeError: clip is not a gradient transformation, or cap is not a number.
        ValueError: cap is negative or NaN; or, in ``update``, updates have a leaf that
            the parameters of ``init`` lacked.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.error_feedback(clipjax.clip_by_value(1.0))
        >>> state = clip.init(jnp.zeros(()))
        >>> for gradient in (2.5, 0.0, 0.0):
        ...     update, state = clip.update(jnp.asarray(gradient), state)
        ...     print(update, state.residual)
        1.0 1.5
        1.0 0.5
        0.5 0.0

    References:
        Elesedy, Hutter, `U-Clip: on-average unbiased stochastic gradient clipping
        <https://arxiv.org/abs/2302.02971>`_, 2023, for the rule; the cap is clipjax's.
    """
    inner = as_transformation("clip", clip)
    limit: Any = None
    if cap is not None:
        require_number("cap", cap)
        limit = clip_by(cap, axis_name=axis_name)

    def init(params: Any) -> ErrorFeedbackState:
        residual = jax.tree.map(_no_residual, params)
        return ErrorFeedbackState(residual, inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, ErrorFeedbackState]:
        inside = ("residual", "inner_state")
        state = checked_own_state(state, ErrorFeedbackState, "error_feedback", inside)
        leaves = Leaves.of(updates)
        residual = leaves.aligned(state.residual, "the residuals of init's parameters")
        raw = leaves.map(_widest)
        total = [_sum(leaf, owed) for leaf, owed in zip(raw, residual, strict=True)]
        is_bad = first_bad_leaf(leaves.tree(total), axis_name, params) >= 0

        # On a bad step the residual is kept, and so must not be added as well.
        seen = [
            jnp.where(is_bad, leaf, both) for leaf, both in zip(raw, total, strict=True)
        ]
        clipped, inner_state = inner.update(
            leaves.tree(seen), state.inner_state, params, **extra
        )
        given = [
            narrow(short, leaf)
            for short, leaf in zip(
                leaves.aligned(clipped, "the clip's updates"),
                leaves.arrays,
                strict=True,
            )
        ]
        rest = [both - _widest(leaf) for both, leaf in zip(total, given, strict=True)]
        is_bad |= first_bad_leaf(leaves.tree(rest), axis_name, params) >= 0
        if limit is not None:
            shorter, _ = limit.update(leaves.tree(rest), None, params)
            rest = Leaves.of(shorter).arrays
        kept = [
            jnp.where(is_bad, old, new.astype(old.dtype))
            for old, new in zip(residual, rest, strict=True)
        ]
        return leaves.placed(clipped, given), ErrorFeedbackState(
            leaves.placed(state.residual, kept), inner_state
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _no_residual(leaf: Any) -> Any:
    if not is_clippable(leaf):
        return zeros_like(leaf)
    like = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    wide = jax.eval_shape(_widest, jax.ShapeDtypeStruct(like.shape, like.dtype))
    return zeros_like(like, wide.dtype)


def _widest(leaf: jax.Array) -> jax.Array:
    return widen(leaf, accumulation_dtype([leaf]))


def _sum(leaf: jax.Array, residual: jax.Array) -> jax.Array:
    # Where the residual is 0, select the leaf: adding 0 would change -0.0 to 0.0 and
    # flush subnormal entries.
    total = leaf + residual.astype(leaf.dtype)
    return jnp.where(residual == 0, leaf, total)
