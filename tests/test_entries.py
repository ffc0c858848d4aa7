"""Clips of single entries: what they clip, and what their report costs and says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_same_bits, flat, norm, random_tree

import clipjax
from clipjax import guards, rules

GRADS = random_tree(0, {"b": (4,), "w": (3, 4)}, size=10.0)


def test_every_entry_is_clipped_by_itself_and_counted():
    clip = clipjax.clip_by_value(0.5)
    updates, state = clip.update(GRADS, clip.init(GRADS))
    assert_same_bits(updates, jax.tree.map(lambda g: jnp.clip(g, -0.5, 0.5), GRADS))
    info = state.clip_info
    fraction = np.mean(np.abs(flat(GRADS)) > 0.5)
    assert float(info.clipped_fraction) == pytest.approx(fraction)
    assert float(info.norm_before) == pytest.approx(norm(GRADS), rel=1e-6)
    assert float(info.norm_after) == pytest.approx(norm(updates), rel=1e-6)


def test_without_a_report_the_same_comes_out():
    for rule in (rules.hard, rules.soft):
        with_report = clipjax.clip_entries(0.5, rule=rule)
        without = clipjax.clip_entries(0.5, rule=rule, report=False)
        state = without.init(GRADS)
        updates, after = without.update(GRADS, state)
        assert_same_bits(updates, with_report.update(GRADS, None)[0])
        assert_same_bits(after.clip_info, state.clip_info)
        assert int(after.clip_steps) == 1


def test_entries_that_are_not_finite_do_not_count_as_clipped():
    bad = {
        "bad": jnp.array([9.0, jnp.nan, jnp.inf, 3.0]),
        "good": jnp.array([5.0, 0.1]),
    }
    updates, state = clipjax.clip_by_value(0.5).update(bad, None)
    np.testing.assert_array_equal(updates["bad"], [0.5, np.nan, 0.5, 0.5])
    np.testing.assert_array_equal(updates["good"], np.float32([0.5, 0.1]))
    assert float(state.clip_info.clipped_fraction) == 0
    assert int(state.clip_info.nonfinite_steps) == 1
    dropped = clipjax.clip_entries(0.5, nonfinite=guards.drop)
    updates, state = dropped.update(bad, None)
    np.testing.assert_array_equal(updates["bad"], [0.5, 0, 0, 0.5])
    assert int(state.clip_info.first_nonfinite_leaf) == 0
    # Nor does an infinite entry that nothing bounds.
    infinite = {"w": jnp.array([jnp.inf, 1.0])}
    updates, state = clipjax.clip_by_value(jnp.float32(jnp.inf)).update(infinite, None)
    assert_same_bits(updates, infinite)
    assert float(state.clip_info.clipped_fraction) == 0


def test_a_schedule_may_give_integers():
    clip = clipjax.clip_by_value(lambda steps: steps + 1)
    updates, state = clip.update({"w": jnp.array([2.0, 0.5])}, None)
    np.testing.assert_array_equal(updates["w"], [1.0, 0.5])
    assert float(state.clip_info.clip_threshold) == 1


def test_a_threshold_of_zero_stops_subnormal_entries_too():
    entries = np.array([1e-40, -1e-39, 2.0, -0.0], np.float32)
    updates, _ = jax.jit(clipjax.clip_by_value(0.0).update)(entries, None)
    np.testing.assert_array_equal(updates, np.zeros(4))
    updates, _ = jax.jit(clipjax.clip_by_value(3.0).update)(entries, None)
    assert_same_bits(updates, jnp.asarray(entries))
