"""Whether smoothness grows with the gradient: (L0, L1)-smoothness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..core.checks import require_integer, require_number
from ..core.dtypes import accumulation_dtype, safe_divisor
from .vectors import real_array

LEAST_POINTS = 10
LEAST_R2 = 0.5
ZOOMS = 4  # 1,001 points in each: (2 / 1,000)³ of the interval, beyond float32


class SmoothnessFit(NamedTuple):
    """A least-squares line through smoothness against gradient norm.

    Attributes:
        l0: the intercept, in units of the smoothness.
        l1: the slope, in units of smoothness per gradient norm.
        r2: the fraction of the variance that the line explains, at most 1.
        count: the number of points that were used.
        residuals: smoothness minus line, of shape ``[n]``; NaN for points left out.
        is_reliable: whether there is no `warning`.
    """

    l0: Float[Array, ""]
    l1: Float[Array, ""]
    r2: Float[Array, ""]
    count: Int[Array, ""]
    residuals: Float[Array, " n"]
    is_reliable: Bool[Array, ""]

    @property
    def warning(self) -> str:
        """Reasons to doubt the fit, as text; empty if none. Waits for the device."""
        # Negated, so that NaN is warned of.
        complaints = {
            f"{int(self.count)} points, fewer than {LEAST_POINTS}": self.count
            < LEAST_POINTS,
            f"R² {float(self.r2):.2f}, below {LEAST_R2}": ~(self.r2 >= LEAST_R2),
            f"slope {float(self.l1):.3g}, not positive": ~(self.l1 > 0),
            f"intercept {float(self.l0):.3g}, negative": ~(self.l0 >= 0),
        }
        return "; ".join(text for text, is_true in complaints.items() if is_true)


def fit_smoothness(norms: Any, smoothness: Any) -> SmoothnessFit:
    r"""Fit the line L ≈ L0 + L1 ‖g‖ to measured gradient norms and smoothness.

    .. math:: \min_{L_0, L_1} \sum_t (L_t - L_0 - L_1 \lVert g_t \rVert)^2

    The line describes a mean. It is not a bound: about half of the points lie above it.
    ``warning`` lists reasons to doubt the fit: fewer than 10 points, an R² below 0.5, a
    slope that is not positive, a negative intercept. The function works under ``jit``,
    where ``is_reliable`` stands for the text.

    | input | result |
    |---|---|
    | a point with NaN or inf | left out |
    | fewer than two points, or equal norms | l0, l1, r2 NaN |
    | equal smoothness at all points | l1 0, r2 NaN |

    Args:
        norms: gradient norms, of shape ``[n]``.
        smoothness: estimates at the same points, of shape ``[n]``; those of
            `local_smoothness`.

    Returns:
        A `SmoothnessFit` of float32 (float64 for float64 input).

    Raises:
        TypeError: an argument is not an array of real numbers.
        ValueError: an argument has another shape.

    Example:
        >>> import numpy as np
        >>> from clipjax.diagnostics import fit_smoothness
        >>> norms = np.linspace(0, 3, 20)
        >>> fit = fit_smoothness(norms, 2 + 5 * norms)
        >>> print(f"{fit.l0:.3f} {fit.l1:.3f} {fit.r2:.3f} {fit.warning!r}")
        2.000 5.000 1.000 ''
        >>> print(fit_smoothness(norms[:8], 2 - norms[:8]).warning)
        8 points, fewer than 10; slope -1, not positive

    References:
        Zhang, He, Sra, Jadbabaie, `Why gradient clipping accelerates training
        <https://arxiv.org/abs/1905.11881>`_, 2020, definition 1 and section 5.
    """
    norms, smoothness = real_array("norms", norms), real_array("smoothness", smoothness)
    if norms.ndim != 1 or norms.shape != smoothness.shape:
        raise ValueError(
            "norms and smoothness must have one shape [n], got "
            f"{norms.shape} and {smoothness.shape}"
        )
    dtype = accumulation_dtype([norms, smoothness])
    norms, smoothness = norms.astype(dtype), smoothness.astype(dtype)
    is_used = jnp.isfinite(norms) & jnp.isfinite(smoothness)
    count = jnp.sum(is_used)

    def centered(values: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return values minus mean, the mean, and the scale that both are in."""
        values = jnp.where(is_used, values, 0)
        scale = safe_divisor(jnp.max(jnp.abs(values), initial=0))
        values = values / scale  # squares of 1e20 are beyond float32
        mean = jnp.sum(values) / count.astype(dtype)
        return jnp.where(is_used, values - mean, 0), mean, scale

    x, mean_x, scale_x = centered(norms)
    y, mean_y, scale_y = centered(smoothness)
    slope = jnp.sum(x * y) / jnp.sum(x * x)
    left = y - slope * x
    l0 = (mean_y - slope * mean_x) * scale_y
    l1 = slope * (scale_y / scale_x)
    r2 = 1 - jnp.sum(left * left) / jnp.sum(y * y)
    residuals = jnp.where(is_used, left * scale_y, jnp.nan)
    is_reliable = (count >= LEAST_POINTS) & (r2 >= LEAST_R2) & (l1 > 0) & (l0 >= 0)
    return SmoothnessFit(l0, l1, r2, count, residuals, is_reliable)


