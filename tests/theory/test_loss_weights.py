"""Thresholds that depend on the time step of a diffusion."""

import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.demos.probes import loss_weights


@pytest.fixture(scope="module")
def measured():
    return loss_weights.measure(seeds=1, times=6, threshold=0.02)


def test_a_threshold_by_time_acts_on_the_unweighted_gradient(measured):
    """C11, B83: c0/v(t) before the weighting is the constant c0 after it."""
    for found in (measured.schedule, measured.given):
        assert found.difference.max() < 1e-5
        np.testing.assert_allclose(found.by_unweighted, found.by_constant, rtol=1e-5)
        expected = np.minimum(found.weighted, measured.threshold)
        np.testing.assert_allclose(found.by_unweighted, expected, rtol=1e-3)


def test_on_the_weighted_gradient_it_overcorrects(measured):
    """C11, B83: clipped at c0/v(t), the weighted gradient is shorter by v."""
    weights = np.array(loss_weights.GIVEN)
    expected = np.minimum(measured.given.weighted[0], measured.threshold / weights)
    np.testing.assert_allclose(measured.given.by_weighted[0], expected, rtol=1e-3)
    relative = measured.given.by_weighted[0] / measured.threshold
    np.testing.assert_allclose(relative[1:], [1, 0.1, 0.01], rtol=1e-3)


def test_the_clip_of_a_mixed_batch_equalizes_nothing(measured):
    """B83: it takes a clip of each example; that of their sum keeps their ratios."""
    weighted = jnp.asarray(measured.schedule.weighted[0])
    factor = 0.1 / jnp.sqrt(jnp.sum(jnp.square(weighted)))
    ratio = np.ptp(np.log(weighted * factor))
    assert ratio == pytest.approx(np.ptp(np.log(weighted)), rel=1e-4)
    assert ratio > 1 > np.ptp(np.log(measured.schedule.by_constant))


def test_the_weights_are_those_of_the_variational_bound():
    """B83: they grow as t falls, with the signal; the simple loss has none."""
    weights, share = loss_weights.bound_weights(np.array([1, 1000]))
    beta = np.array([1e-4, 0.02])
    assert share[0] == pytest.approx(1 - 1e-4)
    np.testing.assert_allclose(weights, beta / (2 * (1 - beta) * (1 - share)))
    assert weights[0] > 40 * weights[1]
    with pytest.raises(ValueError, match="seeds must be a whole number"):
        loss_weights.measure(seeds=0)
