"""What every clip promises about the numbers that it gives back.

Over one clip of each structure, against NumPy in float64.
"""

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ENTRIES, LEARNT, about, run
from oracle import (
    assert_close,
    assert_same_bits,
    block_norms,
    clipped,
    cosine,
    eps,
    flat,
    norm,
    random_tree,
)

import clipjax
from clipjax import rules

every_clip = pytest.mark.parametrize("name", catalogue.REPRESENTATIVES)
UNREPORTED = "entries-unreported"
# Power iteration approaches the largest singular value from below.
RTOL = {"spectral": 1e-3, "svd": 1e-5}


@every_clip
def test_numbers_at_every_magnitude(name):
    params = catalogue.parameters()
    for exponent in (-30, -25, -9, -1, 0, 1, 9, 20, 30):
        size = 10.0**exponent
        grads = catalogue.gradients(exponent + 40, size=size)
        with about(f"{name} at {size}"):
            updates, state = run(name, grads, 0.2 * size)
            limit = float(np.float32(0.2 * size))
            expected = clipped(name, grads, limit, params)
            rtol = RTOL.get(name, 2e-6)
            assert_close(updates, expected, rtol=rtol, atol=rtol * limit)
            if name != UNREPORTED:
                changed = norm(updates) < norm(grads) * (1 - 1e-6)
                assert int(state.clip_info.clipped_steps) == changed == 1


@every_clip
def test_what_is_reported_is_what_was_done(name):
    if name == UNREPORTED:
        return
    grads = catalogue.gradients()
    updates, state = run(name, grads, 1.0)
    info, before = state.clip_info, block_norms(name, grads)
    power = {"linf": np.inf, "rms": "rms"}.get(name, 2)
    length = {"spectral": np.inf, "svd": np.inf}.get(name, power)
    measured = before if name in ("spectral", "svd") else grads
    rtol = RTOL.get(name, 2e-6)
    assert float(info.norm_before) == pytest.approx(norm(measured, length), rel=rtol)
    if name not in ("spectral", "svd"):
        assert float(info.norm_after) == pytest.approx(norm(updates, power), rel=rtol)
        ratio = norm(updates, power) / norm(grads, power)
        assert float(info.clip_ratio) == pytest.approx(ratio, rel=rtol)
        assert float(info.average_clip_ratio) == pytest.approx(ratio, rel=rtol)
    lengths = [np.unique(leaf) for leaf in jax.tree.leaves(before)]
    if name in ("leaf", "rms", "learnt-leaf", "spectral", "svd"):
        lengths = np.concatenate(lengths)
        np.testing.assert_allclose(info.block_norms_before, lengths, rtol=rtol)
        np.testing.assert_allclose(
            info.block_norms_after, np.minimum(lengths, 1), rtol=rtol
        )
        np.testing.assert_array_equal(info.block_thresholds, 1)
        fraction = np.mean(lengths > 1)
        assert float(info.clipped_fraction) == pytest.approx(fraction)
    if name in ENTRIES:
        fraction = np.mean(np.abs(flat(grads)) > 1)
        assert float(info.clipped_fraction) == pytest.approx(fraction)


@every_clip
def test_not_a_bit_changes_below_the_threshold(name):
    grads = catalogue.gradients(size=0.1)
    odd = np.array([-0.0, 1e-40], "f4")
    grads["dense"]["kernel"] = grads["dense"]["kernel"].at[0].set(odd)
    for threshold in (1e4, np.inf):
        updates, state = run(name, grads, threshold)
        assert_same_bits(updates, grads)
        info = state.clip_info
        assert float(info.clipped_fraction) == int(info.clipped_steps) == 0
        assert float(info.clip_ratio) == 1
        if name not in (UNREPORTED, "spectral", "svd"):
            power = {"linf": np.inf, "rms": "rms"}.get(name, 2)
            length = pytest.approx(norm(grads, power), rel=1e-6)
            assert float(info.norm_before) == float(info.norm_after) == length


@every_clip
def test_zero_stays_zero(name):
    for threshold in (1.0, 0.0, np.inf):
        updates, state = run(name, catalogue.gradients(size=0.0), threshold)
        assert_same_bits(
            jax.tree.map(jnp.abs, updates), jax.tree.map(jnp.zeros_like, updates)
        )
        info = state.clip_info
        assert float(info.norm_before) == float(info.norm_after) == 0
        assert float(info.clip_ratio) == 1


