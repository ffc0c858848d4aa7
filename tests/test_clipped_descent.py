"""Clipped gradient descent in one dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.diagnostics import clipped_descent


def test_the_path_is_that_of_a_loop():
    starts = np.array([[-3.0, 0.2], [1.0, 7.0]], np.float32)
    found = clipped_descent(jnp.sin, jnp.asarray(starts), 0.7, 0.4, 9)
    x = starts.astype(np.float64)
    for step in range(10):
        np.testing.assert_allclose(found.path[step], x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.gradients[step], np.sin(x), atol=1e-5)
        clipped = np.clip(np.sin(x), -0.4, 0.4)
        np.testing.assert_allclose(found.clipped[step], clipped, atol=1e-5)
        np.testing.assert_array_equal(found.in_band[step], np.abs(np.sin(x)) <= 0.4)
        x = x - 0.7 * clipped
    moved = np.abs(np.diff(found.path, axis=0))
    assert np.max(moved) <= 0.7 * 0.4 * (1 + 1e-5)


def test_a_quadratic_beyond_its_stable_rate_ends_in_a_cycle_of_width_eta_c():
    """f = 1.5 x², ηL = 3 > 2: (0.37, -0.63) and (0.6, -0.4) for η = C = 1."""
    rate, threshold = 1.0, 1.0
    run = jax.jit(lambda x: clipped_descent(lambda x: 3 * x, x, rate, threshold, 40))
    found = run(jnp.array([0.37, 0.6, -5.3, 0.0, 2.0]))
    np.testing.assert_array_equal(found.is_two_cycle, [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(found.is_fixed_point, [0, 0, 0, 1, 1])
    np.testing.assert_allclose(found.two_cycles[:2], [[-0.63, 0.37], [-0.4, 0.6]], 1e-5)
    widths = np.diff(found.two_cycles)[:, 0]
    np.testing.assert_allclose(widths, rate * threshold, rtol=1e-5)
    assert np.all(found.two_cycles[:, 0] < 0) and np.all(found.two_cycles[:, 1] > 0)
    np.testing.assert_array_equal(found.fixed_points, [0, 0])


@pytest.mark.parametrize(
    ("grad", "rate", "threshold", "fixed", "cycle"),
    [
        (lambda x: 3 * x, 0.6, 1.0, True, False),  # ηL = 1.8 < 2
        (lambda x: 3 * x, 0.6663, 1.0, False, False),  # slowly, from both sides
        (lambda x: 0.01 * x, 1.0, 1.0, False, False),  # slowly, from one side
        (lambda x: -x, 1.0, 1.0, False, False),  # runs away at ηC per step
        (lambda x: 3 * x, 1.0, np.inf, False, False),  # no clip: diverges
        # √(x² + 1e-4), convex, with η = C/G: with the clip, and where it never clips.
        (lambda x: x / jnp.sqrt(x * x + 1e-4), 0.5, 0.5, False, True),
        (jnp.zeros_like, 1.0, 1.0, True, False),
    ],
)
def test_where_paths_end(grad, rate, threshold, fixed, cycle):
    found = clipped_descent(grad, 0.3, rate, threshold, 60)
    assert bool(found.is_fixed_point) == fixed
    assert bool(found.is_two_cycle) == cycle
    assert len(found.fixed_points) == fixed and len(found.two_cycles) == cycle
    if threshold == np.inf:
        assert abs(found.path[-1]) > 1e15


def test_paths_that_run_away_make_equal_steps():
    found = clipped_descent(lambda x: -x, 1e5, 0.5, 1.0, 20)
    np.testing.assert_allclose(np.diff(found.path), 0.5)
    assert not found.is_fixed_point  # though steps are short against x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.sin, 1.0, -0.1, 1.0, 9), "learning_rate must be .* got -0.1"),
        ((jnp.sin, 1.0, 0.1, -1.0, 9), "threshold must be .* got -1"),
        ((jnp.sin, 1.0, 0.1, 1.0, 1), "steps must be an integer of at least 2, got 1"),
        ((jnp.sum, jnp.ones(3), 0.1, 1.0, 9), r"of shape \(3,\), got \(\)"),
    ],
)
def test_clipped_descent_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        clipped_descent(*arguments)
