"""Rules of thumb for thresholds and alarms, and moving averages as thresholds."""

import numpy as np
import pytest

from clipjax import rules
from clipjax.demos.probes import alarms, threshold_traps
from clipjax.diagnostics import clipped_descent, growth_factor, over_clipping


@pytest.fixture(scope="module")
def counted():
    return alarms.measure(seeds=20)


def test_half_the_99_percent_quantile_clips_few_steps_or_all(counted):
    """C23, B61: from 100 % to 5 % of the steps by spread, without an alarm."""
    clipped = counted.clipped[0].mean(axis=1)
    np.testing.assert_allclose(clipped, [1.0, 0.67, 0.175, 0.05], atol=0.02)
    assert np.all(np.diff(clipped) < 0)
    # Ratios below one half are those of norms above g99, at any spread.
    np.testing.assert_allclose(counted.low[0].mean(axis=1), 0.01, atol=0.003)
    assert counted.ratio[0, 0].mean() == pytest.approx(0.63, abs=0.01)
    assert not counted.alarm.any()


def test_the_largest_norm_practically_never_clips(counted):
    """C23, B31: C = M clips 1 step in 1000 after as many, 1.5 M still fewer."""
    wide = counted.clipped[:, 2].mean(axis=1)
    assert 2e-4 < wide[1] < 2e-3
    assert wide[2] < 3e-4


def test_a_low_ratio_is_an_alarm_for_hard_clips_only(counted):
    """C23, B60: a soft ratio is below one half whenever the norm is above γ."""
    soft = counted.soft_ratio
    assert np.all(soft[0] < 0.5)  # every norm is above γ, though near it
    norm = np.float32([0.5, 0.999, 1.001, 2.0])
    ratios = np.asarray(rules.soft.factor(norm, np.float32(1)))
    np.testing.assert_array_equal(ratios < 0.5, norm > 1)
    assert not over_clipping(rules.soft, soft[0]).is_over_clipping
    assert over_clipping(rules.hard, soft[0]).is_over_clipping
    assert not over_clipping(rules.hard, soft[0], optimizer="adam").is_over_clipping


@pytest.fixture(scope="module")
def traps():
    return threshold_traps.measure(seeds=2)


def test_averages_of_clipped_norms_collapse_with_small_multipliers(traps):
    """C33: k ≤ 1 sinks to zero; k > 1, or a floor, does not."""
    assert traps.multipliers.tolist() == [0.5, 0.9, 1.0, 1.5]
    reported = [3e-7, 0.046, 0.60, 1.07]
    np.testing.assert_allclose(traps.plain.mean(axis=1), reported, rtol=0.3)
    half, ninth, one, above = traps.collapse[:, :, -1]
    assert np.all(half < 1e-6) and np.all(ninth < 0.05) and np.all(one < 0.6)
    np.testing.assert_allclose(above, traps.means, rtol=0.1)
    np.testing.assert_allclose(traps.floored[:3], 0.7, rtol=1e-6)
    assert np.all(traps.floored[3] > 1.4)


def test_one_spike_lifts_an_average_of_raw_norms(traps):
    """C33: by a factor of 10⁴ for hundreds of steps; others hardly move."""
    middle = traps.spiked.shape[2] // 2
    before, after = traps.spiked[:, :, middle], traps.spiked[:, :, middle + 1]
    np.testing.assert_allclose(before[0], 2.1, rtol=0.05)
    np.testing.assert_allclose(after[0], 2e4, rtol=0.01)
    raw = traps.spiked[0, :, middle + 1 :]
    assert np.all((raw > 10 * before[0][:, None]).sum(axis=1) > 500)
    np.testing.assert_allclose(after[1:], before[1:], rtol=0.1)


def test_growth_is_linear_only_on_quadratics():
    """B32: n grows by α = ηL - 1 on a quadratic, and faster on a quartic."""
    path = clipped_descent(lambda x: 2.5 * x, 1.0, 1.0, np.inf, 20).gradients
    assert growth_factor(np.abs(path)) == pytest.approx(1.5, rel=1e-5)
    path = clipped_descent(lambda x: x**3, 10.0, 0.1, np.inf, 3).gradients
    ratios = np.abs(path[1:] / path[:-1]).astype(np.float64)
    assert ratios[0] == pytest.approx(729, rel=1e-5)
    np.testing.assert_allclose(ratios[1], 5e8, rtol=0.1)
    assert ratios[2] > 1e25


def test_the_reports_of_both_probes(counted, traps):
    assert "sounds in 0 of 80 runs" in alarms.report(counted).findings[0]
    findings = threshold_traps.report(traps).findings
    assert "for: k = 0.5, k = 0.9, k = 1. Each" in findings[1]
