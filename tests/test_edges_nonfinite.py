"""Sharp edges B: NaN and inf. Ids are item numbers of the edge list."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import assert_same_bits, norm

import clipjax
from clipjax import guards

NAN = {"a": jnp.array([jnp.nan, 1.0]), "b": jnp.array([2.0])}
INF = {"a": jnp.array([jnp.inf, 1.0]), "b": jnp.array([2.0])}
bad_gradients = pytest.mark.parametrize("grads", [NAN, INF], ids=["b17-nan", "b18-inf"])


@functools.cache
def clip(guard):
    clip = clipjax.clip_by(1.0, nonfinite=guard)
    return optax.GradientTransformation(clip.init, jax.jit(clip.update))


@bad_gradients
def test_propagate_loses_everything_aloud(grads):
    updates, state = clip(guards.propagate).update(grads, None)
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(updates))
    assert int(state.clip_info.nonfinite_steps) == 1


@bad_gradients
def test_zero(grads):
    updates, state = clip(guards.zero).update(grads, None)
    assert_same_bits(updates, jax.tree.map(jnp.zeros_like, grads))
    assert int(state.clip_info.nonfinite_steps) == 1


@bad_gradients
def test_drop(grads):
    updates, state = clip(guards.drop).update(grads, None)
    np.testing.assert_allclose(updates["a"], [0, 1 / 5**0.5], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [2 / 5**0.5], rtol=1e-6)
    assert float(state.clip_info.norm_before) == pytest.approx(5**0.5, rel=1e-6)
    assert int(state.clip_info.nonfinite_steps) == 1


@bad_gradients
def test_b20_skip_leaves_adam_alone(grads):
    optimizer = clipjax.skip_nonfinite(
        optax.chain(clip(guards.propagate), optax.adam(0.1))
    )
    params = {"a": jnp.array([-0.0, 1.0]), "b": jnp.array([2.0])}
    good = jax.tree.map(jnp.ones_like, params)
    step = jax.jit(optimizer.update)
    with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes here
        _, state = step(good, optimizer.init(params), params)
        updates, after = step(grads, state, params)
    assert_same_bits(after.inner_state, state.inner_state)
    assert_same_bits(optax.apply_updates(params, updates), params)
    assert int(after.skipped_count) == int(after.streak) == 1
    with jax.numpy_dtype_promotion("standard"):
        _, later = step(good, after, params)
    assert int(later.streak) == 0 and int(later.skipped_count) == 1


def test_b19_sanitise_then_clip():
    grads = jnp.array([jnp.nan, jnp.inf, 1.0])
    updates, _ = clip(guards.drop).update(grads, None)
    np.testing.assert_array_equal(updates, [0.0, 0.0, 1.0])


@pytest.mark.parametrize("protect", [clipjax.skip_nonfinite, None])
def test_b21_a_bad_micro_batch_does_not_last(protect):
    inner = optax.chain(clip(guards.zero), optax.sgd(1.0))
    # Around the accumulation, so that nothing bad is ever added up.
    steps = optax.MultiSteps(inner, every_k_schedule=2)
    optimizer = optax.GradientTransformation(steps.init, steps.update)
    if protect:
        optimizer = protect(optimizer)
    else:
        sanitise = clipjax.clip_by(jnp.inf, nonfinite=guards.zero)
        optimizer = optax.chain(sanitise, optimizer)
    params = jnp.zeros(2)
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    emitted = []
    with jax.numpy_dtype_promotion("standard"):  # Optax itself mixes dtypes here
        for grads in ([jnp.nan, 1.0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8]):
            updates, state = step(jnp.array(grads), state, params)
            emitted.append(np.asarray(updates))
    assert np.all(np.isfinite(emitted))
    np.testing.assert_array_equal(emitted[0], [0, 0])
    np.testing.assert_array_equal(np.any(emitted, axis=1).sum(), 2 - bool(protect))
    assert np.any(emitted[2 if protect else 3])


def test_b22_narrow_gradients_in_the_wrapper():
    optimizer = clipjax.skip_nonfinite(optax.adam(0.1))
    params = {"a": jnp.ones(2), "b": jnp.ones(1)}
    state = optimizer.init(params)
    for grads in (NAN, jax.tree.map(jnp.ones_like, NAN)):
        grads = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), grads)
        with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes here
            updates, new = jax.jit(optimizer.update)(grads, state, params)
        kinds = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]
        assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(new)] == kinds
        state = new
    assert norm(updates) > 0


@pytest.mark.parametrize("guard", [guards.propagate, guards.zero, guards.drop])
def test_b23_the_path_of_the_first_bad_leaf(guard):
    grads = {
        "a": jnp.ones(2),
        "b": {"kernel": jnp.array([1.0, jnp.nan]), "scale": jnp.array(jnp.inf)},
        "count": jnp.array(3),
    }
    guarded = clipjax.clip_by(1.0, nonfinite=guard)
    state = guarded.update(grads, None)[1]
    assert clipjax.nonfinite_path(state, grads) == "b/kernel"
    clean = jax.tree.map(jnp.ones_like, grads)
    state = guarded.update(clean, state)[1]
    assert clipjax.nonfinite_path(state, grads) == "b/kernel"
    assert int(state.clip_info.nonfinite_steps) == 1
    assert clipjax.nonfinite_path(guarded.init(grads), grads) is None


def test_b23_nothing_is_read_from_the_device_until_asked():
    update = clip(guards.zero).update
    state = clip(guards.zero).init(NAN)
    with jax.transfer_guard_device_to_host("disallow"):
        _, state = update(NAN, state)
        clipjax.metrics(state)


def test_a_finite_gradient_with_an_overflowing_norm_is_flagged_not_lost_quietly():
    grads = jnp.full(16, 3e38)
    updates, state = clip(guards.zero).update(grads, None)
    assert norm(updates) == 0
    assert int(state.clip_info.nonfinite_steps) == 1


def test_values_are_clipped_to_the_bound_at_inf():
    grads = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 0.5])
    updates, state = clipjax.clip_by_value(1.0).update(grads, None)
    np.testing.assert_array_equal(updates, [1.0, -1.0, np.nan, 0.5])
    assert int(state.clip_info.nonfinite_steps) == 1
