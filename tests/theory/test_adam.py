"""Adam's normalization, its ε, and clips in front of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clipjax
from clipjax.demos.probes import adam_epsilon, adam_spike
from clipjax.diagnostics import adam_trace


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's Adam raises a float to the power of an integer."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def epsilons():
    with jax.numpy_dtype_promotion("standard"):
        return adam_epsilon.measure(steps=50, points=13)


def test_adam_is_a_soft_clip_of_every_coordinate(epsilons):
    """C13, B44: on constant gradients Adam is g/(|g|+ε): by entry γ = ε, rate η/ε."""
    formula = epsilons.sizes / (epsilons.sizes + epsilons.epsilons[:, None])
    np.testing.assert_allclose(epsilons.adam, formula, rtol=1e-4)
    np.testing.assert_allclose(epsilons.soft, formula, rtol=1e-4)
    # Not of the whole vector, and not at the learning rate η.
    np.testing.assert_allclose(epsilons.vector[0], [1, -1, 1], rtol=2e-4)
    whole = [0.9994, -0.03331, 3.331e-5]
    np.testing.assert_allclose(epsilons.vector_soft[0], whole, rtol=1e-3)


def test_a_larger_epsilon_normalizes_less(epsilons):
    """C13, B45: raising ε weakens the normalization; a small ε makes it strong."""
    assert epsilons.epsilons[0] == 1e-8 and epsilons.epsilons[-1] == 10
    np.testing.assert_allclose(epsilons.vector[-1], [0.2308, -0.0099, 1e-5], rtol=1e-3)
    spans = np.ptp(np.log10(epsilons.adam), axis=1)
    assert np.all(np.diff(spans) > 0)
    # Small gradients are enlarged by the small ε alone, and kept in proportion by 10.
    assert np.abs(epsilons.vector[0, 2] / epsilons.vector[0, 0]) > 0.999
    ratio = epsilons.vector[-1, 2] / epsilons.vector[-1, 1]
    assert ratio == pytest.approx(1e-4 / -0.1, rel=0.02)


def test_a_clip_that_always_acts_cancels_out():
    """C13: Adam is invariant to scale, so that an always active threshold cancels."""
    gradients = jax.random.normal(jax.random.key(0), (100, 8))
    lengths = np.linalg.norm(gradients, axis=1)
    assert lengths.min() > 0.5  # every step is clipped

    @jax.jit
    def update(threshold):
        return adam_trace(gradients, clipjax.clip_by_global_norm(threshold)).update

    half, small, tiny, some, none = map(update, (0.5, 5e-3, 1e-8, 2.5, np.inf))
    np.testing.assert_allclose(half, small, rtol=1e-4, atol=1e-5)
    # Until the entries fall below ε = 1e-8, where Adam no longer normalizes.
    assert np.abs(tiny[-1]).max() < 0.5 * np.abs(half[-1]).max()
    # A threshold that acts on some steps only does change Adam: it equalizes them.
    assert np.abs(some - none).max() > 0.05


def test_a_spike_shortens_adams_later_steps():
    """C13, B92: a spike shortens thousands of steps; a clip before Adam prevents it."""
    measured = adam_spike.measure()
    at = measured.spike_at
    later = [at - 1, at, at + 100, at + 1000, at + 5000]
    np.testing.assert_allclose(
        measured.update[later], [1, 2.54, 0.0272, 0.0484, 0.3595], rtol=0.01
    )
    np.testing.assert_allclose(
        measured.clipped_update[later], [1, 1.097, 1, 1, 1], rtol=3e-3
    )
    assert "4985 of the 5000" in adam_spike.report(measured).findings[0]


def test_a_clip_after_adam_comes_too_late():
    """C13: the clip belongs before Adam; after it, v̂ holds the spike all the same."""
    clip = clipjax.clip_by_global_norm(2.0)
    gradients = jnp.ones(301).at[200].set(1000.0)

    def last(optimizer):
        def step(state, gradient):
            update, state = optimizer.update(gradient, state)
            return state, update

        return jax.lax.scan(step, optimizer.init(gradients[0]), gradients)[1][-1]

    adam = optax.scale_by_adam()
    before, after = jax.jit(
        lambda: (last(optax.chain(clip, adam)), last(optax.chain(adam, clip)))
    )()
    assert before == pytest.approx(1, abs=0.01)
    assert after < 0.05


def test_adams_direction_is_not_the_gradients():
    """C13: a clip before Adam keeps the gradient's direction, and Adam does not."""
    gradient = np.array([[3.0, -0.1, 1e-4]], np.float32)
    clipped = clipjax.project_onto_ball(gradient[0], 1.0)
    np.testing.assert_allclose(clipped, gradient[0] / 3.0017, rtol=1e-4)
    update = adam_trace(gradient, clipjax.clip_by_global_norm(1.0)).update[0]
    np.testing.assert_allclose(update, [-1, 1, -1], rtol=1e-3)
    with pytest.raises(ValueError, match="spike_at must be a whole number"):
        adam_spike.measure(spike_at=0)
