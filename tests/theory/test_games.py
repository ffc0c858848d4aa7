"""Clipping in games of two players: what it bounds, slows and does not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.demos import presets
from clipjax.demos.compare import build_arms
from clipjax.demos.probes import game, ring
from clipjax.demos.tasks.build import build_task
from clipjax.demos.train import Loop


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


def test_mode_collapse_depends_on_the_threshold_with_sgd_and_not_with_adam():
    """B86: too small a threshold costs modes with SGD; with Adam it hardly matters."""
    seen = ring.measure(seeds=1, steps=2000, batch=128)
    sgd, adam = seen.modes[..., 0]
    none, large, small = sgd[0], sgd[1], sgd[-1]
    assert none <= 1 and large >= 7
    assert small < large - 1
    assert adam[-1] >= adam[0] - 1 and adam[-1] > small


def critic_after(steps=400, clip="none", **options):
    """The scores of the critic, its largest weight, and its log."""
    model = presets.Critic(width=32, batch=64, critic_steps=steps + 1, **options)
    settings = presets.Settings(
        "", model, optimizer="adam:b1=0.5:b2=0.9", clips=(clip,)
    )
    task = build_task(model)
    (arm,) = build_arms(settings, task).values()
    loop = Loop(task, arm.chain, steps=steps, interval=steps)
    run = loop.run(0, learning_rate=1e-2)
    largest = max(
        float(jnp.abs(leaf).max())
        for leaf in jax.tree.leaves(run.params["discriminator"])
    )
    return run.held_out["largest slope"], largest, run.log


def test_penalty_weight_clip_and_gradient_clip_are_three_different_things():
    """C20, B88: WGAN limits the critic's weights and WGAN-GP penalizes its slope.

    A clip of the critic's gradient with respect to its weights, by value or by norm,
    bounds neither. The generator stands still here.
    """
    with jax.numpy_dtype_promotion("standard"):
        free, free_weight, _ = critic_after(penalty=0.0)
        penalized, _, _ = critic_after(penalty=10.0)
        limited, limited_weight, _ = critic_after(penalty=0.0, weight_clip=0.05)
        by_value, value_weight, value_log = critic_after(
            penalty=0.0, clip="critic@clip_by_value:0.05"
        )
        by_norm, norm_weight, norm_log = critic_after(
            penalty=0.0, clip="critic@clip_by_global_norm:0.05"
        )
    # The gradient was clipped, and slope and weights grew all the same.
    for log in (value_log, norm_log):
        assert (log["clipped_fraction"] > 0).mean() > 0.9
    assert min(free, by_value, by_norm) > 30
    assert min(free_weight, value_weight, norm_weight) > 1
    # The limit on weights holds, and limits the slope: at most the product of the
    # Frobenius norms of matrices of (2, 32), (32, 32) and (32, 1) entries of 0.05.
    assert limited_weight <= 0.05 * (1 + 1e-6)
    assert 0 < limited <= 0.05**3 * np.sqrt(64 * 1024 * 32)
    # The penalty takes the slope to about 1 where it looks.
    assert 0.5 < penalized < 3
