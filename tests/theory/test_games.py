"""Clipping in games of two players: what it bounds, slows and does not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import clipjax
from clipjax.demos import presets
from clipjax.demos.compare import build_arms
from clipjax.demos.probes import game, ring
from clipjax.demos.tasks.build import build_task
from clipjax.demos.tasks.ring import ring_task
from clipjax.demos.train import begin, make_step


def test_a_clip_slows_the_divergence_of_a_bilinear_game_and_does_not_end_it():
    """B87: simultaneous steps on xy leave the equilibrium, clipped or not.

    The radius after k steps is √(r0² + k(ηC)²) with a clip, and r0(1 + η²)^(k/2)
    without.
    """
    seen = game.measure()
    np.testing.assert_allclose(
        seen.radius[:, -1], [5.72e21, np.sqrt(102), np.sqrt(3)], rtol=1e-3
    )
    np.testing.assert_allclose(seen.radius, seen.theory, rtol=1e-4)
    # It does not converge: no clip ever takes it nearer.
    assert (np.diff(seen.radius, axis=1) > 0).all()
    assert (seen.own_radius[:, -1] > seen.own_radius[:, 0]).all()


def test_below_the_threshold_a_bilinear_game_spirals_outward_unclipped():
    """B87: near the equilibrium, where a clip never acts, it diverges as without."""
    seen = game.measure(steps=200, start=0.01)
    np.testing.assert_array_equal(seen.radius[1], seen.radius[0])
    assert seen.radius[1, -1] == pytest.approx(np.sqrt(2) * 0.01 * 1.01**100, rel=1e-4)


def test_too_small_a_threshold_costs_modes_with_sgd():
    """B86: with SGD a clip saves a GAN from collapse, and too small a one costs modes.

    The probe `ring` shows the same run for 4,000 steps and with Adam.
    """
    task = ring_task(batch=128)
    none, *clipped, smallest = ring.train(task, "SGD", seeds=1, steps=1000)[:, 0, 0]
    assert none <= 1
    assert max(clipped) >= 7 and smallest <= max(clipped) - 2


def test_the_threshold_sets_the_pace_with_sgd_and_not_with_adam():
    """B86: a factor on all gradients is one on SGD's steps, and cancels in Adam's."""
    gradients = jax.random.normal(jax.random.key(0), (100, 50))  # of norms about 7

    def distance(optimizer, threshold):
        chain = optax.chain(clipjax.clip_by_global_norm(threshold), optimizer)
        state = chain.init(gradients[0])
        updates = jax.lax.scan(lambda s, g: chain.update(g, s)[::-1], state, gradients)
        return np.linalg.norm(updates[1], axis=1).sum()

    with jax.numpy_dtype_promotion("standard"):
        sgd, adam = (
            distance(optimizer, 0.01) / distance(optimizer, 1.0)
            for optimizer in (optax.sgd(0.1), optax.adam(1e-3))
        )
    assert sgd == pytest.approx(0.01, rel=1e-4)
    assert adam == pytest.approx(1, rel=1e-3)


STEPS, LIMIT, WIDTH = 200, 0.05, 16


@pytest.fixture
def quick_compilation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def start():
    return begin(build_task(presets.Critic(width=WIDTH)), seed=0)


def critic_after(clip="none", **options):
    """Largest slope and weight of the critic, and the steps that were clipped."""
    # The generator stands still.
    model = presets.Critic(width=WIDTH, batch=32, critic_steps=STEPS + 1, **options)
    task = build_task(model)
    settings = presets.Settings("", model, optimizer="adam:b1=0.5", clips=(clip,))
    (arm,) = build_arms(settings, task).values()
    graph, rest = start().static

    def run():
        chain = arm.chain(0.01)
        step = make_step(task, chain, start().static, learning_rate=0.01)
        (params, _), log = jax.lax.scan(
            lambda carry, index: step(carry, None, start().batches, index),
            (start().params, chain.init(start().params)),
            jnp.arange(STEPS),
        )
        scores = task.evaluate(nnx.merge(graph, params, rest), task.held_out)
        weights = jax.tree.leaves(params["discriminator"])
        largest = jnp.stack([jnp.abs(leaf).max() for leaf in weights]).max()
        is_clipped = (log["clipped_fraction"] > 0).mean()
        return scores["largest slope"], largest, is_clipped

    with jax.numpy_dtype_promotion("standard"):
        return map(float, jax.jit(run)())


def test_penalty_weight_clip_and_gradient_clip_are_three_different_things(
    quick_compilation,
):
    """C20, B88: WGAN limits the critic's weights and WGAN-GP penalizes its slope.

    A clip of the critic's gradient with respect to its weights, by value or by norm,
    bounds neither.
    """
    penalized, _, _ = critic_after(penalty=10.0)
    limited, limited_weight, _ = critic_after(penalty=0.0, weight_clip=LIMIT)
    # The gradient was clipped, and slope and weights grew all the same.
    for clip in ("clip_by_value", "clip_by_global_norm"):
        slope, weight, is_clipped = critic_after(
            penalty=0.0, clip=f"critic@{clip}:{LIMIT}"
        )
        assert is_clipped > 0.9
        assert slope > 30 and weight > 1
    # The limit on weights holds, and limits the slope: at most the product of the
    # Frobenius norms of the three matrices.
    assert limited_weight == pytest.approx(LIMIT, rel=1e-6)
    assert limited <= LIMIT**3 * np.sqrt(2 * WIDTH * WIDTH**2 * WIDTH)
    # The penalty asks for a slope of 1 between real and generated points.
    assert 0.3 < penalized < 5
