"""Growth of norms, and the two tests for explosion: of a record, and step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.diagnostics import (
    GrowthMonitor,
    clipped_descent,
    explosion,
    growth_factor,
)

RECORD = jax.jit(functools.partial(explosion, threshold=2.0))
MONITOR = GrowthMonitor()


def log_normal(runs, steps, correlation, spread=0.3, seed=0):
    """Gives stationary norms about 1 whose logarithms are an AR(1) process."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal((steps, runs))
    noise[1:] *= (1 - correlation**2) ** 0.5
    for step in range(1, steps):
        noise[step] += correlation * noise[step - 1]
    return np.exp(spread * noise.T)


@jax.jit
@jax.vmap
def flags(norms):
    return jax.lax.scan(MONITOR.update, MONITOR.init(), norms)[1].is_exploding


def watched(norms):
    return np.asarray(flags(jnp.asarray(norms, jnp.float32)))


@pytest.mark.parametrize("module", [np, jnp])
def test_growth_factor_is_the_slope_that_numpy_fits(module):
    norms = log_normal(1, 50, 0.0)[0] * 1.03 ** np.arange(50)
    norms[[3, 7, 20, 30]] = 0, np.inf, np.nan, -1
    usable = np.isfinite(norms) & (norms > 0)
    slope = np.polyfit(np.flatnonzero(usable), np.log(norms[usable]), 1)[0]
    found = growth_factor(module.asarray(norms))
    assert isinstance(found, jax.Array if module is jnp else np.floating)
    assert float(found) == pytest.approx(np.exp(slope), rel=1e-5)


@pytest.mark.parametrize("curvature", [2.2, 3.0, 1.0, 0.5])
def test_growth_factor_of_gradient_descent_on_a_quadratic(curvature):
    """|1 - ηL|, which is ηL - 1 from ηL = 1 on; at 1 the first step arrives."""
    rate = 0.5
    path = clipped_descent(lambda x: curvature / rate * x, 1e-3, rate, np.inf, 30)
    expected = abs(1 - curvature)
    found = growth_factor(jnp.abs(path.gradients))
    if expected:
        assert float(found) == pytest.approx(expected, rel=1e-4)
    else:
        assert np.isnan(found)  # all but one gradient are zero


def test_growth_factor_of_odd_records():
    for nothing in ([], [0.0, 1.0], [np.inf, np.nan, 3.0]):
        assert np.isnan(growth_factor(nothing))
    assert growth_factor([2, 4, 8]) == pytest.approx(2)
    assert float(growth_factor(jnp.array([2, 4, 8]))) == pytest.approx(2, rel=1e-6)
    assert growth_factor([1e-300, 1e300]) == np.inf
    assert growth_factor([5.0] * 9) == pytest.approx(1, abs=1e-12)


def test_explosion_is_what_its_equations_say():
    norms = log_normal(1, 330, 0.5)[0] * 1.002 ** np.arange(330)
    report = explosion(norms, 1.2, windows=16)
    windows = norms[330 % 16 :].reshape(16, -1)
    length, place = windows.shape[1], np.arange(16)
    for values, slope, score in (
        ((windows > 1.2).mean(1), report.exceedance_slope, report.exceedance_score),
        (np.log(windows).mean(1), report.log_slope, report.log_score),
    ):
        (fit, offset), covariance = np.polyfit(place, values, 1, cov=True)
        # NumPy divides the residuals by the same 16 - 2 degrees of freedom.
        assert slope == pytest.approx(fit / length)
        assert score == pytest.approx(fit / covariance[0, 0] ** 0.5)
    np.testing.assert_array_equal(report.exceedance, (windows > 1.2).mean(1))
    traced = jax.jit(explosion)(jnp.asarray(norms, jnp.float32), 1.2)
    for one, other in zip(traced, report, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3)


def test_explosion_is_silent_on_stationary_norms():
    """Measured on 4000 records: 1 alarm in 1000, 7 in 1000 with long correlation."""
    for correlation, most in ((0.0, 4), (0.95, 4), (0.98, 12)):
        records = log_normal(500, 1000, correlation)
        alarms = sum(explosion(norms, 1.5).is_exploding for norms in records)
        assert alarms <= most  # four or more times as many as expected


def test_explosion_fires():
    noise = log_normal(100, 320, 0.9)
    steps = np.arange(320)
    late = 1.05 ** np.maximum(steps - 160, 0)
    for growth in (1.02**steps, late):
        assert all(explosion(norms, np.inf).is_exploding for norms in noise * growth)
    # Without a trend in log n: more and more steps above the threshold.
    random = np.random.default_rng(0)
    spikes = np.where(random.random((100, 320)) < 0.5 * steps / 320, 5.0, 1.0)
    alarms = [explosion(norms, 2.0, least_growth=1e9).is_exploding for norms in spikes]
    assert np.mean(alarms) > 0.9
    ends = np.ones(320)
    ends[np.arange(320) % 20 < steps / 16] = np.nan
    report = explosion(ends, np.inf)
    assert report.is_exploding and report.log_slope == 0


