"""The local smoothness of a loss: how fast its gradient changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.checks import require_choice, require_integer, require_number
from ..core.dtypes import safe_divisor
from ..core.trees import Leaves
from .vectors import flat, length, real_leaves, unflat, unit


@jax.tree_util.register_static
class Quantity(str):
    """The name of an estimated quantity, which ``jit``, ``vmap`` and ``scan`` keep."""


ESTIMATES = {
    "hessian": "largest |eigenvalue| of the Hessian, from below",
    "secant": "|change of the gradient| / |step|, along the step",
    "random": "Frobenius norm of the Hessian / sqrt(parameters), in the root mean "
    "square over directions: not the largest |eigenvalue|",
}


class Smoothness(NamedTuple):
    """An estimate of the local smoothness, in units of loss / parameter².

    Attributes:
        value: the estimate, at least 0.
        curvature: the second derivative along the direction that was used, with its
            sign; its magnitude is at most the value.
        grad_norm: the norm of the gradient at the parameters.
        residual: for ``hessian`` the relative residual of the last but one vector,
            ‖H²v − ρ²v‖ / ρ² with ρ = ‖Hv‖: some eigenvalue's square is within that
            fraction of ρ². 0 for the other methods, which do not iterate.
        estimate: the name of the quantity that the value estimates.
    """

    value: Float[Array, ""]
    curvature: Float[Array, ""]
    grad_norm: Float[Array, ""]
    residual: Float[Array, ""]
    estimate: str


def local_smoothness(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    batch: Any,
    method: str = "hessian",
    *,
    key: jax.Array | None = None,
    step: Any = None,
    radius: float | jax.Array = 1e-2,
    iterations: int = 20,
) -> Smoothness:
    r"""Estimate how fast the gradient of a loss changes near the parameters.

    | method | value | is an estimate of |
    |---|---|---|
    | ``hessian`` | power iteration on Hessian-vector products | :math:`\lVert H
      \rVert_2`, the largest magnitude of an eigenvalue; never above it |
    | ``secant`` | :math:`\lVert g(x + d) - g(x) \rVert / \lVert d \rVert` for a given
      step d | the smoothness that the step met; at most the largest
      :math:`\lVert H \rVert_2` on the way |
    | ``random`` | the same for a random d of length ``radius`` | :math:`\lVert H
      \rVert_F / \sqrt P` for P parameters, which the root mean square over keys
      tends to. For a Hessian with few large eigenvalues it is far below
      :math:`\lVert H \rVert_2` |

    Both gradients of a difference are of the same batch. Differences are divided by
    the step as the parameters' dtype rounds it. The power iteration starts from a
    random vector and takes a fixed number of products; read ``residual`` before the
    value. It finds eigenvalues of either sign, also where two of opposite sign have the
    same magnitude. The parameters are joined as one vector, so that they have to fit on
    each device. The function works under ``jit``, ``vmap`` and ``scan``.

    | input | result |
    |---|---|
    | a zero Hessian | 0 |
    | a step of zero, or one that rounding removes | NaN |
    | NaN or inf in a gradient | NaN or inf |
    | integer, PRNG-key, None leaves in params | stay as they are |

    Args:
        loss: a function of params and batch that returns a real scalar. It must be
            deterministic: pass the PRNG key of dropout as a part of the batch.
        params: a tree with real floating-point leaves.
        batch: anything that the loss takes.
        method: ``hessian``, ``secant`` or ``random``.
        key: a JAX PRNG key, which ``random`` needs. ``hessian`` starts from
            ``jax.random.key(0)`` without it.
        step: the update d, a tree like params, for ``secant``.
        radius: the length of a random step, in the units of the parameters.
        iterations: Hessian-vector products, at least 2.

    Returns:
        A `Smoothness` of float32 scalars (float64 where any leaf is).

    Raises:
        TypeError: a leaf of params is complex, or an argument of the wrong kind.
        ValueError: params has no floating-point leaf, an argument is out of range,
            ``secant`` has no step, or ``random`` no key.

    Example:
        >>> import jax.numpy as jnp
        >>> from clipjax.diagnostics import local_smoothness
        >>> loss = lambda x, scales: 0.5 * jnp.sum(scales * x**2)
        >>> found = local_smoothness(loss, jnp.ones(3), jnp.array([1.0, 2.0, -8.0]))
        >>> print(f"{found.value:.3f} {found.curvature:.3f} {found.residual:.0%}")
        8.000 -8.000 0%
        >>> print(found.estimate)
        largest |eigenvalue| of the Hessian, from below

    References:
        Zhang, He, Sra, Jadbabaie, `Why gradient clipping accelerates training
        <https://arxiv.org/abs/1905.11881>`_, 2020, for the smoothness along a step;
        Pearlmutter, `Fast exact multiplication by the Hessian
        <https://doi.org/10.1162/neco.1994.6.1.147>`_, 1994.
    """
    require_choice("method", method, tuple(ESTIMATES))
    require_number("radius", radius, lowest=math.ulp(0.0), infinite=False)
    require_integer("iterations", iterations, 2)
    if (method == "secant") != (step is not None):
        raise ValueError(
            "step must be the update, a tree like params, for method='secant' and None "
            f"otherwise, got {type(step).__name__} for method={method!r}"
        )
    if method == "random" and key is None:
        raise ValueError("key must be a JAX PRNG key for method='random', got None")
    leaves = real_leaves("params", params)

    def gradient(arrays: list[jax.Array]) -> list[jax.Array]:
        return jax.grad(lambda at: loss(leaves.tree(at), batch))(arrays)

    if method == "secant":
        return _difference(gradient, leaves, _like(leaves, step), method)
    size = sum(leaf.size for leaf in leaves.arrays)
    key = jax.random.key(0) if key is None else key
    direction, _ = unit(jax.random.normal(key, (size,), leaves.dtype))
    if method == "random":
        return _difference(gradient, leaves, radius * direction, method)
    return _power_iteration(gradient, leaves, direction, iterations)


def _like(leaves: Leaves, step: Any) -> jax.Array:
    """Return a step as a vector."""
    parts = leaves.aligned(step, "the leaves of step")
    for name, leaf, part in zip(leaves.names, leaves.arrays, parts, strict=True):
        if part.shape != leaf.shape:
            raise ValueError(
                f"step must have the shapes of params, got {part.shape} for "
                f"{leaf.shape} at {name!r}"
            )
    return flat(leaves, parts)


def _difference(
    gradient: Callable[[list[jax.Array]], list[jax.Array]],
    leaves: Leaves,
    step: jax.Array,
    method: str,
) -> Smoothness:
    """Compare the gradients at both ends of a step."""
    start = flat(leaves, leaves.arrays)
    moved = unflat(leaves, start + step)
    # The step that was taken: bfloat16 parameters round most of a small one away.
    direction, distance = unit(flat(leaves, moved) - start)
    before = flat(leaves, gradient(leaves.arrays))
    change = flat(leaves, gradient(moved)) - before
    return Smoothness(
        length(change) / distance,
        jnp.vdot(change, direction) / distance,
        length(before),
        jnp.zeros_like(distance),
        Quantity(ESTIMATES[method]),
    )


class _Iterate(NamedTuple):
    """Two unit vectors that follow each other, and the last product's numbers."""

    previous: jax.Array
    vector: jax.Array
    value: jax.Array
    curvature: jax.Array
    residual: jax.Array


