"""Probes of biased gradients and of gradients with heavy tails."""

import numpy as np
import pytest

from clipjax.demos.probes import (
    alarms,
    bias,
    heavy_tails,
    implicit_penalty,
    minimizers,
    per_worker,
    quantization,
    threshold_traps,
    weight_decay,
)


def test_smaller_thresholds_give_lower_losses_under_heavy_tails():
    found = heavy_tails.measure(repeats=1, seeds=5, steps=1000)
    medians = np.median(found.tail_mean[:, 0], axis=1)
    assert found.thresholds[0] == np.inf
    assert np.all(np.diff(medians[:6]) < 0)  # down to C = 1
    np.testing.assert_allclose(medians[1:6], [13.7, 6.3, 2.6, 0.83, 0.25], rtol=0.25)
    assert medians[0] > 15
    # In 1000 steps of 0.01, the smallest threshold has not come down from f = 10.
    assert 1 < medians[-1] < found.early[-1].min() < 10
    report = heavy_tails.report(found)
    assert "Still falling" in report.findings[0] and "C = 0.1" in report.findings[0]


def test_workers_that_differ():
    found = per_worker.measure(seeds=1, draws=40)
    by_worker, of_mean = found.cosine[:, 0, :, 0], found.cosine[:, 1, :, 0]
    np.testing.assert_allclose(found.opposed, [0, 1], atol=1e-6)
    for values in (by_worker[:, 0], of_mean[:, 0], found.norm[:, :, 0]):
        np.testing.assert_allclose(values, 1, rtol=1e-5)  # all workers alike
    # Eight own parts of length h average to h/√8, orthogonal to the shared part.
    expected = 1 / np.sqrt(1 + found.heterogeneity**2 / 8)
    np.testing.assert_allclose(of_mean[0], expected, atol=0.03)
    np.testing.assert_allclose(by_worker[0], expected, atol=0.03)
    assert np.all(by_worker[1, 2:] > of_mean[1, 2:] + 0.1)  # outliers
    np.testing.assert_allclose(found.norm[:, 1], 1, rtol=1e-5)
    assert np.all(found.norm[:, 0, 2:] < 0.8)
    assert "10 and -1 average to 0" in per_worker.report(found).findings[1]


def test_what_int8_keeps():
    found = quantization.measure(seeds=1, entries=20_000)
    gaussian, tail, outlier = found.cosine[..., 0]
    permille = found.shares.tolist().index(1e-3)
    assert gaussian[0] > 0.9998 and gaussian[-1] == gaussian[0]
    assert tail[permille] < tail[0] - 1e-3
    assert outlier[0] > 0.95 > outlier[permille] + 0.1
    nonzero = found.nonzero[2, :, 0]
    assert nonzero[0] < 0.01 and nonzero[permille] > 0.98
    findings = quantization.report(found).findings
    assert "lowers the cosine for: Student t3, one outlier" in findings[0]


@pytest.mark.parametrize(
    ("probe", "arguments", "message"),
    [
        (alarms, {"steps": 99}, "steps must be a whole number from 100 .*, got 99"),
        (bias, {"examples": 100}, "examples must be a multiple of 64, got 100"),
        (bias, {"seeds": 1.5}, "seeds must be a whole number .*, got 1.5"),
        (heavy_tails, {"learning_rate": 0.0}, "learning_rate must be .* got 0.0"),
        (implicit_penalty, {"threshold": np.inf}, "threshold must be a finite .* inf"),
        (minimizers, {"equations": 4}, "equations must be .* from 5 .*, got 4"),
        (per_worker, {"workers": 0}, "workers must be .* from 1 .*, got 0"),
        (quantization, {"entries": 1}, "entries must be .* from 2 .*, got 1"),
        (threshold_traps, {"spike": -1.0}, "spike must be .* above 0 .*, got -1.0"),
        (weight_decay, {"penalty": 10.0}, "penalty must be below 1, got 0.1 · 10.0"),
    ],
)
def test_numbers_that_are_refused(probe, arguments, message):
    with pytest.raises(ValueError, match=message):
        probe.measure(**arguments)
