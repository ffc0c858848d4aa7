"""What (L0, L1)-smoothness says, where it holds, and the step that follows from it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clipjax
from clipjax.demos.probes import cosh, general_smoothness
from clipjax.demos.probes.paths import first_below
from clipjax.diagnostics import clipped_descent, local_smoothness

GPT2 = (0.02, 12.7)  # L0 and L1 as they are often quoted


def updates(transformation, gradient):
    return transformation.update(gradient, transformation.init(gradient))[0]


@pytest.fixture(scope="module")
def on_cosh():
    return cosh.measure(steps=200)


def test_the_threshold_is_l0_over_l1(on_cosh):
    """C3, B42: γ = L0/L1 takes 10 steps for all constants, γ = 1/L1 does not."""
    np.testing.assert_array_equal(first_below(np.abs(on_cosh.ratio), 1e-3), 10)
    wrong = first_below(np.abs(on_cosh.inverse), 1e-3)
    np.testing.assert_array_equal(wrong, [np.inf, 6, 8, 65])
    assert np.abs(on_cosh.inverse[0]).max() == pytest.approx(34, abs=0.5)
    assert (np.diff(np.abs(on_cosh.ratio)) <= 0).all()


def test_with_the_right_threshold_the_units_drop_out(on_cosh):
    """C3: with γ = L0/L1, η = 1/L0 the path of L1·x is the same for all L0 and L1."""
    assert np.ptp(on_cosh.ratio, axis=0).max() < 1e-5
    assert np.ptp(on_cosh.inverse, axis=0).max() > 10


def test_the_wrong_step_is_longer_by_up_to_one_over_l0():
    """B42: with γ = 1/L1 steps are 1.06, 6.5, 28, 46, 49.6 times too long."""
    l0, l1 = GPT2
    wrong = optax.chain(clipjax.soft_clip_by_global_norm(1 / l1), optax.scale(1 / l0))
    right = clipjax.scale_by_l0_l1(l0, l1)
    norms = [jnp.array([norm]) for norm in (1e-4, 1e-2, 0.1, 1.0, 10.0)]
    ratios = [float(updates(wrong, g)[0] / updates(right, g)[0]) for g in norms]
    np.testing.assert_allclose(ratios, [1.06, 6.5, 28, 46, 49.6], rtol=0.02)


def test_the_usual_thresholds_do_not_follow_from_the_usual_constants():
    """C25, B43: γ = 1 is a convention; no quoted pair (L0, L1) gives it, or the rate.

    For L0 = 0.02 and L1 = 12.7, and the other pairs that are quoted, neither L0/L1 nor
    1/L1 is near 1, nor 1/L0 near the quoted learning rate of 6e-4.
    """
    convention = clipjax.thresholds.rule_of_thumb("transformer")
    assert convention == 1
    gammas, inverses, rates = [], [], []
    for l0, l1 in (GPT2, (0.5, 8.2), (0.8, 5.3)):
        gammas.append(clipjax.thresholds.from_smoothness(l0, l1).value)
        inverses.append(1 / l1)
        rates.append(1 / l0)
    np.testing.assert_allclose(gammas, [0.0016, 0.061, 0.151], rtol=0.02)
    np.testing.assert_allclose(inverses, [0.079, 0.122, 0.189], rtol=0.01)
    assert max(gammas + inverses) < convention / 5
    assert min(rates) == pytest.approx(1.25) and min(rates) > 1000 * 6e-4


def test_a_sufficient_pair_for_the_hard_clip(on_cosh):
    """C3: η ≤ 1/(2·L0), ηγ ≤ 1/(2·L1) give min(η, ηγ/n) ≤ 1/(L0 + L1·n)."""
    norms = np.geomspace(1e-9, 1e9, 1001)
    for l0, l1 in cosh.CONSTANTS:
        eta, gamma = 0.5 / l0, l0 / l1
        step = np.minimum(eta, eta * gamma / norms)
        assert (step <= 1 / (l0 + l1 * norms)).all()
        twice = np.minimum(1 / l0, 1 / l1 / norms)  # without the halves it fails
        assert (twice > 1 / (l0 + l1 * norms)).any()
    np.testing.assert_array_equal(first_below(np.abs(on_cosh.halved), 1e-3), 20)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_step_of_the_theory_and_twice_it_descend(factor):
    """B41: η < 2/(L0 + L1·n) descends on cosh; three times 1/(L0 + L1·n) does not.

    At 1/(L0 + L1·n) the loss falls by at least half of n²/(L0 + L1·n).
    """
    x = np.linspace(-8, 8, 4000)
    gradient = np.sinh(x)
    right = clipjax.scale_by_l0_l1(1.0, 1.0)
    one = jax.vmap(lambda g: updates(right, g))
    step = np.asarray(one(jnp.asarray(gradient, jnp.float32)), np.float64)

    def fall(factor):
        return np.cosh(x) - np.cosh(x - factor * step)

    assert (fall(factor) >= -1e-7 * np.cosh(x)).all()
    assert (fall(3.0) < -1e-3).any()
    promised = gradient**2 / (2 * (1 + np.abs(gradient)))
    assert (fall(1.0) >= promised * (1 - 1e-5)).all()
    assert (fall(0.2) < promised).any()  # which is no statement about every step


@pytest.mark.parametrize("t, norm", [(1, 2), (3, 9.1), (10, 100), (100, 1e4)])
def test_deep_networks_have_no_such_constants(t, norm):
    """C4, B34: (w1·w2 − 1)²/2 has gradient 0 and any Hessian norm on w1·w2 = 1."""

    def loss(weights, batch):
        del batch
        return 0.5 * (weights[0] * weights[1] - 1) ** 2

    found = local_smoothness(loss, jnp.array([t, 1 / t]), None)
    assert float(found.grad_norm) == pytest.approx(0, abs=1e-4)
    assert float(found.value) == pytest.approx(norm, rel=2e-3)


def test_a_relu_loss_is_not_differentiable_everywhere():
    """C4, B34: at a kink the secant of the gradient has no bound as the step → 0."""

    def loss(x, batch):
        del batch
        return jnp.maximum(x, 0.0).sum()

    for size in (1e-1, 1e-3, 1e-5):
        start, step = jnp.array([-size / 2]), jnp.array([size])
        found = local_smoothness(loss, start, None, "secant", step=step)
        assert float(found.value) == pytest.approx(1 / size, rel=1e-2)


def test_the_secant_form_for_all_steps_excludes_a_fourth_power():
    """C4, B35: at θ = 0, |∇f(Δ)| = 4Δ³ ≤ L0·Δ for all Δ holds for no L0."""
    for l0 in (1.0, 100.0, 1e6):
        delta = np.sqrt(l0)
        assert 4 * delta**3 > l0 * delta
    # The Hessian form holds for all θ (test_quartic), the secant form for short steps:
    # 48 + 12|Δ|² and the like are larger constants than the Hessian's 16 and 1.
    theta, delta = np.meshgrid(np.linspace(-9, 9, 901), np.linspace(-1, 1, 201))
    change = np.abs(4 * (theta + delta) ** 3 - 4 * theta**3)
    bound = 16 + 4 * np.abs(theta) ** 3
    assert (change > bound * np.abs(delta) * (1 + 1e-9)).any()
    assert (change <= 3 * bound * np.abs(delta) + 1e-9).all()


def test_the_quadratic_bound_needs_an_exponential():
    """C4, B40: the bound has (e^(L1·d) − L1·d − 1)/L1², for which d²/2 is too small."""
    excess = np.e - 1 - 1  # of e^x at 0, d = 1, L0 = 0, L1 = 1
    assert excess > 0.5 and excess == pytest.approx(np.exp(1) - 1 - 1)
    theta, delta = np.meshgrid(np.linspace(-9, 9, 901), np.linspace(-1, 1, 201))
    delta = np.where(delta == 0, 1e-3, delta)
    grad = 4 * theta**3
    excess = (theta + delta) ** 4 - theta**4 - grad * delta
    smoothness, size = 16 + np.abs(grad), np.abs(delta)
    assert (excess / (smoothness * size**2 / 2)).max() == pytest.approx(1.41, abs=0.01)
    assert (excess <= smoothness * (np.exp(size) - size - 1) * (1 + 1e-9)).all()


def test_the_upper_bound_is_no_characterization_without_convexity():
    """C30, B15: −θ⁴ is below each of its parabolas, and L-smooth for no L."""
    theta, other = np.meshgrid(np.linspace(-5, 5, 201), np.linspace(-5, 5, 201))
    parabola = -(theta**4) - 4 * theta**3 * (other - theta)  # with L = 0
    assert (-(other**4) <= parabola + 1e-9).all()
    for smoothness in (1.0, 100.0, 1e4):
        wide = np.sqrt(smoothness)
        assert 12 * wide**2 > smoothness


def test_descent_on_a_quadratic_needs_less_than_two_over_l():
    """B16: x² · L/2 falls for η < 2/L, at once for η = 1/L, and rises for η > 2/L."""
    smoothness = 4.0
    for scaled, ratio in ((1.9, 0.9), (1.0, 0.0), (2.1, 1.1)):
        found = clipped_descent(
            lambda x: smoothness * x, 1.0, scaled / smoothness, jnp.inf, 2
        )
        assert abs(float(found.path[1])) == pytest.approx(ratio, abs=1e-6)


def test_convex_descent_is_as_fast_as_one_over_the_steps():
    """B16: with η = 1/L a convex loss is below L·|x0 − x*|²/(2k) after k steps.

    Huber's loss from far away stays close to that bound, and no higher rate is safe.
    """
    start, steps = 30.0, 60  # |x| − 1/2 beyond 1, x²/2 within, L = 1
    found = clipped_descent(lambda x: jnp.clip(x, -1, 1), start, 1.0, jnp.inf, steps)
    path = np.abs(np.asarray(found.path[1:], np.float64))
    loss = np.where(path > 1, path - 0.5, path**2 / 2)
    bound = start**2 / (2 * np.arange(1, len(path) + 1))
    assert (loss <= bound * (1 + 1e-6)).all()
    assert (loss / bound).max() > 0.45  # and not of a smaller order


def test_a_general_smoothness_needs_the_length_of_the_step():
    """C29, B48: |∇f(y) − ∇f(x)| ≤ ℓ(|∇f(x)|)·|y − x|; without |y − x| x² fails."""
    start, end, smoothness = 0.0, 3.0, 2.0  # f = x² has f″ = 2 everywhere
    change = 2 * abs(end - start)
    assert change > smoothness
    assert change <= smoothness * abs(end - start)


def test_a_rule_of_ones_own_takes_the_step_of_a_general_smoothness():
    """C29, B48: x⁴ has f″ = 12·(|f′|/4)^(2/3), so that 1/ℓ takes a third off x."""
    ell = general_smoothness.FUNCTIONS["x⁴"].ell
    step = general_smoothness.scale_by_ell(ell)
    x = jnp.array([3.0])
    np.testing.assert_allclose(x + updates(step, 4 * x**3), 2 * x / 3, rtol=1e-5)
    assert float(updates(step, 0 * x)[0]) == 0


def test_a_general_smoothness_works_where_no_constants_exist():
    """B48: x − log x is (L0, L1)-smooth with no constants; 1/ℓ(|f′|) still descends."""
    found = general_smoothness.measure(steps=40)
    narrow, wide = found.l0["x − log x"]
    assert wide > 90 * narrow  # L0 grows as 1/x²
    assert all(found.falls.values())
    for distances in found.ell.values():
        assert distances[:, 12].max() < 0.1
    assert found.l0_l1["x − log x"][:, -1].max() > 0.5


def test_jax_agrees_on_the_general_smoothness():
    """B48: each ℓ of the probe is f″ as a function of |f′|, or a bound of it."""
    for function in general_smoothness.FUNCTIONS.values():
        x = jnp.linspace(0.02, 5.0, 500)
        first = jax.grad(function.value)
        second = jax.vmap(jax.grad(first))(x)
        assert (second <= function.ell(jnp.abs(jax.vmap(first)(x))) * 1.001).all()
