"""Which learning rates a clip allows, and where it costs time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import clipjax
from clipjax.demos import presets
from clipjax.demos.models.mlp import MLP
from clipjax.demos.probes.deep_mlp import ARMS
from clipjax.demos.probes.training import digits, train
from clipjax.demos.tasks.base import cross_entropy
from clipjax.diagnostics import clipped_descent

CURVATURE = 2.0


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Ten layers are compiled for one step."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def descend(learning_rate, threshold, start=10.0, steps=200):
    return clipped_descent(
        lambda x: CURVATURE * x, start, learning_rate, threshold, steps
    )


def test_a_clip_does_not_move_the_limit_of_a_smooth_objective():
    """C22: above 2/λ a clipped quadratic does not converge; its iterates stall."""
    limit = 2 / CURVATURE
    for threshold in (1.0, np.inf):
        below = descend(0.9 * limit, threshold)
        assert below.is_fixed_point and abs(below.path[-1]) < 1e-4
    assert not np.isfinite(descend(1.1 * limit, np.inf, steps=2000).path[-1])
    stalled = descend(1.1 * limit, 1.0)
    assert stalled.is_two_cycle and not stalled.is_fixed_point
    assert np.abs(stalled.path[-2:]).max() > 0.1


def steps_to(path, goal):
    return int(np.argmax(np.abs(path) < goal))


def test_a_small_threshold_is_slower():
    """C32: a clip is harmless while inactive, and slower with a small threshold."""
    free = descend(0.1, np.inf)
    inactive = descend(0.1, 21.0)
    np.testing.assert_array_equal(free.path, inactive.path)
    small = descend(0.1, 1.0)
    assert steps_to(free.path, 0.1) == 21
    # From 10 to where |f'| = 1 it takes 95 steps of 0.1.
    assert steps_to(small.path, 0.1) == pytest.approx(95 + 8, abs=1)


def test_an_inactive_clip_changes_no_bit():
    """C32: below the threshold the gradient comes back as it was."""
    grads = {"w": jax.random.normal(jax.random.key(0), (5, 3))}
    hard = clipjax.clip_by_global_norm(100.0)
    soft = clipjax.soft_clip_by_global_norm(100.0)
    updates, shorter = jax.jit(
        lambda: [clip.update(grads, clip.init(grads))[0] for clip in (hard, soft)]
    )()
    np.testing.assert_array_equal(updates["w"], grads["w"])
    # The soft clip has no region where it does nothing.
    assert np.linalg.norm(shorter["w"]) < 0.99 * np.linalg.norm(grads["w"])


def test_the_initialization_decides_whether_gradients_vanish():
    """C15: PyTorch's default makes a ReLU net of 10 layers vanish, and He's does not.

    So the initialization belongs to the result: a loss that stays at ln 10 = 2.303
    says nothing about clipping.
    """
    key, pixels = jax.random.split(jax.random.key(0, impl="unsafe_rbg"))
    batch = (jax.random.uniform(pixels, (64, 784)), jnp.arange(64) % 10)

    @functools.partial(jax.jit, static_argnums=0)
    def loss_and_norms(init):
        model = MLP(784, 10, depth=10, width=128, init=init, rngs=nnx.Rngs(params=key))
        graph, params = nnx.split(model)

        def loss(params):
            return cross_entropy(nnx.merge(graph, params), batch)

        value, grads = jax.value_and_grad(loss)(params)
        first = grads["hidden"][0]["kernel"][...]
        return value, optax.tree.norm(grads), optax.tree.norm(first)

    loss, norm, first = loss_and_norms("torch")
    assert loss == pytest.approx(np.log(10), abs=0.01)
    assert norm < 1, "no clip at 1 would ever act"
    assert first < 1e-3
    _, he_norm, he_first = loss_and_norms("he")
    assert he_norm > 1 and he_first > 300 * first


def trained(init, rates):
    """Ten layers on MNIST, without a clip and with a hard clip at 1."""
    task = digits(presets.MLP(init=init, width=64, batch=64), 1)
    return train(task, ARMS[:2], rates, steps=40, seeds=1, watch=lambda text: None)


def test_a_flat_loss_is_no_explosion_and_no_clip_changes_it():
    """B56, B57: with PyTorch's weights the net does not oscillate: it stands still.

    No gradient comes near the threshold, so that at one learning rate a hard clip
    gives the same run bit by bit. Arms with different rates compare the rates.
    """
    runs = trained("torch", (0.01, 0.1))
    none, hard = runs.loss[0], runs.loss[1]
    assert np.abs(none - np.log(10)).max() < 0.03 and none.std(axis=-1).max() < 0.02
    assert runs.norm.max() < 0.5
    np.testing.assert_array_equal(none, hard)


def test_a_clip_widens_the_rates_that_a_network_bears():
    """C22, B24: ten He layers diverge at a rate of 0.6, and clipped they train.

    Unlike a quadratic, where no rate beyond 2/L converges with any clip.
    """
    runs = trained("he", (0.6,))
    assert runs.has_diverged[:, 0, 0].tolist() == [True, False]
    assert not np.isfinite(runs.loss[0]).all()
    assert runs.last(10)[1].max() < 0.7 * runs.loss[1, 0, 0, 0]
