"""Forward Euler steps of a stable system that diverge: depth as time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...diagnostics import jacobian_product_report, jacobian_report
from ...plotting import plot_lines
from ..options import Whole
from .arguments import require
from .base import Report, beside, number

SYSTEMS = {
    "diag(-1, -100)": np.array([[-1.0, 0.0], [0.0, -100.0]]),
    # Eigenvalues -1 ± 10 i.
    "oscillating": np.array([[-1.0, 10.0], [-10.0, -1.0]]),
}


class Measured(NamedTuple):
    """Steps x + h A x, by system.

    Attributes:
        sizes: `(sizes,)`, step sizes h.
        radius: by system `(sizes,)`, spectral radius of I + h A.
        limit: by system, the largest h that does not diverge, found by bisection.
        theory: by system, the smallest -2 Re(λ) / |λ|² of its eigenvalues λ.
        steps: number of steps of the products.
        log_norm: by system `(sizes,)`, log of the norm of that many steps' product,
            which is also the Jacobian of a residual net of that depth.
    """

    sizes: np.ndarray
    radius: dict[str, np.ndarray]
    limit: dict[str, float]
    theory: dict[str, float]
    steps: int
    log_norm: dict[str, np.ndarray]


def measure(*, steps: int = 100) -> Measured:
    """Vary the step size h.

    Args:
        steps: number of Euler steps, or layers, of each product.
    """
    require(Whole(), steps=steps)
    sizes = np.array([0.003, 0.005, 0.01, 0.015, 0.019, 0.02, 0.021, 0.025, 0.03, 0.05])
    start, nothing = jnp.ones(2), jnp.zeros(steps)

    @jax.jit
    def at(matrix: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
        def advance(x: jax.Array, _: jax.Array | None = None) -> jax.Array:
            return x + size * (matrix @ x)

        radius = jacobian_report(advance, start).spectral_radius
        return radius, jacobian_product_report(advance, start, nothing).log_norms[-1]

    def bisect(matrix: np.ndarray) -> float:
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            if at(jnp.float32(matrix), jnp.float32(middle))[0] <= 1:
                low = middle
            else:
                high = middle
        return low

    radius, log_norm, limit, theory = {}, {}, {}, {}
    for name, matrix in SYSTEMS.items():
        found = [at(jnp.float32(matrix), jnp.float32(size)) for size in sizes]
        radius[name], log_norm[name] = np.asarray(found, np.float64).T
        limit[name] = bisect(matrix)
        values = np.linalg.eigvals(matrix)
        theory[name] = float((-2 * values.real / np.abs(values) ** 2).min())
    return Measured(sizes, radius, limit, theory, steps, log_norm)


def report(measured: Measured) -> Report:
    """Radii next to reported ones, and the largest stable steps."""
    sizes = list(measured.sizes)
    stiff = "diag(-1, -100)"
    rows = [
        (f"spectral radius, {stiff}, h = {size}", said, measured.radius[stiff][place])
        for size, said in ((0.03, "2.0"), (0.019, ".981"))
        for place in [sizes.index(size)]
    ]
    rows += [
        (f"largest h, {name}", number(measured.theory[name]), limit)
        for name, limit in measured.limit.items()
    ]
    rows += [
        (
            f"norm of {measured.steps} steps, {stiff}, h = {size}",
            None,
            np.exp(measured.log_norm[stiff][sizes.index(size)]),
        )
        for size in (0.019, 0.03)
    ]
    figure = plot_lines(
        {name: np.exp(values) for name, values in measured.log_norm.items()},
        measured.sizes,
        x_label="step size h",
        y_label=f"norm of {measured.steps} steps",
        title="Forward Euler of stable systems",
        is_log=(True, True),
        level=1.0,
    )
    off = max(
        abs(measured.limit[name] / theory - 1)
        for name, theory in measured.theory.items()
    )
    return Report(
        [beside("Forward Euler beside its theory", rows)],
        [
            "Both systems decay, whatever the starting point. Their Euler steps "
            "multiply gradients without bound where h exceeds -2 Re(λ) / |λ|² for an "
            f"eigenvalue λ; the bisection differs from it by {number(off)} of it at "
            "most.",
            "A residual layer x + f(x) is such a step with h = 1.",
        ],
        figure,
    )
