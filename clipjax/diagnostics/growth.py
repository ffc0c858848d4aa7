"""Growth of gradient norms: its factor per step, and a test for explosion.

The functions accept NumPy arrays, which they compute with on the host in float64, and
JAX arrays, traced or not.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from ..core.checks import require_integer, require_number
from ..core.dtypes import accumulation_dtype

# Scatter below a thousandth of the norm counts as a thousandth, so that the rounding of
# a constant norm is no trend. `thresholds.mean_plus_std` has the same limit.
LEAST_SCATTER = 1e-3


class Explosion(NamedTuple):
    """The trends of recorded norms, and whether they explode; see `explosion`.

    Attributes:
        exceedance: fraction of the steps of each window with a norm above the
            threshold, or with NaN or inf, shape ``(windows,)``.
        exceedance_slope: change of that fraction per step.
        exceedance_score: that slope in units of its standard error.
        log_slope: change of the logarithm of the norm per step.
        log_score: that slope in units of its standard error.
        is_exploding: whether either trend is an explosion.
    """

    exceedance: Float[Array, " windows"] | np.ndarray
    exceedance_slope: Float[Array, ""] | np.ndarray
    exceedance_score: Float[Array, ""] | np.ndarray
    log_slope: Float[Array, ""] | np.ndarray
    log_score: Float[Array, ""] | np.ndarray
    is_exploding: Bool[Array, ""] | np.ndarray


def growth_factor(norms: ArrayLike) -> Any:
    r"""Return the factor α by which norms grow per step, n(t+1) ≈ α·n(t).

    .. math:: \alpha = \exp \frac{\sum_t (t - \bar t) \log n_t}{\sum_t (t - \bar t)^2}

    The exponent is the slope of the least-squares line through log n. For gradient
    descent with learning rate η on a quadratic of curvature L, α is the spectral radius
    \|1 - ηL\|: above 1, and equal to ηL - 1, for ηL > 2.

    | input | result |
    |---|---|
    | norms that are zero, NaN or inf | left out; other steps keep their place |
    | fewer than two other norms | NaN |

    Args:
        norms: the norms of consecutive steps, shape ``(steps,)``.

    Returns:
        A scalar: float64 for NumPy arrays and lists; for JAX arrays, which may be
        traced, float32, or float64 if they are.

    Raises:
        TypeError: norms are not real numbers.
        ValueError: norms do not have one axis.

    Example:
        >>> import clipjax
        >>> print(f"{clipjax.diagnostics.growth_factor([1.0, 2.0, 4.0, 8.0]):.3f}")
        2.000

    References:
        Pascanu, Mikolov, Bengio, `On the difficulty of training recurrent neural
        networks <https://arxiv.org/abs/1211.5063>`_, 2013, for norms that grow by a
        factor per step.
    """
    on_device = isinstance(norms, jax.Array)
    numpy: Any = jnp if on_device else np
    record: Any = as_record(norms, on_device)
    logs, is_usable = _logs(numpy, record)
    slope, _, count = _line(numpy, logs, is_usable, LEAST_SCATTER)
    with np.errstate(over="ignore"):  # inf is the right answer
        return numpy.exp(numpy.where(count < 2, numpy.nan, slope))


def explosion(
    norms: ArrayLike,
    threshold: float | np.ndarray | jax.Array,
    *,
    windows: int = 16,
    sigma: float = 4.0,
    least_growth: float = 2.0,
) -> Explosion:
    r"""Test whether gradient norms explode along a record.

    A run explodes if the probability that its norm exceeds the threshold increases, or
    if its norm grows exponentially. The record is cut into windows of equal length. For
    the fraction of steps above the threshold, and for the mean of log n, a line is
    fitted through the values of the windows. Its slope :math:`b` counts as a trend if

    .. math:: b > \sigma \, s, \qquad
        s^2 = \frac{1}{W - 2} \frac{\sum_w r_w^2}{\sum_w (w - \bar w)^2}

    with residuals :math:`r_w`. Correlation between steps within a window widens the
    scatter of windows, and so is accounted for; correlation over longer times than a
    window is not, and looks like a trend. A trend of log n must also add up to
    ``least_growth`` over the record, since a drift of a few percent is no explosion.

    Over 16 windows and at 4 standard errors, stationary norms raised a false alarm in
    about 1 of 1000 records of 1000 steps, with correlation times of up to 20 steps,
    which are a third of a window; at 50 steps in 7, at 100 steps in 24.

    | input | result |
    |---|---|
    | NaN or inf | exceeds the threshold; left out of log n |
    | zero | below the threshold; left out of log n |
    | constant norms | scores 0 |
    | a single spike, however high | no explosion: scores below 2 |
    | all steps above the threshold | exceedance_slope 0; log_slope decides |
    | threshold inf | only NaN and inf exceed it |
    | fewer than three windows with a usable norm | log_slope and log_score 0 |

    Args:
        norms: the norms of consecutive steps before the clip, shape ``(steps,)``, at
            least two steps per window. Steps at the start that fill no window are left
            out. Pass the latest steps to ask about them alone.
        threshold: the threshold in the units of the norm: a number, or one for each
            step, shape ``(steps,)``.
        windows: the number of windows, at least 4.
        sigma: the number of standard errors that makes a trend.
        least_growth: the factor over the whole record from which on a trend of log n is
            an explosion; 1 for any significant growth.

    Returns:
        An `Explosion` of arrays: NumPy's if both inputs are, else JAX's.

    Raises:
        TypeError: an argument is not a real number.
        ValueError: an argument is out of range, or the record is too short.

    Example:
        >>> import clipjax, numpy as np
        >>> noise = np.exp(0.2 * np.random.default_rng(0).standard_normal(1000))
        >>> growing = noise * 1.01 ** np.arange(1000)
        >>> for name, norms in ("level", noise), ("grows", growing):
        ...     report = clipjax.diagnostics.explosion(norms, threshold=2.0)
        ...     print(name, report.is_exploding, f"{np.exp(report.log_slope):.3f}")
        level False 1.000
        grows True 1.010
    """
    require_integer("windows", windows, 4)
    require_number("sigma", sigma, infinite=False)
    require_number("least_growth", least_growth, lowest=1.0, infinite=False)
    require_number("threshold", threshold)
    on_device = any(isinstance(given, jax.Array) for given in (norms, threshold))
    numpy: Any = jnp if on_device else np
    record: Any = as_record(norms, on_device)
    limit = numpy.asarray(threshold, record.dtype)
    if limit.shape not in ((), record.shape):
        raise ValueError(
            "threshold must be a number, or one for each norm, of shape "
            f"{record.shape}, got {limit.shape}"
        )
    length = record.size // windows
    if length < 2:
        raise ValueError(
            f"norms must have at least two steps per window, {2 * windows} for "
            f"{windows=}, got {record.size}"
        )
    start = record.size - windows * length
    logs, is_usable = _logs(numpy, record)
    exceeds = ((record > limit) | ~numpy.isfinite(record)).astype(record.dtype)
    logs, is_usable, exceeds = (
        each[start:].reshape(windows, length) for each in (logs, is_usable, exceeds)
    )
    fractions = numpy.mean(exceeds, axis=1)
    every = numpy.ones(windows, bool)
    # The resolution of a fraction is one step of the window.
    rise, error, _ = _line(numpy, fractions, every, 1 / length)
    known = numpy.sum(is_usable, axis=1)
    means = numpy.sum(logs, axis=1) / numpy.maximum(known, 1).astype(record.dtype)
    slope, slope_error, count = _line(numpy, means, known > 0, LEAST_SCATTER)
    slope = numpy.where(count < 3, 0, slope)
    rises = rise > sigma * error
    grows = (slope > sigma * slope_error) & (slope * windows >= math.log(least_growth))
    return Explosion(
        exceedance=fractions,
        exceedance_slope=rise / length,
        exceedance_score=rise / error,
        log_slope=slope / length,
        log_score=slope / slope_error,
        is_exploding=rises | grows,
    )


def as_record(norms: Any, on_device: bool) -> Any:
    """Return recorded norms as float64 of NumPy, or as a wide JAX array.

    Raises:
        TypeError: norms are not real numbers.
        ValueError: norms do not have one axis.
    """
    record = norms if isinstance(norms, jax.Array) else np.asarray(norms)
    is_integer = jnp.issubdtype(record.dtype, np.integer)
    if not (is_integer or jnp.issubdtype(record.dtype, np.floating)):
        raise TypeError(f"norms must be real numbers, got dtype {record.dtype}")
    if record.ndim != 1:
        raise ValueError(f"norms must have shape (steps,), got {record.shape}")
    if not on_device:
        return np.asarray(record).astype(np.float64)
    record = jnp.asarray(record)
    return record.astype(np.float32 if is_integer else accumulation_dtype([record]))


def _logs(numpy: Any, norms: Any) -> tuple[Any, Any]:
    """Return log n, 0 where a norm is not usable, and which norms are."""
    is_usable = (norms > 0) & (norms < numpy.inf)
    return numpy.log(numpy.where(is_usable, norms, 1)), is_usable


def _line(numpy: Any, values: Any, is_known: Any, least_scatter: float) -> Any:
    """Fit a line through values at 0, 1, ….

    Args:
        numpy: NumPy or ``jax.numpy``.
        values: the values, shape ``(points,)``.
        is_known: which of them count.
        least_scatter: the least standard deviation of residuals.

    Returns:
        The slope (0 for fewer than two points), its standard error, and the number of
        points.
    """
    weight = is_known.astype(values.dtype)
    count = numpy.sum(weight)
    divisor = numpy.maximum(count, 1)
    place = numpy.arange(values.size).astype(values.dtype)
    place = place - numpy.sum(weight * place) / divisor
    values = values - numpy.sum(weight * values) / divisor
    spread = numpy.maximum(numpy.sum(weight * place * place), 0.5)  # two points have it
    slope = numpy.sum(weight * place * values) / spread
    residuals = weight * (values - slope * place)
    variance = numpy.sum(residuals * residuals) / numpy.maximum(count - 2, 1)
    scatter = numpy.maximum(numpy.sqrt(variance), least_scatter)
    return slope, scatter / numpy.sqrt(spread), count