def test_explosion_is_silent_where_there_is_no_explosion():
    constant, spike = np.full(100, 7.0), np.ones(100)
    spike[-1] = 1e30
    growing = log_normal(1, 1600, 0.0, 0.1)[0] * 1.9 ** (np.arange(1600) / 1600)
    for norms, threshold in ((constant, 8.0), (spike, 2.0), (1 / growing, 0.7)):
        report = explosion(norms, threshold)
        assert not report.is_exploding and report.log_score < 2
    report = explosion(growing, np.inf)  # a trend, but below a factor of two
    assert report.log_score > 10 and not report.is_exploding
    assert explosion(growing, np.inf, least_growth=1.5).is_exploding
    assert not explosion(growing, np.inf, least_growth=1.5, sigma=1e3).is_exploding
    for norms in (constant, np.full(100, 1e-30)):
        report = RECORD(jnp.asarray(norms, jnp.float32))  # rounding is no trend
        assert abs(float(report.log_score)) < 0.1
    tiny = np.exp(1e-5 * np.arange(100) / 100)  # a trend of less than a thousandth
    assert not explosion(tiny, np.inf, least_growth=1.0).is_exploding
    for nothing in (np.zeros(100), np.full(100, np.nan)):
        report = explosion(nothing, 1.0)
        assert report.log_slope == report.exceedance_slope == 0
        assert not report.is_exploding


def test_explosion_takes_a_threshold_for_each_step():
    norms = np.ones(64)
    report = explosion(norms, np.where(np.arange(64) < 40, 2.0, 0.5))
    np.testing.assert_array_equal(report.exceedance, np.arange(16) >= 10)
    assert isinstance(explosion(norms, jnp.float32(1)).log_slope, jax.Array)


@pytest.mark.parametrize(
    ("norms", "options", "message"),
    [
        (np.ones(31), {}, "at least two steps per window, 32 for windows=16, got 31"),
        (np.ones((2, 32)), {}, r"norms must have shape \(steps,\), got \(2, 32\)"),
        (np.ones(32, bool), {}, "norms must be real numbers, got dtype bool"),
        (["a"] * 32, {}, "norms must be real numbers"),
        (np.ones(32), {"threshold": np.ones(3)}, r"of shape \(32,\), got \(3,\)"),
        (np.ones(32), {"threshold": -1.0}, "threshold must be .* got -1"),
        (np.ones(32), {"windows": 3}, "windows must be an integer of at least 4"),
        (np.ones(32), {"sigma": -1.0}, "sigma must be"),
        (np.ones(32), {"least_growth": 0.5}, "least_growth must be"),
    ],
)
def test_explosion_refuses(norms, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        explosion(norms, **({"threshold": 1.0} | options))


def test_the_monitor_fits_a_weighted_line():
    norms = log_normal(1, 60, 0.0)[0] * 1.02 ** np.arange(60)
    norms[[0, 10, 30, 59]] = 0, np.inf, np.nan, 0
    monitor = GrowthMonitor(memory=20)
    _, growth = jax.lax.scan(monitor.update, monitor.init(), jnp.asarray(norms))
    for last in (1, 8, 40, 59):
        usable = np.flatnonzero(
            np.isfinite(norms[: last + 1]) & (norms[: last + 1] > 0)
        )
        if len(usable) < 2:
            assert growth.log_slope[last] == 0
            continue
        weights = (1 - 1 / 20) ** ((last - usable) / 2)  # polyfit squares them
        slope = np.polyfit(usable, np.log(norms[usable]), 1, w=weights)[0]
        assert float(growth.log_slope[last]) == pytest.approx(slope, rel=1e-3)


def test_the_monitor_is_silent_on_stationary_norms():
    """Measured on 500 runs of 5000 steps: no alarm, and 2 % with a spread of 1."""
    for correlation, spread, most in ((0.0, 0.3, 0), (0.9, 0.3, 0), (0.9, 1.0, 4)):
        alarms = watched(log_normal(100, 1000, correlation, spread)).any(1)
        assert np.sum(alarms) <= most
    odd = np.ones((100, 1000))
    odd[0, 500] = 1e30
    odd[1, 400:] = np.nan
    odd[2] = 0
    odd[3] = 1.005 ** -np.arange(1000)
    assert not watched(odd).any()


def test_the_monitor_fires_soon_and_stays_on():
    norms = log_normal(100, 1000, 0.0)
    norms[:, 600:] *= 1.05 ** np.arange(400)
    fired = watched(norms)
    assert not fired[:, :600].any()
    first = fired.argmax(1) - 600
    assert np.median(first) == pytest.approx(65, abs=5)  # the number in its docstring
    assert fired[:, 700:].all()
    from_the_start = watched(log_normal(100, 1000, 0.9) * 1.02 ** np.arange(1000))
    assert not from_the_start[:, :199].any()  # minimum_history
    assert from_the_start[:, 300:].all()


def test_the_state_of_the_monitor_has_a_fixed_form():
    for dtype in (jnp.float32, jnp.bfloat16):
        state = MONITOR.init(dtype)
        new = jax.eval_shape(lambda s: MONITOR.update(s, 1.0)[0], state)
        same = jax.tree.map(
            lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, new
        )
        assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 1}, "memory must be an integer of at least 2, got 1"),
        ({"sigma": -1.0}, "sigma must be"),
        ({"least_growth": 0.9}, "least_growth must be"),
        ({"minimum_history": 2}, "minimum_history must be an integer of at least 3"),
    ],
)
def test_the_monitor_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        GrowthMonitor(**options)
