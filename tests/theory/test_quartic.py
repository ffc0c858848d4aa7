"""What is true of gradient descent on a fourth power."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.demos.probes import quartic
from clipjax.demos.probes.paths import first_below
from clipjax.diagnostics import least_l0


@pytest.fixture(scope="module")
def measured():
    return quartic.measure(steps=1100, starts=5, grid=13)


def arrived(path):
    return first_below(np.abs(path), 0.1)


def test_the_fixed_rate_is_exact_by_chance(measured):
    """C1, B49: η = 0.01 goes from 5 to 0 in one step; 3.2 belongs to η = 7.16e-5."""
    fixed, slow = list(measured.paths.values())[:2]
    assert np.abs(fixed[1:]).max() < 1e-6  # "too slow: 3.2 after 100 steps"
    assert slow[100] == pytest.approx(3.2, abs=0.005)
    # The limit of divergence from 5 is η = 0.02: a cycle of period 2.
    assert 5 - 0.02 * 4 * 5**3 == -5


def test_a_tenth_diverges_without_a_clip(measured):
    """B50: with η = 0.1 and no clip θ is 5, −45, 36405, −1.9e13."""
    np.testing.assert_allclose(
        measured.diverging, [5, -45, 36405, -1.92993e13], rtol=1e-5
    )


def test_the_clipped_paths_need_three_times_as_long_as_was_said(measured):
    """C1, B51, B52: |θ| < 0.1 at step 163 (hard) and 172 (soft), not at step 50."""
    hard, soft = list(measured.paths.values())[2:]
    assert (arrived(hard), arrived(soft)) == (163, 172)
    np.testing.assert_allclose([hard[50], soft[50]], [0.347, 0.480], atol=5e-4)
    assert hard[100] == pytest.approx(0.142, abs=5e-4)
    # Below |4θ³| = 1, at |θ| = 0.63, nothing is clipped any more.
    assert first_below(np.abs(hard), 0.25 ** (1 / 3)) == 44


def test_the_tail_is_a_power_law(measured):
    """C1, B53: the tail is θ ≈ (8ηk)^(-1/2), a line in log-log and not in log axes."""
    hard = measured.paths["hard clip, η = 0.1, γ = 1"]
    slope, r2 = quartic.log_log_slope(hard[:1001])
    assert slope == pytest.approx(-0.55, abs=0.01) and r2 > 0.999
    tail = np.log(hard[163:1001])
    steps = np.arange(len(tail))
    line = np.polynomial.Polynomial.fit(steps, tail, 1)
    assert 1 - np.var(tail - line(steps)) / np.var(tail) < 0.95
    assert hard[1000] == pytest.approx((8 * 0.1 * 1000) ** -0.5, rel=0.05)


def test_steps_of_the_theory_never_raise_the_loss(measured):
    """C1, C2: 1/(16/L1² + L1·|g|) descends for every L1, in 201, 57, 30, 42 steps."""
    assert (np.diff(measured.theory**4, axis=1) <= 0).all()
    np.testing.assert_array_equal(arrived(measured.theory)[1:], [797, 201, 57, 30, 42])


def test_clipping_gains_where_one_rate_must_be_safe_for_all_starts(measured):
    """C31, B14, B54: for starts in [3, 7] a clip needs a hundredth of the steps.

    From 5 alone a fixed rate needs one step, so that the gain is not a property of θ⁴.
    """
    none, hard, soft = (best.steps for best in measured.tuned.values())
    assert 1000 < none < 1700
    assert max(hard, soft) < none / 50


def test_a_fourth_power_is_convex():
    """C2, B55: the second derivative of θ⁴ is never negative."""
    theta = jnp.arange(-10.0, 11.0)
    assert float(jax.vmap(jax.grad(jax.grad(lambda x: x**4)))(theta).min()) == 0


@pytest.mark.parametrize("l1", [0.25, 1.0, 8.0])
def test_the_least_l0_of_a_fourth_power(l1):
    """C2, B36, B39: 12θ² ≤ L1·4|θ|³ + 16/L1², and no smaller constant will do.

    Other powers: test_least_l0_of_powers in tests/test_smoothness.py.
    """
    found = least_l0(lambda x: x**4, l1, (-20.0, 20.0))
    assert float(found.l0) == pytest.approx(16 / l1**2, rel=1e-4)
    theta = np.linspace(-20, 20, 100_001)
    assert (12 * theta**2 <= l1 * 4 * np.abs(theta) ** 3 + 16 / l1**2 + 1e-9).all()
    least = 0.99 * 16 / l1**2
    assert (12 * theta**2 > l1 * 4 * np.abs(theta) ** 3 + least).any()


def test_two_lines_of_the_usual_derivation_are_false():
    """C2, B37, B38: max(θ, θ+Δ)² ≤ θ² + Δ² and |∇f(θ+Δ) − ∇f(θ)| ≤ 12(θ²+Δ²)|Δ|."""
    theta = delta = 1.0
    assert (theta + delta) ** 2 > theta**2 + delta**2
    assert 4 * ((theta + delta) ** 3 - theta**3) > 12 * (theta**2 + delta**2) * delta
    grid = np.random.default_rng(0).uniform(-5, 5, (2, 10_000))
    theta, delta = grid
    twice = 2 * theta**2 + 2 * delta**2
    assert (np.maximum(theta**2, (theta + delta) ** 2) <= twice + 1e-9).all()
    change = np.abs(4 * (theta + delta) ** 3 - 4 * theta**3)
    assert (change <= 12 * twice * np.abs(delta) + 1e-9).all()
    # 12θ² ≤ 12|θ|^(4/3), the last line, needs |θ| ≤ 1.
    assert 12 * 2.0**2 > 12 * 2.0 ** (4 / 3) and 12 * 0.5**2 < 12 * 0.5 ** (4 / 3)
