"""What holds for clips that carry an optimizer's memory, as for any other clip."""

import functools

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import about
from oracle import assert_close, assert_same_bits, eps, kinds

import clipjax

every_compound = pytest.mark.parametrize("name", catalogue.COMPOUNDS)
# Optax's Adam relies on promotion between the dtypes of moments and counts.
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@functools.cache
def jitted(name):
    return jax.jit(catalogue.COMPOUNDS[name]().update)


@functools.cache
def steps(name):
    """Runs a few jitted updates, and gives all updates and the last state."""
    compound, params = catalogue.COMPOUNDS[name](), catalogue.parameters()
    state, found = compound.init(params), []
    for seed in range(4):
        updates, state = jitted(name)(catalogue.gradients(seed), state, params)
        found.append(updates)
    return found, state


def test_state_keeps_its_form():
    params = catalogue.parameters()
    for name, make in catalogue.COMPOUNDS.items():
        for dtype in (jnp.float32, jnp.bfloat16):
            with about(f"{name} in {dtype}"):
                first = make().init(params)
                grads = catalogue.gradients(dtype=dtype)
                _, after = jax.eval_shape(make().update, grads, first, params)
                assert kinds(after) == kinds(first)
                _, later = jax.eval_shape(make().update, grads, after, params)
                assert kinds(later) == kinds(first)


@pytest.mark.parametrize("name", ["stable_update_clip", "stable_spam_clip"])
def test_scan_equals_a_loop(name):
    compound, params = catalogue.COMPOUNDS[name](), catalogue.parameters()
    expected, last = steps(name)
    grads = [catalogue.gradients(seed) for seed in range(4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)

    def step(state, grad):
        updates, state = compound.update(grad, state, params)
        return state, updates

    state, updates = jax.lax.scan(step, compound.init(params), stacked)
    assert_close(state, last, rtol=8 * eps(jnp.float32))
    final = jax.tree.map(lambda leaf: leaf[-1], updates)
    assert_close(final, expected[-1], rtol=32 * eps(jnp.float32))


@every_compound
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_thresholds_are_frozen_by_a_bad_step(name, bad):
    params = catalogue.parameters()
    found, state = steps(name)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    grads = catalogue.gradients()
    grads["scale"] = jnp.full_like(grads["scale"], bad)
    _, after = jitted(name)(grads, state, params)
    for before, later in zip(
        catalogue.clip_states(state), catalogue.clip_states(after), strict=True
    ):
        assert_same_bits(later.clip_memory, before.clip_memory)
        assert int(later.clip_info.nonfinite_steps) == 1
    if name == "acclip":
        assert_same_bits(after.inner_state, state.inner_state)


@pytest.mark.parametrize("name", ["stable_update_clip", "acclip"])
def test_skip_nonfinite_around_it(name):
    compound, params = catalogue.COMPOUNDS[name](), catalogue.parameters()
    guarded = clipjax.skip_nonfinite(compound)
    state = guarded.init(params)
    update = jax.jit(guarded.update)
    _, state = update(catalogue.gradients(), state, params)
    bad = jax.tree.map(lambda leaf: leaf * jnp.nan, catalogue.gradients())
    _, after = update(bad, state, params)
    assert_same_bits(after.inner_state, state.inner_state)


def test_metrics_and_composition():
    params, grads = catalogue.parameters(), catalogue.gradients()
    for name, make in catalogue.COMPOUNDS.items():
        with about(name):
            chain = optax.chain(make(), optax.scale_by_learning_rate(0.1))
            multi = optax.MultiSteps(chain, every_k_schedule=2)
            for optimizer in (chain, multi):
                state = optimizer.init(params)
                updates, new = jax.eval_shape(optimizer.update, grads, state, params)
                assert kinds(new) == kinds(state)
                assert kinds(updates) == kinds(grads)
                assert "clip/grad_norm_raw" in clipjax.metrics(state)


@pytest.mark.parametrize("name", ["acclip", "stable_update_clip"])
def test_integer_leaves_pass_a_clip_after_an_optimizer(name):
    compound, counts = catalogue.COMPOUNDS[name](), jnp.arange(3)
    params = {**catalogue.parameters(), "counts": counts}
    grads = {**catalogue.gradients(), "counts": counts}
    # Adam averages integers as well.
    updates, _ = jax.jit(compound.update)(grads, compound.init(params), params)
    np.testing.assert_array_equal(updates["counts"], counts)
    assert updates["counts"].dtype == counts.dtype


def test_inner_without_a_second_moment():
    clip = clipjax.spam_clip(optax.sgd(0.1))
    with pytest.raises(ValueError, match="inner must keep a second moment"):
        clip.update(jnp.ones(2), clip.init(jnp.ones(2)))
    with pytest.raises(TypeError, match="inner must be a gradient transformation"):
        clipjax.spam_clip("adam")