class LeastL0(NamedTuple):
    """The least L0 for an L1.

    Attributes:
        l0: the constant, at least 0.
        location: the x at which it is needed. If that is an end of the interval, a
            wider interval may need a larger L0.
    """

    l0: Float[Array, ""]
    location: Float[Array, ""]


def least_l0(
    function: Callable[[jax.Array], jax.Array],
    l1: float | jax.Array,
    interval: tuple[float | jax.Array, float | jax.Array],
    *,
    points: int = 1001,
) -> LeastL0:
    r"""Return the least L0 for which a scalar function is (L0, L1)-smooth.

    .. math:: L_0 = \max_{x} \bigl(\lvert f''(x) \rvert - L_1 \lvert f'(x) \rvert\bigr)

    The maximum is over the interval: on evenly spaced points, and four times more
    around the largest of them. It is exact to float32 where the spacing separates the
    peaks. The function works under ``jit`` and ``vmap``.

    For x^p with p ≥ 2 it is :math:`p ((p - 2) / L_1)^{p - 2}`, at x = (p - 2) / L1.

    | input | result |
    |---|---|
    | an l1 so large that no L0 is needed | 0 |
    | a NaN on the interval, an inf | NaN, inf or NaN |
    | a kink, as of ReLU at 0 | the second derivative as JAX defines it |

    Args:
        function: a function of a real scalar that returns a real scalar.
        l1: L1, at least 0.
        interval: its lower and its upper end.
        points: evaluations per pass, at least 3.

    Returns:
        A `LeastL0` of scalars of JAX's default float dtype.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the ends are not in order.

    Example:
        >>> from clipjax.diagnostics import least_l0
        >>> found = least_l0(lambda x: x**4, 2.0, (-10.0, 10.0))
        >>> print(f"{found.l0:.4f} at |x| = {abs(found.location):.3f}")
        4.0000 at |x| = 1.000

    References:
        Zhang, He, Sra, Jadbabaie, `Why gradient clipping accelerates training
        <https://arxiv.org/abs/1905.11881>`_, 2020, definition 1.
    """
    require_number("l1", l1, infinite=False)
    require_integer("points", points, 3)
    for end in interval:
        require_number("interval", end, lowest=-float("inf"))
    low, high = interval
    is_known = not isinstance(low, jax.Array) and not isinstance(high, jax.Array)
    if is_known and not -float("inf") < low < high < float("inf"):
        raise ValueError(f"interval must be two finite ends in order, got {interval!r}")
    first = jax.grad(function)
    second = jax.grad(first)

    def needed(x: jax.Array) -> jax.Array:
        return jnp.abs(second(x)) - l1 * jnp.abs(first(x))

    def zoom(ends: Any, _: Any) -> tuple[Any, LeastL0]:
        low, high = ends
        grid = jnp.linspace(low, high, points)
        values = jax.vmap(needed)(grid)
        best = jnp.argmax(values)
        around = grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, points - 1)]
        return around, LeastL0(jnp.maximum(values[best], 0), grid[best])

    ends = jnp.asarray(low, float), jnp.asarray(high, float)
    _, found = jax.lax.scan(zoom, ends, length=ZOOMS + 1)
    # Later passes need not hold the best point of an earlier one to the last bit.
    best = jnp.argmax(found.l0)
    return jax.tree.map(lambda column: column[best], found)
