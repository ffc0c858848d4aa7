"""Where clipped gradient descent ends, and where it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import cosine

import clipjax
from clipjax.demos.probes import bias, minimizers


@pytest.fixture(scope="module")
def limits():
    return bias.measure(seeds=2, examples=2048)


def test_clips_of_single_examples_and_small_batches_move_the_limit(limits):
    """C9, B25: a full-batch clip keeps a unique minimizer, a clip of examples not."""
    assert limits.thresholds.tolist() == [2.0, 1.0, 0.5, 0.1]
    np.testing.assert_allclose(limits.means, 1, atol=2e-3)
    whole = limits.limits[-1]
    np.testing.assert_allclose(whole, np.broadcast_to(limits.means, (4, 2)), atol=1e-5)
    # The root of 1 - x = exp(-x - C) for x < C: Lambert's function.
    reported = [0.949, 0.842, 0.735, 0.695]
    np.testing.assert_allclose(limits.exact, reported, atol=2e-3)
    for x, threshold in zip(limits.exact[:2], limits.thresholds[:2], strict=True):
        assert 1 - x == pytest.approx(np.exp(-x - threshold), rel=1e-9)
    single = limits.limits[0]
    np.testing.assert_allclose(single.mean(axis=1), limits.exact, atol=5e-4)
    # Means of eight examples: less, in the same direction, with a small threshold.
    assert np.all(limits.limits[1, -1] < 0.98) and np.all(single[-1] < 0.7)


def test_two_points_whose_clipped_mean_has_the_wrong_sign(limits):
    """B10: norm clipping of stochastic gradients is biased, even in its sign."""
    np.testing.assert_allclose(limits.two_point, [0.1, -0.8], rtol=1e-4)


def test_a_clip_keeps_the_direction_of_the_minibatch_only():
    """B8: the clipped gradient of a minibatch is as far off as the raw one."""
    full, batch = jnp.array([1.0, 0.0]), jnp.array([3.0, 4.0])
    after = jax.jit(clipjax.project_onto_ball)(batch, 1.0)
    assert cosine(full, after) == pytest.approx(cosine(full, batch), rel=1e-6)
    assert cosine(full, after) == pytest.approx(0.6)


def test_which_minimizer_an_underdetermined_problem_reaches():
    """C9, B25: clips with one factor reach the minimizer of least norm, others not."""
    found = minimizers.measure(seeds=2, equations=10, steps=600)
    ends = dict(zip(found.clips, found.distance[:, :, -1], strict=True))
    for name in ("none", "hard", "soft"):
        assert np.all(ends[name] < 1e-4)
    for name in ("value", "block-wise"):
        assert np.all(ends[name] > 0.1)
    assert np.all(found.residual < 1e-5)  # all of them solve the equations
    lengths = dict(zip(found.clips, found.length, strict=True))
    assert np.all(lengths["value"] > 1.01) and np.all(lengths["hard"] < 1 + 1e-5)
    findings = minimizers.report(found).findings
    assert "Ends elsewhere: value, block-wise" in findings[0]


def test_the_report_of_bias(limits):
    report = bias.report(limits)
    assert report.tables[0].rows[0][:2] == ("each example clipped, C = 2", "0.949")
    assert "has the wrong sign" in report.findings[-1]
