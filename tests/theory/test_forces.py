"""Forces of a potential, and the gradient that is clipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax


def energy(params, distance):
    """A Lennard-Jones potential with its depth and length as parameters."""
    ratio = params["length"] / distance
    return 4 * params["depth"] * (ratio**12 - ratio**6)


def force(params, distance):
    return -jax.grad(energy, argnums=1)(params, distance)


TRUE = {"depth": jnp.float32(1.0), "length": jnp.float32(1.0)}


def test_a_force_is_minus_the_derivative_by_position():
    """C26, B91: the force is -∂E/∂x, and not the gradient of a loss."""
    distances = jnp.array([0.8, 1.0, 2 ** (1 / 6), 2.0])
    found = jax.jit(jax.vmap(lambda r: force(TRUE, r)))(distances)
    r = np.asarray(distances, np.float64)
    expected = 24 * (2 / r**13 - 1 / r**7)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert found[1] == pytest.approx(24) and found[1] > 0 > found[3]


def test_the_clip_acts_on_the_gradient_by_parameter():
    """C26, B91: clipped is ∂L/∂θ; at the wall it is huge, and forces are as before."""
    near, start = jnp.float32(0.5), {"depth": 0.9, "length": 1.1}
    start = jax.tree.map(jnp.float32, start)

    @jax.jit
    def loss(params):
        return jnp.square(force(params, near) - force(TRUE, near))

    @jax.jit
    def clipped_gradient(params):
        grads = jax.grad(loss)(params)
        return grads, *clip.update(grads, clip.init(grads))

    clip = clipjax.clip_by_global_norm(1.0)
    grads, clipped, state = clipped_gradient(start)
    assert state.clip_info.norm_before > 1e9
    assert jnp.hypot(clipped["depth"], clipped["length"]) == pytest.approx(1, rel=1e-5)
    # The gradient has the parameters' structure and the force the position's.
    assert jax.tree.structure(grads) == jax.tree.structure(start)
    # One clipped step moves the parameters by at most the learning rate.
    after = jax.tree.map(lambda p, g: p - 1e-3 * g, start, clipped)
    assert loss(after) < loss(start)
    assert jnp.abs(force(start, near)) > 1e4  # nothing bounds the force itself