def _power_iteration(
    gradient: Callable[[list[jax.Array]], list[jax.Array]],
    leaves: Leaves,
    start: jax.Array,
    iterations: int,
) -> Smoothness:
    """Multiply a vector by the Hessian repeatedly.

    The norm of the product grows from step to step towards the largest magnitude of an
    eigenvalue, also where the vector itself alternates between two eigenvectors.
    """
    # One linearization for all products: the loss is not evaluated again.
    grads, hessian = jax.linearize(gradient, leaves.arrays)

    def multiply(_: Any, last: _Iterate) -> _Iterate:
        image = flat(leaves, hessian(unflat(leaves, last.vector)))
        vector, value = unit(image)
        # H²v = value · last.value · vector, for v = last.previous.
        growth = value / safe_divisor(last.value)
        residual = length(growth * vector - last.previous)
        residual = jnp.where(last.value > 0, residual, 0)
        curvature = jnp.vdot(last.vector, image)
        return _Iterate(last.vector, vector, value, curvature, residual)

    zero = jnp.zeros((), leaves.dtype)
    first = _Iterate(start, start, zero, zero, zero)
    last = jax.lax.fori_loop(0, iterations, multiply, first)
    return Smoothness(
        last.value,
        last.curvature,
        length(flat(leaves, grads)),
        last.residual,
        Quantity(ESTIMATES["hessian"]),
    )
