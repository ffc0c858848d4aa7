"""Products of Jacobians along a chain: recurrent cells over time, layers in depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .jacobians import (
    JacobianReport,
    report_of,
    singular_values,
    value_and_jacobian,
)
from .vectors import real_leaves, unit


class JacobianProductReport(NamedTuple):
    """The product of Jacobians along a chain of functions, one entry per step.

    Attributes:
        log_norms: log of the spectral norm of the product up to each step, of shape
            ``[steps]``; -inf for a product that is zero. It cannot overflow.
        steps: a `JacobianReport` of the Jacobian of each step, with arrays of that
            shape.
    """

    log_norms: Float[Array, " steps"]
    steps: JacobianReport

    @property
    def log_bounds(self) -> Float[Array, " steps"]:
        """Log of the product of the spectral norms, which is at least ``log_norms``."""
        return jnp.cumsum(jnp.log(self.steps.spectral_norm))


def jacobian_product_report(
    functions: Callable[[Any, Any], Any] | Sequence[Callable[[Any], Any]],
    x: Any,
    inputs: Any = None,
) -> JacobianProductReport:
    r"""Measure how the product of Jacobians grows, step by step.

    .. math:: \log \lVert J_k \cdots J_2 J_1 \rVert_2, \qquad k = 1, 2, \dots

    The product is scaled to norm 1 after each step, and the logarithms of the scales
    are added up, so that it neither overflows nor underflows, however long the chain
    is.

    - A deep net: the layers in order, and the first one's input.
    - A recurrent net: the cell, the first hidden state, and the inputs of all steps.
      The Jacobians are those from hidden state to hidden state.

    ``log_norms[-1] / steps`` is the mean growth per step, the log of the spectral
    radius where all steps have one Jacobian and are many. A spectral norm above 1 is
    necessary for growth, and not sufficient: the product of the spectral norms,
    ``log_bounds``, is only a bound. The function works under ``jit`` and ``vmap``.

    | input | result |
    |---|---|
    | a Jacobian that is zero | -inf from there on |
    | NaN or inf in a Jacobian | NaN from there on |
    | inputs of no steps | arrays of shape ``[0]`` |

    Args:
        functions: functions of one argument, each of which takes the result of the one
            before; or one function of hidden state and input that returns the next
            hidden state.
        x: the first function's input, or the hidden state: one example, a real array or
            a tree of them.
        inputs: the cell's inputs, with the steps along the first axis.

    Returns:
        A `JacobianProductReport` of float32 (float64 for float64 arrays).

    Raises:
        TypeError: functions is not a function although there are inputs, or not a
            sequence of functions although there are none; x or a result is complex.
        ValueError: functions is empty, or the result of the cell has another structure,
            shape or dtype than the hidden state.

    Example:
        >>> import jax.numpy as jnp
        >>> from clipjax.diagnostics import jacobian_product_report
        >>> matrix = jnp.array([[0.5, 10.0], [0.0, 0.5]])
        >>> cell = lambda hidden, _: matrix @ hidden
        >>> report = jacobian_product_report(cell, jnp.ones(2), jnp.zeros(1000))
        >>> print(f"{report.log_norms[3]:.2f} {report.log_norms[-1]:.1f}")
        1.61 -683.2
        >>> print(f"{report.log_bounds[-1]:.0f}")
        2305

    References:
        Pascanu, Mikolov, Bengio, `On the difficulty of training recurrent neural
        networks <https://arxiv.org/abs/1211.5063>`_, 2013.
    """
    if inputs is not None:
        if not callable(functions):
            raise TypeError(
                "functions must be a cell, a function of hidden state and input, where "
                f"there are inputs, got {functions!r}"
            )
        return _along_time(functions, x, inputs)
    if callable(functions) or not all(map(callable, functions)):
        raise TypeError(
            "functions must be a sequence of functions of one argument, or a cell with "
            f"inputs=, got {functions!r}"
        )
    if not functions:
        raise ValueError("functions must hold at least one function, got none")
    return _along_layers(functions, x)


class _Product(NamedTuple):
    """A product of Jacobians: ``exp(log_scale) · matrix``."""

    matrix: jax.Array
    log_scale: jax.Array

    def then(self, jacobian: jax.Array) -> _Product:
        """Return the product with one more factor, scaled to a Frobenius norm of 1."""
        matrix = jnp.matmul(jacobian, self.matrix, precision="highest")
        matrix, norm = unit(matrix)
        return _Product(matrix, self.log_scale + jnp.log(norm))

    def log_norm(self) -> jax.Array:
        return self.log_scale + jnp.log(singular_values(self.matrix)[0])


def _along_layers(
    functions: Sequence[Callable[[Any], Any]], x: Any
) -> JacobianProductReport:
    log_norms, steps = [], []
    product = None
    for function in functions:
        x, jacobian = value_and_jacobian(function, x)
        if product is None:
            product = _identity(jacobian.shape[1], jacobian.dtype)
        product = product.then(jacobian)
        log_norms.append(product.log_norm())
        steps.append(report_of(jacobian))
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *steps)
    return JacobianProductReport(jnp.stack(log_norms), stacked)


def _along_time(
    cell: Callable[[Any, Any], Any], hidden: Any, inputs: Any
) -> JacobianProductReport:
    form = jax.tree.map(_form, hidden)

    def advance(carry: Any, entry: Any) -> tuple[Any, Any]:
        hidden, product = carry
        following, jacobian = value_and_jacobian(lambda at: cell(at, entry), hidden)
        if jax.tree.map(_form, following) != form:
            raise ValueError(
                "functions must be a cell that returns a hidden state of the shape "
                f"and dtype of its argument, {form}, got "
                f"{jax.tree.map(_form, following)}; for a cell that returns a pair of "
                "state and output, pass lambda hidden, input: cell(hidden, input)[0]"
            )
        product = product.then(jacobian)
        return (following, product), (product.log_norm(), report_of(jacobian))

    leaves = real_leaves("x", hidden)
    hidden = leaves.tree(leaves.arrays)  # NumPy arrays and numbers become JAX arrays
    size = sum(leaf.size for leaf in leaves.arrays)
    start = hidden, _identity(size, leaves.dtype)
    _, (log_norms, steps) = jax.lax.scan(advance, start, inputs)
    return JacobianProductReport(log_norms, steps)


def _form(leaf: Any) -> str:
    """Return shape and dtype as one text, such as float32[3]."""
    shape = ",".join(map(str, jnp.shape(leaf)))
    return f"{jnp.asarray(leaf).dtype}[{shape}]"


def _identity(size: int, dtype: Any) -> _Product:
    return _Product(jnp.eye(size, dtype=dtype), jnp.zeros((), dtype))
