"""Which number of a recurrent matrix says whether gradients explode."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...diagnostics import jacobian_product_report, jacobian_report
from ...plotting import plot_jacobian_norms
from ..options import Whole
from .arguments import require
from .base import Report, Table, beside, number

NON_NORMAL = "[[0.5, 10], [0, 0.5]]"
MATRICES = {
    NON_NORMAL: [[0.5, 10.0], [0.0, 0.5]],
    "diag(1, 1e-6)": [[1.0, 0.0], [0.0, 1e-6]],
    "1.1 × rotation": [[0.0, -1.1], [1.1, 0.0]],
}


class Measured(NamedTuple):
    """Linear recurrent nets, by the name of their matrix.

    Attributes:
        singular: by matrix, the largest singular value.
        radius: by matrix, the spectral radius.
        condition: by matrix, the condition number.
        log_norms: by matrix `(steps,)`, log of the norm of the product of that many
            Jacobians.
        log_bounds: the same of the product of their norms.
        tanh_log_norms: the same as `log_norms` of x = tanh(W x), from x = (1, 1).
    """

    singular: dict[str, float]
    radius: dict[str, float]
    condition: dict[str, float]
    log_norms: dict[str, np.ndarray]
    log_bounds: dict[str, np.ndarray]
    tanh_log_norms: dict[str, np.ndarray]


def measure(*, steps: int = 100) -> Measured:
    """Unroll x = W x and x = tanh(W x) for three matrices.

    Args:
        steps: number of time steps, at least 50.
    """
    require(Whole(lowest=50), steps=steps)
    start, nothing = jnp.ones(2), jnp.zeros(steps)

    @jax.jit
    def of_matrix(matrix: jax.Array):
        chain = jacobian_product_report(lambda x, _: matrix @ x, start, nothing)
        tanh = jacobian_product_report(
            lambda x, _: jnp.tanh(matrix @ x), start, nothing
        )
        numbers = jacobian_report(lambda x: matrix @ x, start)
        return numbers, chain.log_norms, chain.log_bounds, tanh.log_norms

    found = {name: of_matrix(jnp.array(matrix)) for name, matrix in MATRICES.items()}

    def column(index: int) -> dict[str, np.ndarray]:
        return {
            name: np.asarray(values[index], np.float64)
            for name, values in found.items()
        }

    numbers = {name: values[0] for name, values in found.items()}
    return Measured(
        {name: float(each.spectral_norm) for name, each in numbers.items()},
        {name: float(each.spectral_radius) for name, each in numbers.items()},
        {name: float(each.condition_number) for name, each in numbers.items()},
        column(1),
        column(2),
        column(3),
    )


def report(measured: Measured) -> Report:
    """Powers of the non-normal matrix next to reported ones, and all growths."""
    said = {1: "10.0", 3: "7.5", 10: ".195", 50: "9e-13"}
    powers = np.exp(measured.log_norms[NON_NORMAL])
    rows = [
        (f"norm of {NON_NORMAL}, power {power}", text, powers[power - 1])
        for power, text in said.items()
    ]
    rows += [
        ("its largest singular value", "10.02", measured.singular[NON_NORMAL]),
        ("its spectral radius", ".5", measured.radius[NON_NORMAL]),
    ]
    steps = len(powers)
    growth = {
        name: np.exp(values[-1] / steps) for name, values in measured.log_norms.items()
    }
    table = Table(
        f"Growth per step over {steps} steps, and what could predict it",
        ("", "growth", "with tanh", "radius", "largest singular value", "condition"),
        [
            (
                name,
                *(
                    number(value)
                    for value in (
                        growth[name],
                        np.exp(measured.tanh_log_norms[name][-1] / steps),
                        measured.radius[name],
                        measured.singular[name],
                        measured.condition[name],
                    )
                ),
            )
            for name in growth
        ],
    )
    nearest = {
        "spectral radius": measured.radius,
        "largest singular value": measured.singular,
        "condition number": measured.condition,
    }
    off = {
        what: max(abs(np.log(values[name] / growth[name])) for name in growth)
        for what, values in nearest.items()
    }
    best = min(off, key=lambda what: off[what])
    norms = {name: np.exp(values) for name, values in measured.log_norms.items()}
    return Report(
        [beside("Powers of a non-normal matrix", rows), table],
        [
            f"The growth per step is closest to the {best}.",
            "A largest singular value above 1 allows growth and does not bring it "
            "about; a large condition number alone does neither.",
        ],
        plot_jacobian_norms(norms, factor="time step"),
    )
