"""Undo loss scaling, before the check for overflow and the clip."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core.blocks import fits
from ..core.checks import require_number
from ..core.dtypes import accumulation_dtype, widen
from ..core.trees import Leaves


def unscale(loss_scale: Any = None) -> optax.GradientTransformationExtraArgs:
    r"""Divide gradients by the factor that their loss was multiplied by.

    .. math:: u = g / s, \qquad g = \nabla (s \cdot \text{loss})

    Put it first in the chain, so that all later transformations get the unscaled
    gradient: ``chain(unscale(), skip_nonfinite(chain(clip, optimizer)))``. The result
    is in float32, in which small entries do not underflow in the division. Keep the
    parameters in float32 as well, or Optax's optimizers change the dtype of their
    memories at the first step.

    | input | result |
    |---|---|
    | float16, bfloat16, float8, float32 leaves | float32 |
    | float64 and complex leaves | their own precision; complex64 at least |
    | NaN or inf, from an overflow of the scaled gradient | NaN or inf |
    | scale 1 | the same values, in float32 |
    | a number below 1.18e-38, inf in the result's dtype, or NaN | ValueError |
    | a JAX array not above 0, NaN or inf | NaN in all leaves, for the check to find |
    | integer, float0, PRNG-key, None leaves | unchanged |

    Args:
        loss_scale: the factor s above 0, if it is constant: a number, or an array that
            broadcasts against each leaf. Without it, ``update`` expects the extra
            argument ``loss_scale``.

    Returns:
        An ``optax.GradientTransformationExtraArgs`` without a state.

    Raises:
        TypeError: loss_scale is not a number.
        ValueError: loss_scale is out of range or does not fit a leaf's shape, or update
            is not given one.

    Example:
        >>> import clipjax, optax, jax.numpy as jnp
        >>> chain = optax.chain(clipjax.unscale(), clipjax.clip_by_global_norm(1.0))
        >>> scaled = jnp.array([0.3, 0.4], jnp.float16) * 2**14
        >>> updates, _ = chain.update(scaled, chain.init(scaled), loss_scale=2.0**14)
        >>> print(f"{updates[0]:.3f} {updates[1]:.3f}", updates.dtype)
        0.300 0.400 float32

    References:
        Micikevicius et al., `Mixed precision training
        <https://arxiv.org/abs/1710.03740>`_, 2018, section 3.2
    """
    if loss_scale is not None:
        _require_scale(loss_scale)

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        del params
        scale = extra.get("loss_scale") if loss_scale is None else loss_scale
        if scale is None:
            raise ValueError(
                "unscale needs loss_scale: call update(updates, state, params, "
                "loss_scale=...), or give unscale(loss_scale) a constant"
            )
        _require_scale(scale)
        leaves = Leaves.of(updates)
        return leaves.tree(leaves.map(lambda g: _divided(g, scale))), state

    return optax.GradientTransformationExtraArgs(init, update)


def _require_scale(scale: Any) -> None:
    # XLA flushes subnormal numbers to zero.
    smallest = float(jnp.finfo(jnp.float32).tiny)
    require_number("loss_scale", scale, lowest=smallest, infinite=False)


def _divided(leaf: jax.Array, scale: Any) -> jax.Array:
    dtype = accumulation_dtype([leaf])
    largest = float(jnp.finfo(dtype).max)
    if not isinstance(scale, jax.Array) and np.any(np.asarray(scale) > largest):
        raise ValueError(f"loss_scale must be at most {largest:g}, got {scale!r}")
    scale = jnp.asarray(scale, dtype)
    if scale.size == 1:
        scale = scale.reshape(())
    if not fits(scale.shape, leaf.shape):
        raise ValueError(
            "loss_scale must be one number, or broadcast against each leaf, got shape "
            f"{scale.shape} for a leaf of shape {leaf.shape}"
        )
    # A negative scale would flip the sign, and the quotient by an infinite one is zero.
    scale = jnp.where((scale > 0) & (scale < jnp.inf), scale, jnp.nan)
    # XLA multiplies by the reciprocal instead of dividing. Above 2^126 the reciprocal
    # is subnormal and flushed to zero, so that a large scale is divided by 4 first.
    power = jnp.where(scale > 2.0**100, 0.25, 1.0).astype(dtype)
    power = jax.lax.optimization_barrier(power)  # keep it out of the reciprocal
    wide = widen(leaf, dtype)
    return wide * power.astype(wide.dtype) / (scale * power).astype(wide.dtype)
