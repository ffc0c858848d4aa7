"""`skip_nonfinite` protects a whole optimizer, however long it rains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import assert_same_bits, kinds

import clipjax

PARAMS = {"a": jnp.array([1.0, -0.0]), "b": jnp.array([[2.0]])}
GOOD = {"a": jnp.array([0.5, -1.0]), "b": jnp.array([[3.0]])}
BAD = {"a": jnp.array([0.5, -1.0]), "b": jnp.array([[jnp.nan]])}


@pytest.fixture
def optimizer():
    inner = optax.chain(
        clipjax.clip_by_global_norm(1.0), optax.trace(0.9), optax.scale(-0.1)
    )
    return clipjax.skip_nonfinite(inner, alarm_after=3), inner


def run(optimizer, batches):
    state, found = optimizer.init(PARAMS), []
    update = jax.jit(optimizer.update)
    for grads in batches:
        updates, new = update(grads, state, PARAMS)
        assert kinds(new) == kinds(state)
        state = new
        found.append((updates, state))
    return found


def test_finite_steps_are_those_of_the_inner_optimizer(optimizer):
    wrapped, inner = optimizer
    mine = run(wrapped, [GOOD] * 3)
    theirs = run(inner, [GOOD] * 3)
    for (updates, state), (expected, inner_state) in zip(mine, theirs, strict=True):
        assert_same_bits(updates, expected)
        assert_same_bits(state.inner_state, inner_state)
        assert int(state.skipped_count) == 0 and int(state.nonfinite_leaf) == -1


def test_bad_steps_leave_no_trace(optimizer):
    wrapped, _ = optimizer
    with_bad = run(wrapped, [GOOD, BAD, BAD, GOOD])
    without = run(wrapped, [GOOD, GOOD])
    assert_same_bits(with_bad[-1][0], without[-1][0])
    assert_same_bits(with_bad[-1][1].inner_state, without[-1][1].inner_state)
    assert int(with_bad[-1][1].skipped_count) == 2
    for updates, _ in with_bad[1:3]:
        # -0.0 in the parameters included.
        assert_same_bits(optax.apply_updates(PARAMS, updates), PARAMS)


def test_no_bad_step_ever_gets_through_and_the_alarm_stays(optimizer):
    found = run(optimizer[0], [BAD] * 20 + [GOOD])
    for step, (updates, state) in enumerate(found[:20], start=1):
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(updates))
        assert int(state.streak) == int(state.skipped_count) == step
        assert bool(state.alarm) == (step >= 3)
    updates, state = found[-1]
    assert np.any(np.asarray(updates["a"]) != 0)
    assert int(state.streak) == 0 and bool(state.alarm)


def test_the_streak_starts_anew(optimizer):
    found = run(optimizer[0], [BAD, BAD, GOOD, BAD, BAD])
    assert [int(state.streak) for _, state in found] == [1, 2, 0, 1, 2]
    assert not any(bool(state.alarm) for _, state in found)


def test_metrics_and_path(optimizer):
    _, state = run(optimizer[0], [GOOD, BAD])[-1]
    metrics = clipjax.metrics(state)
    assert int(metrics["skip_nonfinite/skipped_count"]) == 1
    assert int(metrics["skip_nonfinite/streak"]) == 1
    assert not bool(metrics["skip_nonfinite/alarm"])
    assert float(metrics["clip/grad_norm_raw"]) == pytest.approx(10.25**0.5)
    assert clipjax.nonfinite_path(state, PARAMS) == "b"


def test_scan_and_a_name_of_its_own(optimizer):
    _, inner = optimizer
    wrapped = clipjax.skip_nonfinite(inner, name="guard")
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), GOOD, BAD, GOOD)

    def step(state, grads):
        updates, state = wrapped.update(grads, state, PARAMS)
        return state, updates

    state, updates = jax.lax.scan(step, wrapped.init(PARAMS), batches)
    assert np.all(np.isfinite(updates["b"]))
    assert int(clipjax.metrics(state)["guard/skipped_count"]) == 1


def test_extra_arguments_reach_the_inner_optimizer():
    seen = []

    def update(updates, state, params=None, *, value):
        seen.append(value)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    wrapped = clipjax.skip_nonfinite(inner)
    wrapped.update(GOOD, wrapped.init(PARAMS), PARAMS, value=3.0)
    assert seen == [3.0]


def test_integer_leaves_and_keys_in_the_inner_state():
    inner = optax.add_noise(0.1, 0.55, key=jax.random.key(0))
    wrapped = clipjax.skip_nonfinite(inner)
    state = wrapped.init(PARAMS)
    with jax.numpy_dtype_promotion("standard"):  # Optax itself mixes dtypes here
        _, after = wrapped.update(BAD, state, PARAMS)
        _, later = wrapped.update(GOOD, state, PARAMS)
    key = jax.random.key_data(state.inner_state.rng_key)
    kept = jax.random.key_data(after.inner_state.rng_key)
    assert jnp.array_equal(kept, key)
    moved = jax.random.key_data(later.inner_state.rng_key)
    assert not jnp.array_equal(moved, key)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"alarm_after": 0}, ValueError, "alarm_after must be .* got 0"),
        (
            {"alarm_after": True},
            TypeError,
            "alarm_after must be an integer of at least [0-9]+, got True",
        ),
        (
            {"alarm_after": 2.0},
            TypeError,
            "alarm_after must be an integer of at least [0-9]+, got 2.0",
        ),
    ],
)
def test_bad_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        clipjax.skip_nonfinite(optax.sgd(0.1), **arguments)


def test_it_takes_multi_steps_as_they_are():
    """The other way round, NaN would stay in the sum that is accumulated."""
    optimizer = clipjax.skip_nonfinite(optax.MultiSteps(optax.sgd(1.0), 2))
    params = jnp.zeros(1)
    state = optimizer.init(params)
    for number in (1.0, jnp.nan, 3.0):
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes here
            updates, state = optimizer.update(jnp.full(1, number), state, params)
    np.testing.assert_array_equal(updates, [-2.0])
