"""Wrappers that give back, over later steps, what a clip has cut off."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .casts import accumulation_dtype, narrow, widen
from .distributed import AxisNames, beside, split_over
from .measurement import first_nonfinite_leaf
from .recipes import clip_by_global_norm
from .thresholds.base import require_number
from .trees import NamedLeaves, is_clippable
from .wrapped import as_transformation


class ErrorFeedbackState(NamedTuple):
    """The state of `error_feedback`.

    Attributes:
        residual: what has been cut off and not yet given back, a tree of the
            parameters' structure and shapes: float32, or float64 for float64 leaves
            (or their complex counterparts), and None for leaves that are not clipped.
        inner_state: the state of the wrapped clip.
    """

    residual: Any
    inner_state: Any


def error_feedback(
    clip: optax.GradientTransformation,
    cap: Any = None,
    *,
    axis_name: AxisNames = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds what a clip cuts off to the next gradient, so that nothing is lost.

    .. math::
        r_t = g_t + \Delta_t, \qquad
        u_t = \operatorname{clip}(r_t), \qquad
        \Delta_{t+1} = r_t - u_t

    Clipping alone is biased where gradients are skewed. Here, without a cap, all
    updates so far and the residual :math:`\Delta` add up to all gradients so far, so
    that the mean update tends to the mean gradient, as long as the residual stays
    bounded: if gradients are longer than the threshold on average, it grows for ever,
    and a cap is needed. The clip sees :math:`r` in the residual's precision; rounding
    the update to the gradient's dtype is fed back too.

    Put it where the clip would be, in front of the optimizer: the residual is in the
    gradient's units. Put ``optax.MultiSteps`` around both. It costs one more copy of
    the parameters in memory.

    | input | result |
    |---|---|
    | the clip changes nothing, residual 0 | bit-identical, residual stays 0 |
    | cap 0 | the clip alone |
    | NaN or inf in any leaf | the clip of the gradient alone; residual bit-identical |
    | finite leaves whose sums overflow | residual bit-identical |
    | bfloat16 or float16 gradients | update in their dtype, residual in float32 |
    | integer, float0, PRNG-key, None leaves | left to the clip, no residual |

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
        TypeError: clip is no gradient transformation, or cap no number.
        ValueError: cap is negative or NaN.

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
        limit = clip_by_global_norm(cap, axis_name=axis_name)

    def init(params: Any) -> ErrorFeedbackState:
        return ErrorFeedbackState(jax.tree.map(_nothing, params), inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, ErrorFeedbackState]:
        leaves, residual = NamedLeaves.of(updates), NamedLeaves.of(state.residual)
        split = split_over(leaves, axis_name, params)
        _require_known(leaves, residual)
        raw = {name: _widest(leaf) for name, leaf in leaves.arrays.items()}
        total = {name: _sum(leaf, residual.arrays[name]) for name, leaf in raw.items()}
        is_bad = first_nonfinite_leaf(leaves.replace(total), split) >= 0

        # A residual that stays must not be given out, or it would count twice.
        seen = {
            name: jnp.where(beside(is_bad, leaf), leaf, total[name])
            for name, leaf in raw.items()
        }
        clipped, inner_state = inner.update(
            leaves.replace(seen).tree(), state.inner_state, params, **extra
        )
        clipped = NamedLeaves.of(clipped)
        given = {
            name: narrow(clipped.arrays[name], leaf)
            for name, leaf in leaves.arrays.items()
        }
        rest = {name: total[name] - _widest(leaf) for name, leaf in given.items()}
        overflows = first_nonfinite_leaf(leaves.replace(rest), split) >= 0
        is_bad |= beside(overflows, is_bad)
        if limit is not None:
            owners = None if params is None else NamedLeaves.of(params).arrays
            rest, _ = limit.update(rest, None, owners)
        kept = {
            name: jnp.where(beside(is_bad, old), old, rest[name].astype(old.dtype))
            for name, old in residual.arrays.items()
            if name in rest
        }
        return clipped.replace(clipped.arrays | given).tree(), ErrorFeedbackState(
            residual.replace(residual.arrays | kept).tree(), inner_state
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _nothing(leaf: Any) -> jax.Array | None:
    if not is_clippable(leaf):
        return None
    like = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    wide = jax.eval_shape(_widest, jax.ShapeDtypeStruct(like.shape, like.dtype))
    return jnp.zeros_like(like, dtype=wide.dtype)


def _widest(leaf: jax.Array) -> jax.Array:
    return widen(leaf, accumulation_dtype(NamedLeaves.of(leaf)))


def _sum(leaf: jax.Array, residual: jax.Array) -> jax.Array:
    # Selecting, where there is nothing to add, keeps -0.0 and subnormals.
    total = leaf + residual.astype(leaf.dtype)
    return jnp.where(residual == 0, leaf, total)


def _require_known(leaves: NamedLeaves, residual: NamedLeaves) -> None:
    unknown = [name for name in leaves.arrays if name not in residual.arrays]
    if unknown:
        raise ValueError(
            f"updates have leaves that init did not see: {', '.join(unknown)}; call "
            "init with parameters of the same structure"
        )
