"""Singular values and eigenvalues of a Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .vectors import flat, real_leaves, unflat, unit

SQUARINGS = 30  # The spectral radius from the power 2^30, by 30 matrix products.


class JacobianReport(NamedTuple):
    """Three numbers of a Jacobian.

    Attributes:
        spectral_norm: the largest singular value: the largest growth of any direction.
        spectral_radius: the largest magnitude of an eigenvalue: the growth per step
            when the same square matrix is applied many times. NaN if not square.
        condition_number: largest over smallest singular value; inf if that is 0.
    """

    spectral_norm: Float[Array, "*steps"]
    spectral_radius: Float[Array, "*steps"]
    condition_number: Float[Array, "*steps"]


def jacobian_report(function: Callable[[Any], Any], x: Any) -> JacobianReport:
    r"""Return norm, spectral radius and condition number of a function's Jacobian.

    The numbers are those of NumPy's ``svd`` and ``eigvals``, up to float32. The
    spectral radius comes from Gelfand's formula
    :math:`\rho(J) = \lim_k \lVert J^k \rVert^{1 / k}` with k = 2^30, since JAX has no
    eigenvalues of general matrices on every platform. The function works under ``jit``
    and ``vmap``.

    A large condition number alone does not make gradients explode: that of diag(1,
    1e-6) is 1e6, and no power of this matrix grows. Repeated use of J grows if and only
    if the spectral radius is above 1 (or is 1 with a Jordan block); a spectral norm
    above 1 lets it grow for some steps only.

    | input | result |
    |---|---|
    | a Jacobian that is not square | spectral_radius NaN |
    | a Jacobian that is zero | 0, 0, inf |
    | fewer rows than columns | condition_number of the rows |
    | NaN or inf in the Jacobian | NaN |

    Args:
        function: a function of x alone, which ``jax.vjp`` can differentiate.
        x: a real array, or a tree of them, whose entries count as one vector. It is one
            example: with a batch axis the Jacobian has that many blocks.

    Returns:
        A `JacobianReport` of float32 scalars (float64 for float64 arrays).

    Raises:
        TypeError: x or the result is complex.
        ValueError: x or the result has no floating-point leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from clipjax.diagnostics import jacobian_report
        >>> matrix = jnp.array([[0.5, 10.0], [0.0, 0.5]])
        >>> report = jacobian_report(lambda x: matrix @ x, jnp.ones(2))
        >>> print(f"{report.spectral_norm:.3f} {report.spectral_radius:.3f}")
        10.025 0.500

    References:
        Pascanu, Mikolov, Bengio, `On the difficulty of training recurrent neural
        networks <https://arxiv.org/abs/1211.5063>`_, 2013.
    """
    _, jacobian = value_and_jacobian(function, x)
    return report_of(jacobian)


def value_and_jacobian(function: Callable[[Any], Any], x: Any) -> tuple[Any, jax.Array]:
    """Return a function's result, and its Jacobian as a matrix ``[outputs, inputs]``.

    Reverse mode, since networks may hold a ``jax.custom_vjp`` such as a clip of
    cotangents, which has no forward mode.
    """
    leaves = real_leaves("x", x)

    def of_vector(vector: jax.Array) -> tuple[jax.Array, Any]:
        result = function(leaves.tree(unflat(leaves, vector)))
        outputs = real_leaves("the result of the function", result)
        return flat(outputs, outputs.arrays), result

    vector = flat(leaves, leaves.arrays)
    jacobian, result = jax.jacrev(of_vector, has_aux=True)(vector)
    return result, jacobian


@jax.jit  # op by op it takes seconds to compile
def report_of(jacobian: jax.Array) -> JacobianReport:
    """Return the numbers of a Jacobian that is known, a matrix."""
    values = singular_values(jacobian)
    rows, columns = jacobian.shape
    radius = (
        _spectral_radius(jacobian)
        if rows == columns
        else jnp.full((), jnp.nan, jacobian.dtype)
    )
    smallest = values[-1]
    is_singular = smallest == 0
    condition = jnp.where(
        is_singular, jnp.inf, values[0] / jnp.where(is_singular, 1, smallest)
    )
    return JacobianReport(values[0], radius, condition)


def singular_values(matrix: jax.Array) -> jax.Array:
    """Return the singular values of a matrix, the largest first."""
    return jnp.linalg.svd(matrix, compute_uv=False)


def _spectral_radius(matrix: jax.Array) -> jax.Array:
    """Return ‖J^k‖^(1/k) for k = 2^SQUARINGS, each power scaled to norm 1."""

    def square(number: Any, state: Any) -> Any:
        power, log_radius, weight = state
        power, norm = unit(jnp.matmul(power, power, precision="highest"))
        weight = weight / 2
        return power, log_radius + weight * jnp.log(norm), weight

    power, norm = unit(matrix)
    start = power, jnp.log(norm), jnp.ones_like(norm)
    _, log_radius, _ = jax.lax.fori_loop(0, SQUARINGS, square, start)
    return jnp.exp(log_radius)