@every_clip
def test_a_threshold_of_zero_or_none_at_all_stops_everything(name):
    grads = catalogue.gradients()
    for threshold in (0.0, -0.0, -1.0, -np.inf, np.nan):
        with about(f"{name} at {threshold}"):
            updates, state = run(name, grads, threshold)
            assert norm(updates) == 0
            if name == UNREPORTED:
                continue
            is_bad = not threshold == 0
            assert int(state.clip_info.invalid_threshold_steps) == is_bad
            assert int(state.clip_info.clipped_steps) == 1
            assert float(state.clip_info.clipped_fraction) == 1
            _, state = run(name, grads, 1.0, state)
            assert int(state.clip_info.invalid_threshold_steps) == is_bad


@every_clip
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite(name, bad):
    params, state = catalogue.parameters(), None
    for seed in range(2):
        _, state = run(name, catalogue.gradients(seed), 1.0, state)
    grads = catalogue.gradients()
    spot = jax.tree.map(lambda leaf: np.zeros(np.shape(leaf)), grads)
    spot["dense"]["kernel"][1, 0] = 1
    poisoned = jax.tree.map(lambda g, s: jnp.where(s > 0, bad, g), grads, spot)
    updates, after = run(name, poisoned, 1.0, state)
    without = jax.tree.map(lambda g, s: np.where(s > 0, 0, g), grads, spot)
    expected = clipped(name, without, 1.0, params)
    if name == "zero":
        expected = jax.tree.map(np.zeros_like, expected)
    elif name in ENTRIES and "drop" not in name:
        expected["dense"]["kernel"][1, 0] = np.clip(bad, -1, 1)
    elif "drop" not in name and name != "learnt-leaf":
        # Never one leaf silently zero: the whole block is lost, and says so.
        mates = block_norms(name, spot)
        expected = jax.tree.map(
            lambda e, m: np.where(m > 0, np.nan, e), expected, mates
        )
    rtol = RTOL.get(name, 2e-6)
    assert_close(updates, expected, rtol=rtol, atol=rtol)
    if name == UNREPORTED:
        return
    info, drops = after.clip_info, "drop" in name or name == "learnt-leaf"
    assert int(info.nonfinite_steps) == 1 and int(after.clip_steps) == 3
    assert clipjax.nonfinite_path(after, grads) == "dense/kernel"
    assert (float(info.norm_before) == np.inf) != drops
    assert int(info.clipped_steps) == int(state.clip_info.clipped_steps)
    # A non-finite norm never enters a memory.
    assert_same_bits(after.clip_memory, state.clip_memory)
    if name in LEARNT:
        _, later = run(name, catalogue.gradients(2), 1.0, after)
        assert np.all(np.isfinite(flat(later.clip_memory)))
        (memory,) = later.clip_memory.values()
        assert np.all(np.asarray(memory.norms_seen) == 3)


def test_rules_keep_their_tags_on_the_updates():
    parts = {name: make() for name, make in catalogue.RULES.items()}
    grads = random_tree(0, (9,))

    @jax.jit
    @jax.vmap
    def updates(size):
        return {
            name: clipjax.clip_by(1.0, rule=rule).update(size * grads, None)[0]
            for name, rule in parts.items()
        }

    sizes = 10.0 ** np.arange(-30.0, 31.0, 1.5)
    found = updates(jnp.asarray(sizes, jnp.float32))
    for name, rule in parts.items():
        for size, update in zip(sizes, found[name], strict=True):
            length, slack = norm(update), 1 + 8 * eps("f4")
            with about(f"{name} at {size}"):
                assert length <= size * slack or not rule.contractive
                assert length <= slack or not rule.bounded
                if length == 0:
                    assert isinstance(rule, rules.Skip) and size > 1
                else:
                    assert cosine(grads, update) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["leaf", "learnt-unit", "entries", "svd"])
def test_jit_equals_eager(name):
    params, grads = catalogue.parameters(), catalogue.gradients()
    clip = catalogue.REPRESENTATIVES[name](jnp.float32(1.0))
    eager = clip.update(grads, clip.init(params), params)
    assert_close(run(name, grads, 1.0), eager, rtol=16 * eps("f4"), atol=1e-7)


@pytest.mark.parametrize("name", ["whole", "learnt-leaf", "params", "entries"])
def test_a_batch_of_trees_is_clipped_tree_by_tree(name):
    params, make = catalogue.parameters(), catalogue.REPRESENTATIVES[name]
    batch = [catalogue.gradients(seed, size=10.0**seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch)
    clip = make(1.0)
    state = clip.init(params)
    many = jax.jit(jax.vmap(lambda grads: clip.update(grads, state, params)))(stacked)
    for seed, grads in enumerate(batch):
        mine = jax.tree.map(lambda leaf, seed=seed: leaf[seed], many)
        assert_close(mine, run(name, grads, 1.0), rtol=16 * eps("f4"), atol=1e-7)
