"""Which learning rates and speeds a clip allows."""

import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax.demos.probes import newton, rates
from clipjax.demos.probes.paths import tune


@pytest.fixture(scope="module")
def measured():
    return rates.measure(steps=1500, starts=4, grid=7)


def test_a_clip_does_not_raise_the_rates_that_converge(measured):
    """C22, B24: on x²/2 the limit stays η = 2; beyond it paths are finite but stuck."""
    none, *clips = measured.loss
    is_stable = measured.rates < 2
    for loss in (none, *clips):
        assert loss[is_stable].max() < 1e-6
    assert not np.isfinite(none[measured.rates > 2.05]).any()
    for loss, threshold in zip(clips, measured.thresholds[1:], strict=True):
        beyond = loss[~is_stable]
        assert np.isfinite(beyond).all()
        eta = measured.rates[~is_stable, None]
        assert (np.sqrt(2 * beyond) <= eta * threshold * (1 + 1e-5)).all()
        # The mean over starts: a single start may meet the minimum by chance.
        assert (beyond.mean(axis=1) > 0.25 * threshold**2).all()


def test_where_a_clip_is_stuck_depends_on_its_rate_and_threshold(measured):
    """B24: stuck near 0.53 for η = 2.1, C = 1, and a hundredth of it for C = 0.1."""
    at = measured.rates.tolist().index(2.1)
    assert np.abs(measured.loss[1, at] - 0.55).max() < 0.06
    np.testing.assert_allclose(measured.loss[2, at], 0.0055, atol=0.0006)


def test_a_clip_accelerates_only_where_curvature_grows_with_the_gradient(measured):
    """C31, B14, B24: faster on x⁴ and cosh, and not on quadratics, all tuned."""
    steps = {
        name: [best.steps for best in found.values()]
        for name, found in measured.tuned.items()
    }
    for name in ("x⁴", "cosh(x)"):
        none, hard, soft = steps[name]
        assert max(hard, soft) < none / 10
    for name in ("x²/2", "x²/2 + y²/20"):
        none, hard, soft = steps[name]
        assert none <= min(hard, soft)


def test_a_finite_smoothness_does_not_exclude_a_gain():
    """C31, B14: on quadratics there is no gain; on other L-smooth functions there is.

    cosh between −6 and 6, continued by parabolas, is L-smooth with L = cosh 6 = 202.
    What decides is whether the curvature grows with the gradient where the path goes.
    """

    def gradient(x):
        inside = jnp.clip(x, -6, 6)
        return jnp.sinh(inside) + jnp.cosh(6.0) * (x - inside)

    none, clipped = (
        tune(
            gradient,
            np.array([4.0, 6.0]),
            rates=np.geomspace(1e-3, 1, 13),
            thresholds=np.array(thresholds),
            limit=0.1,
            steps=1500,
        )
        for thresholds in ([np.inf], [0.3, 1.0, 3.0])
    )
    assert clipped.steps < none.steps / 10 < np.inf


def test_tuning_finds_the_known_best_rate():
    """B16: of many rates the best on x²/2 is 1/L = 1, in one step."""
    best = tune(
        lambda x: x,
        np.array([3.0, 5.0]),
        rates=np.array([0.5, 1.0, 1.5]),
        thresholds=np.array([np.inf]),
        limit=0.1,
        steps=50,
    )
    assert best == (1.0, 1.0, np.inf)


def test_a_soft_clip_is_no_newton_step():
    """C14, B46: a soft clip needs as many steps as gradient descent, Newton one."""
    found = newton.measure(condition=1e3)
    gradient, soft, newtons = found.steps
    np.testing.assert_array_equal(gradient, found.theory)
    np.testing.assert_array_equal(newtons, 1)
    assert (soft >= gradient).all()
    # At κ = 10⁴ the same formula gives the 138,149 steps that are reported.
    assert np.ceil(np.log(1e-6) / np.log1p(-1e-4)) == 138_149


def test_a_soft_clip_multiplies_all_coordinates_by_one_number():
    """C14, B46: u/g is the same for all coordinates; Newton's is 1/curvature."""
    curvatures = jnp.array([1.0, 100.0, 1e4])
    gradient = curvatures * jnp.array([1.0, -2.0, 3.0])
    step = clipjax.scale_by_l0_l1(1e4, 1.0)
    updates, _ = step.update(gradient, step.init(gradient))
    np.testing.assert_allclose(updates / gradient, updates[0] / gradient[0], rtol=1e-6)
