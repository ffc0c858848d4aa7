"""The exploding step and the bad time step, against independent sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipjax.demos import explode, presets
from clipjax.demos.tasks.build import build_task

SMALL = presets.Explosion(
    hidden=8, gain=2.0, length=12, batch=3, lr=0.5, max_norm=0.25, bad_step=10, steps=5
)


@pytest.fixture(scope="module")
def network():
    return explode.build(build_task(SMALL.training.model))


def test_step_is_consistent(network):
    step = explode.clipped_step(network, max_norm=0.25, lr=0.5)
    assert step.before > 0.25  # or there would be nothing to show
    assert float(step.threshold) == 0.25
    assert float(step.factor) == pytest.approx(0.25 / float(step.before), rel=1e-5)
    assert float(step.after) == pytest.approx(0.25, rel=1e-5)
    assert float(step.update) == pytest.approx(0.5 * 0.25, rel=1e-5)
    assert float(step.unclipped) == pytest.approx(0.5 * float(step.before), rel=1e-5)


def test_time_losses_are_those_of_the_model(network):
    nudges = jnp.zeros((12, 3, 8))
    losses = network.time_losses(network.params, nudges)
    assert losses.shape == (12,)
    assert float(losses.mean()) == pytest.approx(
        float(network.loss(network.params)), rel=1e-5
    )


def test_gradient_through_time_is_a_product_of_jacobians(network):
    seen = explode.bad_time_step(network, bad_step=10, error=50.0, max_norm=0.25)
    assert seen.hidden.shape == seen.bound.shape == (10,)
    # By hand: run the network, then carry the error back one Jacobian at a time.
    model = nnx.merge(network.graph, network.params)
    kernel = np.asarray(model.cells[0].dense_h.kernel[...], np.float64)
    tokens, targets = network.batch
    state, states = jnp.zeros((3, 8)), []
    for time in range(10):
        inputs = jax.nn.one_hot(tokens[:, time], model.vocabulary)
        state = model.cells[0](state, inputs)[0]
        states.append(np.asarray(state, np.float64))
    chosen = jax.nn.one_hot(targets[:, 9], model.vocabulary)
    error = 50 * (jax.nn.softmax(model.readout(state)) - chosen) / 3
    back = np.asarray(error @ model.readout.kernel[...].T, np.float64)
    norms = [np.linalg.norm(back)]
    for hidden in states[:0:-1]:
        back = (back * (1 - hidden**2)) @ kernel.T
        norms.append(np.linalg.norm(back))
    np.testing.assert_allclose(seen.hidden, norms, rtol=1e-4)
    assert (seen.hidden <= seen.bound * (1 + 1e-5)).all()
    assert seen.singular == pytest.approx(2, rel=1e-5)
    assert float(seen.bad) > 5 * float(seen.normal)
    assert float(seen.clipped) == pytest.approx(0.25, rel=1e-5)
