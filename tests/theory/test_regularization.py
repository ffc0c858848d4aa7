"""Penalties, weight decay, and what clipping is not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clipjax
from clipjax.demos.probes import implicit_penalty, weight_decay
from clipjax.demos.probes.descend import descend


@pytest.fixture(scope="module")
def separable():
    return implicit_penalty.measure(steps=20_000)


def test_clipping_keeps_parameters_in_no_bounded_region(separable):
    """C8, B26: there is no implicit penalty, only ‖θ_T - θ_0‖ ≤ ηCT."""
    plain, clipped, penalized = separable.norm
    assert np.all(clipped <= separable.bound * (1 + 1e-5))
    early = separable.steps <= 20  # all steps clip at first: the bound is attained
    np.testing.assert_allclose(clipped[early], separable.bound[early], rtol=0.02)
    at = {int(step): index for index, step in enumerate(separable.steps)}
    for norms in (plain, clipped):
        # Growth of ln 10 / margin per factor of ten, with a margin of 1.
        growth = norms[at[10_000]] - norms[at[1000]]
        assert growth == pytest.approx(np.log(10), rel=0.02)
    assert plain[-1] - clipped[-1] < 0.01
    assert abs(penalized[-1] - penalized[at[1000]]) < 1e-3 and penalized[-1] < 4


def test_the_direction_of_largest_margin_is_reached_in_no_finite_time(separable):
    """C28, B27: the angle to it falls like 1/log t."""
    at = {int(step): index for index, step in enumerate(separable.steps)}
    angle = separable.angle[0]
    assert np.all(np.diff(angle[separable.steps >= 10]) < 0)
    assert angle[-1] > 3
    products = [angle[at[t]] * np.log(t) for t in (1000, 10_000)]
    assert products[0] == pytest.approx(products[1], rel=0.05)


def end(optimizer, steps=50):
    """Where an optimizer ends on a quadratic of two curvatures."""
    curvatures, aim = jnp.array([1.0, 10.0]), jnp.array([3.0, -1.0])
    with jax.numpy_dtype_promotion("standard"):
        path = descend(
            optimizer, lambda x, step: curvatures * (x - aim), jnp.ones(2), steps
        )
    return np.asarray(path[-1])


def test_when_an_l2_penalty_is_weight_decay():
    """C28, B28: under SGD it is; not under Adam, nor before a clip."""
    rate, penalty = 0.05, 0.5
    decay = optax.add_decayed_weights(penalty)
    coupled = end(optax.chain(decay, optax.sgd(rate)))

    def shrink(updates, params):
        return jax.tree.map(lambda u, p: u - rate * penalty * p, updates, params)

    decoupled = end(optax.chain(optax.sgd(rate), optax.stateless(shrink)))
    np.testing.assert_allclose(coupled, decoupled, rtol=1e-5)
    adam = end(optax.chain(decay, optax.adam(rate)))
    adamw = end(optax.adamw(rate, weight_decay=penalty))
    assert np.abs(adam - adamw).max() > 0.05
    clip = clipjax.clip_by_global_norm(1.0)
    before = end(optax.chain(decay, clip, optax.sgd(rate)))
    after = end(optax.chain(clip, decay, optax.sgd(rate)))
    assert np.abs(before - after).max() > 0.05


def test_an_l2_penalty_raises_all_curvatures():
    """C28, B29: it adds λ to every eigenvalue: better conditioned, not flatter."""

    def loss(x, penalty):
        data = (x[0] ** 2 + 10 * x[1] ** 2) / 2
        return data + penalty * jnp.sum(x**2) / 2

    hessian = jax.jit(jax.hessian(loss))
    plain, penalized = (
        np.linalg.eigvalsh(hessian(jnp.ones(2), penalty)) for penalty in (0.0, 0.5)
    )
    np.testing.assert_allclose(plain, [1, 10], rtol=1e-6)
    np.testing.assert_allclose(penalized, [1.5, 10.5], rtol=1e-6)
    assert penalized[1] / penalized[0] == pytest.approx(7)


@pytest.fixture(scope="module")
def decayed():
    with jax.numpy_dtype_promotion("standard"):
        return weight_decay.measure(seeds=2)


def test_where_penalized_descent_is_stationary(decayed):
    """B30: ∇L0(θ*) = -λθ* after a clip of the sum; a clip before may move θ*."""
    residual = decayed.residual
    penalty_first, clip_first = residual[:, 0], residual[:, 1]
    assert penalty_first.shape == (2, 2, 2) and np.all(penalty_first < 0.01)
    loose, tight = clip_first[:, 0], clip_first[:, 1]
    assert np.all(loose < 0.01) and np.all(tight > 1)


def test_weight_decay_shrinks_the_spectral_radius(decayed):
    """B72: by 1 - ηλ per step for any W, if nothing else pulls, and no clip binds."""
    steps = np.arange(decayed.radius.shape[2])
    expected = weight_decay.RADIUS * 0.995**steps
    assert decayed.shrinkage == pytest.approx(0.995)
    alone, clipped, pulled = decayed.radius
    np.testing.assert_allclose(alone, np.stack([expected] * 2), rtol=1e-4)
    assert alone[0, -1] == pytest.approx(0.568, abs=1e-3)
    count = int(np.ceil(np.log(weight_decay.RADIUS) / -np.log(0.995)))
    np.testing.assert_array_equal(decayed.steps_below_one[0], count)
    assert np.all(clipped[:, -1] > 1) and np.all(pulled[:, -1] > 1)
    np.testing.assert_array_equal(decayed.steps_below_one[1:], -1)
    # The pull of 0.1·(W - W0) against a decay of 0.05·W: two thirds of W0.
    np.testing.assert_allclose(pulled[:, -1], weight_decay.RADIUS * 2 / 3, rtol=0.02)


def test_the_reports_of_both_probes(separable, decayed):
    findings = implicit_penalty.report(separable).findings
    assert "exceeds ηCt never" in findings[1]
    report = weight_decay.report(decayed)
    assert report.tables[1].rows[0] == ("decay alone", "188", "188")
    moved = "except for: L2, clip, then penalty, C = 0.3; L1, clip, then penalty"
    assert moved in report.findings[1]
