"""A clip inside a network: the identity, whose cotangent is clipped on the way back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .core.checks import Scalar, require_axis_name, require_number
from .core.clip import Clip
from .core.meshes import AxisNames
from .recipes.classic import clip_by_global_norm


def clip_cotangent(
    x: Any,
    max_norm: Scalar,
    *,
    recipe: Callable[..., Clip] = clip_by_global_norm,
    axis_name: AxisNames = None,
) -> Any:
    r"""Return ``x`` unchanged, and clip its gradient in backpropagation.

    .. math:: y = x, \qquad
        \bar x = \bar y \min\Bigl(1, \frac{c}{\lVert \bar y \rVert_2}\Bigr)

    Here :math:`\bar y` is the cotangent of the result: the derivative of the loss with
    respect to it. A clip in the optimizer acts when backpropagation is over. This one
    acts inside it: put it on the state of a recurrent cell, and the gradient that goes
    back through time is bounded at each step, so that it cannot explode in between. The
    result is then no longer the gradient of the loss.

    | case | result |
    |---|---|
    | cotangent of norm ≤ max_norm | bit-identical |
    | larger | its norm is max_norm, to rounding; see `clipjax.clip_by_global_norm` |
    | ``max_norm`` 0; inf | stops the gradient; identity |
    | NaN or inf in the cotangent | all of it is NaN: nothing is lost silently |
    | a tree | one norm for all its leaves |
    | float16, bfloat16, norms up to 8e37 | measured in float32, rounded once |
    | integers among the leaves | pass through |
    | ``vmap`` over the function that calls it | each example by its own norm |
    | a batch axis in ``x`` itself | one norm for the batch |
    | ``jit``, ``scan``, ``remat`` | works |
    | second derivatives: ``grad`` of ``grad``, ``hessian`` | those of the clip |
    | forward mode alone: ``jvp``, ``jacfwd`` | TypeError of ``jax.custom_vjp`` |

    Args:
        x: an activation: an array or a tree of arrays.
        max_norm: the largest norm of the cotangent, in units of loss per unit of ``x``:
            a number or an array of at least 0. Its own derivative is zero.
        recipe: the clip, called with ``max_norm`` and ``axis_name``, such as
            `clipjax.clip_by_value`, which clips each entry, or
            `clipjax.soft_clip_by_global_norm`. The clip must have no memory and must
            not need the parameters.
        axis_name: mesh axes that ``x`` is split over, inside ``shard_map`` and
            ``pmap``; () to clip on each device by itself.

    Returns:
        A tree of the same structure, with the same values.

    Raises:
        TypeError: max_norm is not a number, or recipe is not a function.
        ValueError: max_norm is negative or NaN, or recipe does not return a clip, or
            the clip has a memory.

    Example:
        Fifty steps of a linear recurrence multiply the gradient by 1.5 each time:

        >>> import clipjax, jax
        >>> def last_state(h, max_norm):
        ...     def step(h, _):
        ...         return 1.5 * clipjax.clip_cotangent(h, max_norm), None
        ...     return jax.lax.scan(step, h, length=50)[0]
        >>> for max_norm in (jax.numpy.inf, 1.0):
        ...     print(f"{jax.grad(last_state)(1.0, max_norm):.4g}")
        6.376e+08
        1

    References:
        Graves, `Generating sequences with recurrent neural networks
        <https://arxiv.org/abs/1308.0850>`_, 2013, clips the derivative with
        respect to the inputs of LSTM layers, by value.
    """
    require_number("max_norm", max_norm)
    require_axis_name(axis_name)
    if not callable(recipe):
        raise TypeError(
            f"recipe must be a function such as clipjax.clip_by_value, got {recipe!r}"
        )
    make = functools.partial(recipe, axis_name=axis_name)
    clip = make(max_norm)
    if not isinstance(clip, Clip) or clip.clipper.threshold.remembers:
        raise ValueError(f"recipe must return a clip without a memory, got {clip!r}")
    return _identity(make, x, jnp.asarray(max_norm, float))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _identity(make: Callable[..., Clip], x: Any, max_norm: jax.Array) -> Any:
    del make, max_norm
    return x


def _forward(make: Callable[..., Clip], x: Any, max_norm: jax.Array) -> Any:
    # Not through _identity, which would refuse forward mode over this reverse mode.
    del make
    return x, max_norm


def _backward(make: Callable[..., Clip], max_norm: jax.Array, cotangent: Any) -> Any:
    clipped, _ = make(max_norm).update(cotangent, None)
    return clipped, jnp.zeros_like(max_norm)


_identity.defvjp(_forward, _backward)
