"""The state of a clip: what it takes, what it refuses, and that nothing is retraced."""

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import about
from oracle import assert_close, assert_same_bits, eps, kinds, norm

import clipjax
from clipjax import granularity, thresholds

GRAD = jnp.array([3.0, 4.0])


@pytest.mark.parametrize("name", ["whole", "learnt", "learnt-leaf", "learnt-unit"])
def test_a_scan_of_updates_equals_a_loop(name):
    params, clip = catalogue.parameters(), catalogue.REPRESENTATIVES[name](2.0)
    sizes = (5.0, 0.01, 9.0)
    steps = [catalogue.gradients(i, size=size) for i, size in enumerate(sizes)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)

    def step(state, grads):
        updates, state = clip.update(grads, state, params)
        return state, updates

    state = clip.init(params)
    last, updates = jax.jit(lambda state: jax.lax.scan(step, state, stacked))(state)
    for position, grads in enumerate(steps):
        expected, state = catalogue.run(name, grads, 2.0, state)
        mine = jax.tree.map(lambda leaf, i=position: leaf[i], updates)
        # The order of a float32 sum may differ between two compilations.
        assert_close(mine, expected, rtol=8 * eps("f4"))
    assert_close(last, state, rtol=8 * eps("f4"))
    assert int(last.clip_steps) == 3


@pytest.mark.parametrize("name", ["leaf", "entries", "learnt-leaf"])
def test_the_first_state_can_be_donated(name):
    params, grads = catalogue.parameters(), catalogue.gradients()
    clip = catalogue.REPRESENTATIVES[name](1.0)
    # Buffers that XLA cannot reuse in place give a warning, which is an error here.
    step = jax.jit(clip.update, donate_argnums=1)
    first = clip.init(params)
    expected = catalogue.run(name, grads, 1.0)
    assert_close(step(grads, first, params), expected, rtol=8 * eps("f4"))
    assert first.clip_steps.is_deleted()


class Counted:
    """Counts how often a function is traced."""

    def __init__(self, function):
        self.traces = 0
        self.function = function

    def __call__(self, *args):
        self.traces += 1
        return self.function(*args)


def test_one_trace_when_an_array_changes():
    counted = Counted(
        lambda grads, threshold: clipjax.clip_by_global_norm(threshold).update(
            grads, None
        )
    )
    step = jax.jit(counted)
    for threshold in (1.0, 0.5, 2.0):
        updates, _ = step(GRAD, jnp.float32(threshold))
        np.testing.assert_allclose(updates, GRAD / 5 * threshold, rtol=1e-6)
    assert counted.traces == 1


@pytest.mark.parametrize("name", ["schedule", "after", "warmup_statistic"])
def test_one_trace_over_four_steps(name):
    clip = clipjax.clip_by(catalogue.THRESHOLDS[name]())
    counted = Counted(clip.update)
    step, state = jax.jit(counted), clip.init(GRAD)
    for seed in range(4):
        _, state = step(GRAD * (seed + 1.0), state)
    assert counted.traces == 1


def test_a_schedule_is_read_at_the_number_of_updates():
    schedule = optax.linear_schedule(4.0, 1.0, 3)
    clip = clipjax.clip_by_global_norm(schedule)
    state = clip.init(GRAD)
    for expected in (4.0, 3.0, 2.0, 1.0, 1.0):
        updates, state = clip.update(GRAD, state)
        np.testing.assert_allclose(state.clip_info.clip_threshold, expected, rtol=1e-6)
        assert norm(updates) == pytest.approx(expected, rel=1e-6)


def states_of_others():
    """Gives states by what each of them can be told by."""
    params = catalogue.parameters()
    found = {
        name: catalogue.REPRESENTATIVES[name](1.0).init(params)
        for name in ("whole", "leaf", "stacked", "group", "unit", "entries", "svd")
    }
    quantile = thresholds.quantile
    found |= {
        name: clipjax.clip_by(source, granularity=part).init(params)
        for name, source, part in [
            ("ema", thresholds.ema(2.0), granularity.whole()),
            ("quantile of 4", quantile(0.5, 4), granularity.whole()),
            ("quantile of 6", quantile(0.5, 6), granularity.whole()),
            ("quantile per leaf", quantile(0.5, 4), granularity.leaf()),
        ]
    }
    return found


