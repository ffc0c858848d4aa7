"""`skip_nonfinite` protects a whole optimizer, however long it rains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import assert_same_bits
from steps import run

import clipjax

PARAMS = {"a": jnp.array([1.0, -0.0]), "b": jnp.array([[2.0]])}
GOOD = {"a": jnp.array([0.5, -1.0]), "b": jnp.array([[3.0]])}
BAD = {"a": jnp.array([0.5, -1.0]), "b": jnp.array([[jnp.nan]])}
INNER = optax.chain(
    clipjax.clip_by_global_norm(1.0), optax.trace(0.9), optax.scale(-0.1)
)
WRAPPED = clipjax.skip_nonfinite(INNER, alarm_after=3, name="guard")


def test_finite_steps_are_those_of_the_inner_optimizer():
    mine = run(WRAPPED, [GOOD] * 3, PARAMS)
    theirs = run(INNER, [GOOD] * 3, PARAMS)
    for (updates, state), (expected, inner_state) in zip(mine, theirs, strict=True):
        assert_same_bits(updates, expected)
        assert_same_bits(state.inner_state, inner_state)
        assert int(state.skipped_count) == 0 and int(state.nonfinite_leaf) == -1


def test_bad_steps_leave_no_trace():
    with_bad = run(WRAPPED, [GOOD, BAD, BAD, GOOD], PARAMS)
    without = run(WRAPPED, [GOOD, GOOD], PARAMS)
    assert_same_bits(with_bad[-1][0], without[-1][0])
    assert_same_bits(with_bad[-1][1].inner_state, without[-1][1].inner_state)
    assert int(with_bad[-1][1].skipped_count) == 2
    for updates, _ in with_bad[1:3]:
        # -0.0 in the parameters included.
        assert_same_bits(optax.apply_updates(PARAMS, updates), PARAMS)


def test_no_bad_step_ever_gets_through_and_the_alarm_stays():
    found = run(WRAPPED, [BAD] * 20 + [GOOD], PARAMS)
    for step, (updates, state) in enumerate(found[:20], start=1):
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(updates))
        assert int(state.streak) == int(state.skipped_count) == step
        assert bool(state.alarm) == (step >= 3)
    updates, state = found[-1]
    assert np.any(np.asarray(updates["a"]) != 0)
    assert int(state.streak) == 0 and bool(state.alarm)


def test_the_streak_starts_again():
    found = run(WRAPPED, [BAD, BAD, GOOD, BAD, BAD], PARAMS)
    assert [int(state.streak) for _, state in found] == [1, 2, 0, 1, 2]
    assert not any(bool(state.alarm) for _, state in found)


def test_metrics_and_path():
    _, state = run(WRAPPED, [GOOD, BAD], PARAMS)[-1]
    metrics = clipjax.metrics(state)
    assert int(metrics["guard/skipped_count"]) == 1
    assert int(metrics["guard/streak"]) == 1
    assert not bool(metrics["guard/alarm"])
    assert float(metrics["clip/grad_norm_raw"]) == pytest.approx(10.25**0.5)
    assert clipjax.nonfinite_path(state, PARAMS) == "b"


def test_scan():
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), GOOD, BAD, GOOD)

    def step(state, grads):
        updates, state = WRAPPED.update(grads, state, PARAMS)
        return state, updates

    state, updates = jax.lax.scan(step, WRAPPED.init(PARAMS), batches)
    assert np.all(np.isfinite(updates["b"]))
    assert int(state.skipped_count) == 1


def test_extra_arguments_reach_the_inner_optimizer():
    seen = []

    def update(updates, state, params=None, *, value):
        seen.append(value)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    wrapped = clipjax.skip_nonfinite(inner)
    state = wrapped.init(PARAMS)
    jax.eval_shape(lambda: wrapped.update(GOOD, state, PARAMS, value=3.0))
    assert seen == [3.0]


def test_integers_and_keys_in_the_inner_state():
    def update(updates, state, params=None):
        return updates, {
            "key": jax.random.split(state["key"])[0],
            "count": state["count"] + 1,
        }

    def init(params):
        return {"key": jax.random.key(0), "count": jnp.int32(7)}

    wrapped = clipjax.skip_nonfinite(optax.GradientTransformation(init, update))
    start = init(PARAMS)
    for grads, moves in ((BAD, False), (GOOD, True)):
        _, state = run(wrapped, [grads], PARAMS)[0]
        assert int(state.inner_state["count"]) == 7 + moves
        keys = map(jax.random.key_data, (state.inner_state["key"], start["key"]))
        assert np.array_equal(*keys) != moves


def test_bad_arguments():
    accepted = "alarm_after must be an integer of at least 1, got"
    for value, kind in ((0, ValueError), (True, TypeError), (2.0, TypeError)):
        with pytest.raises(kind, match=f"{accepted} {value}"):
            clipjax.skip_nonfinite(optax.sgd(0.1), alarm_after=value)
    with pytest.raises(TypeError, match="inner must be a gradient transformation"):
        clipjax.skip_nonfinite(1.0)
    with pytest.raises(ValueError, match="name must be a string that is not empty"):
        clipjax.skip_nonfinite(optax.sgd(0.1), name="")


def test_it_takes_multi_steps_as_they_are():
    """The other way round, NaN would stay in the sum that is accumulated."""
    optimizer = clipjax.skip_nonfinite(optax.MultiSteps(optax.sgd(1.0), 2))
    batches = [jnp.full(1, number, jnp.float32) for number in (1.0, jnp.nan, 3.0)]
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes here
        updates, _ = run(optimizer, batches, jnp.zeros(1))[-1]
    np.testing.assert_array_equal(updates, [-2.0])


def test_the_search_for_bad_leaves_writes_no_mask():
    grads = {"a": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
    optimizer = clipjax.skip_nonfinite(optax.identity())
    state = jax.eval_shape(optimizer.init, grads)

    def skipped(grads, state):
        return optimizer.update(grads, state)[1].skipped_count

    memory = jax.jit(skipped).lower(grads, state).compile().memory_analysis()
    assert memory.temp_size_in_bytes < grads["a"].size * 4 / 8
