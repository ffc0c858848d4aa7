"""Clipping in games of two players: what it bounds, slows and does not change."""

import jax
import numpy as np
import optax
import pytest

import clipjax
from clipjax.demos.probes import game, ring
from clipjax.demos.tasks.ring import ring_task


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