def test_a_state_that_is_not_this_clip_s_is_refused():
    params, grads = catalogue.parameters(), catalogue.gradients()
    quantile = thresholds.quantile(0.5, 4)
    mine = {
        "whole": clipjax.clip_by_global_norm(1.0),
        "leaf": clipjax.clip_by_leaf_norm(1.0),
        "entries": clipjax.clip_by_value(1.0),
        "unit": clipjax.clip_by(1.0, granularity=granularity.unit()),
        "svd": clipjax.spectral_clamp(1.0),
        "quantile of 4": clipjax.clip_by(quantile),
        "quantile per leaf": clipjax.clip_by(quantile, granularity=granularity.leaf()),
    }
    # A clip of singular values is one of leaves as far as a state goes.
    alike = {("leaf", "svd"), ("svd", "leaf")}
    others = states_of_others()
    adam = optax.scale_by_adam().init(params)
    for name, clip in mine.items():
        own = clip.init(params)
        foreign = {k: s for k, s in others.items() if k != name} | {
            "a dictionary": own._asdict(),
            "a list": list(own),
            "a tuple": tuple(own),
            "another clip's name": own._replace(clip_names={"other": own.clip_names}),
            "ScaleByAdamState": adam,
        }
        for other, state in foreign.items():
            if (name, other) in alike:
                continue
            with about(f"{name} given {other}"):
                for update in (clip.update, jax.jit(clip.update)):
                    with pytest.raises(ValueError, match="state is not that of") as why:
                        update(grads, state, params)
                    # Both are named: the clip, and what was given in its place.
                    assert repr(clip) in str(why.value)
                    named = ("a dictionary", "a list", "a tuple", "ScaleByAdamState")
                    if other in named:
                        assert f"got a {other.removeprefix('a ')}" in str(why.value)
        assert kinds(jax.eval_shape(clip.update, grads, own, params)[1]) == kinds(own)


def test_windows_and_blocks_are_told_apart_by_their_numbers():
    long, short = clipjax.autoclip(50, 6), clipjax.autoclip(50, 4)
    message = "quantile.*should have shape .6, 1. and has .4, 1."
    with pytest.raises(ValueError, match=message):
        long.update(GRAD, short.init(GRAD))
    clip = clipjax.clip_by_leaf_norm(1.0)
    with pytest.raises(ValueError, match="should have shape .2,. and has .1,."):
        clip.update({"a": GRAD, "b": GRAD}, clip.init({"a": GRAD}))


def test_the_order_of_arguments_is_named():
    clip = clipjax.clip_by_global_norm(1.0)
    with pytest.raises(TypeError, match="updates first and the state second"):
        clip.update(clip.init(GRAD), GRAD)


def test_the_number_in_the_code_is_the_number_in_force():
    for make in (clipjax.clip_by_global_norm, clipjax.clip_by_value):
        old, new = make(1.0), make(0.5)
        _, state = jax.jit(old.update)(GRAD, old.init(GRAD))
        updates, state = jax.jit(new.update)(GRAD, state)
        expected, _ = jax.jit(new.update)(GRAD, None)
        assert_close(updates, expected)
        assert norm(updates, np.inf) <= 0.5
        assert float(state.clip_info.clip_threshold) == 0.5
    # Also that of a threshold that learns: the history stays, the quantile is another.
    history = clipjax.clip_by(thresholds.quantile(1.0, 4))
    _, state = jax.jit(history.update)(GRAD, history.init(GRAD))
    lower = clipjax.clip_by(thresholds.quantile(1.0, 4, factor=0.5))
    updates, _ = jax.jit(lower.update)(GRAD, state)
    assert norm(updates) == pytest.approx(2.5, rel=1e-6)


def test_a_run_with_optax_s_clip_goes_on_with_clipjax_s():
    params, grads = catalogue.parameters(), catalogue.gradients()
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9))
    mine = optax.chain(clipjax.clip_by_global_norm(1.0), optax.trace(0.9))
    expected, state = theirs.update(grads, theirs.init(params), params)
    expected, _ = theirs.update(grads, state, params)
    updates, state = mine.update(grads, state, params)
    assert_close(updates, expected)
    assert kinds(state) == kinds(mine.init(params))


def test_a_state_of_its_own_is_not_changed_in_place():
    clip = clipjax.clip_by_leaf_norm(1.0)
    state = clip.init(GRAD)
    before = jax.tree.map(np.array, state)
    clip.update(GRAD, state)
    assert_same_bits(jax.tree.map(np.asarray, state), before)
