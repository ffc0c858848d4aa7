"""When clipped descent lowers the loss, what it ends in, and what it minimizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax.demos.probes import descent
from clipjax.diagnostics import clipped_descent


@pytest.fixture(scope="module")
def measured():
    return descent.measure(quadratics=5000)


def clipped(gradient, threshold=1.0):
    clip = clipjax.clip_by_global_norm(threshold)
    return clip.update(gradient, clip.init(gradient))[0]


def test_a_rate_below_c_over_g_does_not_make_the_loss_fall(measured):
    """C5, B17, B19: √(x² + 10⁻⁴) is convex, has G = 1, and rises with η = C/G."""
    whole, half = measured.losses
    np.testing.assert_allclose(whole[:4], [0.300, 0.700, 0.301, 0.699], atol=6e-4)
    np.testing.assert_allclose(half, [0.300, 0.051, 0.200, 0.051, 0.200], atol=6e-4)


def test_nothing_is_clipped_if_the_threshold_is_above_all_norms(measured):
    """C5, B18: clipping is inactive iff C ≥ sup n, whatever η ≤ C/G says."""
    np.testing.assert_array_equal(measured.is_clipped, [False, True])
    slow = clipped_descent(
        lambda x: x / jnp.sqrt(x * x + 1e-4), 0.3, 1e-3, 0.5, 10
    )  # η is far below C/G = 0.5, and each step is clipped
    assert not slow.in_band.any()


@pytest.mark.parametrize("clip", descent.CLIPS)
def test_the_descent_lemma_of_clipped_steps(measured, clip):
    """C5, B20: f falls by at least ηs·n²(1 − Lηs/2) if ηL < 2, convex or not."""
    found = measured.lemma[clip]
    assert (found.increases, found.violations) == (0, 0)
    assert 0 <= found.least_slack < 0.01  # and the bound is nearly attained


def test_the_clipped_field_is_no_smoother_at_the_minimum():
    """C6, B21: f = 50x², C = 0.1: the field's slope is 100, not C/η = 0.1."""
    slope = jax.grad(lambda x: clipped(100 * x, 0.1))(1e-4)
    assert float(slope) == pytest.approx(100)
    pairs = jax.random.normal(jax.random.key(0), (2000, 2, 2))
    fields = jax.jit(jax.vmap(jax.vmap(clipped)))(pairs)
    change = jnp.linalg.norm(fields[:, 0] - fields[:, 1], axis=-1)
    distance = jnp.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=-1)
    assert float((change / distance).max()) <= 1 + 1e-5  # Lipschitz ≤ L = 1
    assert float(jnp.linalg.norm(fields, axis=-1).max()) <= 1 + 1e-6  # and ≤ C


def test_the_clipped_field_has_no_potential():
    """C6, B22: the clipped gradient of (x² + 10y²)/2 has curl 0.17 at (2, 1)."""
    scales = jnp.array([1.0, 10.0])
    slopes = jax.jacobian(lambda x: clipped(scales * x))(jnp.array([2.0, 1.0]))
    assert abs(float(slopes[1, 0] - slopes[0, 1])) == pytest.approx(0.17, abs=5e-4)


def test_a_clipped_step_is_a_trust_region_step():
    """C6, B22: −η·clip(g) minimizes ⟨g, d⟩ + ‖d‖²/2η over ‖d‖ ≤ ηC."""
    eta, threshold = 0.3, 2.0
    random = np.random.default_rng(0)
    for scale in (0.1, 10.0):  # inside and outside of the ball
        gradient = np.float32(scale * random.standard_normal(5))
        step = -eta * np.asarray(clipped(jnp.asarray(gradient), threshold))

        def model(d, gradient=gradient):
            return d @ gradient + (d * d).sum(axis=-1) / (2 * eta)

        assert np.linalg.norm(step) <= eta * threshold * (1 + 1e-6)
        near = step + 0.05 * random.standard_normal((20_000, 5))
        is_allowed = np.linalg.norm(near, axis=-1) <= eta * threshold
        assert is_allowed.sum() > 100
        assert model(near[is_allowed]).min() >= model(step) - 1e-6
        onto = clipjax.project_onto_ball(jnp.asarray(-eta * gradient), eta * threshold)
        np.testing.assert_allclose(step, onto, rtol=1e-5)


def test_steps_are_bounded_and_paths_are_not(measured):
    """C7, B23: on −x²/2 the path runs away at ηC = 0.5 per step."""
    np.testing.assert_allclose(np.diff(measured.runaway), 0.5, rtol=1e-5)


def test_beyond_two_over_l_the_path_ends_in_a_two_cycle(measured):
    """C7, B23: 1.5x² with ηL = 3 ends in 0.37 ↔ −0.63 and 0.6 ↔ −0.4, not at 0."""
    portrait = measured.portrait
    assert portrait.is_two_cycle.all()
    np.testing.assert_allclose(
        portrait.two_cycles[:2], [[-0.63, 0.37], [-0.4, 0.6]], atol=1e-5
    )


def test_what_is_horizontal_is_the_clipped_pair(measured):
    """C7, B23: (x, f′(x)) lies on the graph of f′; (x, clip f′) is horizontal."""
    portrait = measured.portrait
    np.testing.assert_allclose(portrait.gradients, 3 * portrait.path, rtol=1e-6)
    outside = ~portrait.in_band
    assert np.ptp(portrait.gradients[outside & (portrait.path < 0)]) > 5
    np.testing.assert_array_equal(np.abs(portrait.clipped[outside]), 1)
