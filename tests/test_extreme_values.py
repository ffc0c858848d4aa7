"""Right values where squares leave the range of float32, and for NaN and infinity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import norm, wide

import clipjax
from clipjax import granularity, norms

DIRECTION = np.float32([0.6, -0.8])


# Norms about 1, with an outlier at the end.
NORMS = np.array([*np.exp(0.1 * np.random.default_rng(0).standard_normal(40)), 9.0])
SCALES = np.array([1.0, 1e-25, 2.8e-25, 1e-19, 1e19, 1e25, 9e25, 1e32])


def play(make):
    """Gives the lengths of updates relative to each scale, of shape (steps, scales)."""

    @jax.jit
    @jax.vmap
    def update(scale, grads, state):
        return make(scale).update(grads, state)

    scales = SCALES.astype(np.float32)
    state = jax.jit(jax.vmap(lambda scale: make(scale).init(jnp.zeros(2))))(scales)
    found = []
    for size in NORMS:
        grads = np.float32(size * SCALES)[:, None] * DIRECTION
        updates, state = update(scales, grads, state)
        found.append([norm(each) for each in np.asarray(updates)] / SCALES)
    return np.array(found)


@pytest.mark.parametrize(
    "make",
    [
        lambda scale: clipjax.zclip(max_grad_norm=None),
        lambda scale: clipjax.clip_update_by_history(16),
        lambda scale: clipjax.autoclip(50.0, 16),
        lambda scale: clipjax.norm_growth_limiter(1.1),
        lambda scale: clipjax.adagc(scale, warmup_steps=4),
        lambda scale: clipjax.aggc(),
        lambda scale: clipjax.clip_by(clipjax.thresholds.ema(2.0)),
    ],
    ids=["zclip", "by_history", "autoclip", "growth", "adagc", "aggc", "ema"],
)
def test_learnt_thresholds_do_not_depend_on_the_scale(make):
    found = play(make)
    expected = found[:, 0]
    assert expected[-1] < 5
    for scale, lengths in zip(SCALES, found.T, strict=True):
        if scale < 1e-6 and "zscore" in repr(make(1.0)):
            # 1e-6 is added to the deviation, as published: there are no outliers.
            np.testing.assert_allclose(lengths, NORMS, rtol=1e-6)
        else:
            np.testing.assert_allclose(lengths, expected, rtol=5e-6, err_msg=f"{scale}")


def test_lengths_near_one_do_not_depend_on_the_scale():
    found = play(lambda scale: clipjax.gradient_stabilizer(eps=0.0)) * SCALES
    expected = np.broadcast_to(found[:, :1], found.shape)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


PARAMS = {"w": np.float32([3.0, 4.0])}


@functools.cache
def larc(**parts):
    """Compiles an update of LARC once for all its gradients."""
    clip = clipjax.larc_clip(0.1, 0.02, **parts)
    update = jax.jit(
        lambda grads, params: clip.update(grads, clip.init(params), params)
    )
    return lambda grads, params=PARAMS: update(grads, params)


def test_larc_clip_with_nan_gives_nan_in_that_leaf_only():
    params = dict.fromkeys(("bad", "good"), np.float32([3.0, 4.0]))
    for bad in ([np.nan, 1e6], [np.inf, 1e6], [-np.inf, np.nan]):
        grads = {"bad": np.float32(bad), "good": np.float32([30.0, 40.0])}
        for parts in ({}, {"weight_decay": 1e-4}):
            updates, state = larc(**parts)(grads, params)
            assert np.all(np.isnan(updates["bad"]))
            assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(state))
            assert norm(updates["good"]) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e-3, 1.0, 1e3, 1e9])
def test_larc_clip_with_decay_takes_no_step_that_is_too_long(size):
    """The step η·u is at most τ·‖w‖, however small the gradient is."""
    grads = {"w": np.float32(size) * np.float32([0.8, -0.6])}
    rate, trust, decay = 0.1, 0.02, 5.0
    updates, _ = larc(weight_decay=decay)(grads)
    gradient, weights = wide(grads["w"]), wide(PARAMS["w"])
    length = np.linalg.norm(gradient) + decay * np.linalg.norm(weights) + 1e-8
    factor = min(1, trust * np.linalg.norm(weights) / (rate * length))
    expected = (gradient + decay * weights) * factor
    np.testing.assert_allclose(updates["w"], expected, rtol=2e-6)
    assert rate * norm(updates["w"]) <= trust * 5 * (1 + 1e-6)


def test_larc_clip_with_decay_leaves_integers_alone_and_keeps_dtypes():
    params = {"w": jnp.array([3.0, 4.0]), "steps": jnp.array([7])}
    grads = {"w": jnp.array([0.3, 0.4], jnp.bfloat16), "steps": jnp.array([2])}
    clip = clipjax.larc_clip(0.1, 0.02, weight_decay=0.01)
    state = clip.init(params)
    updates, after = jax.jit(clip.update)(grads, state, params)
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["steps"], [2])
    assert jax.tree.structure(after) == jax.tree.structure(state)
    expected = wide(grads["w"]) + 0.01 * wide(params["w"])
    np.testing.assert_allclose(wide(updates["w"]), expected, rtol=2**-8)


NORM_PARTS = [norms.l1, norms.l2, norms.rms, norms.linf, norms.lp(3)]


@jax.jit
def by_every_norm(grads):
    """Clips by each norm in one program, which compiles faster than one for each."""
    return {
        repr(part): clipjax.clip_by(
            0.5, granularity=granularity.leaf(), norm=part
        ).update(grads, None)
        for part in NORM_PARTS
    }


@pytest.mark.parametrize("name", [repr(part) for part in NORM_PARTS])
def test_the_norm_of_a_gradient_with_nan_or_infinity_is_infinite(name):
    """Whatever the size of the leaf, and where in it the entry is."""
    for size in (1, 5000):
        for bad in (np.nan, np.inf, -np.inf):
            for position in (0, size - 1):
                leaf = np.ones(size, "f4")
                leaf[position] = bad
                grads = {"bad": leaf, "good": np.ones(2, "f4")}
                updates, state = by_every_norm(grads)[name]
                info = state.clip_info
                assert float(info.norm_before) == np.inf
                assert float(info.block_norms_before[0]) == np.inf
                assert np.isfinite(info.block_norms_before[1])
                assert np.all(np.isnan(updates["bad"]))
                assert norm(updates["good"]) > 0
                assert int(info.first_nonfinite_leaf) == 0


def test_clips_of_units_and_of_entries_report_the_same():
    for clip in (
        clipjax.clip_by(0.5, granularity=granularity.unit()),
        clipjax.clip_by_value(0.5),
        clipjax.spectral_clip(0.5),
    ):
        update = jax.jit(clip.update)
        for bad in (np.nan, np.inf):
            _, state = update(np.float32([[1.0, bad], [1.0, 1.0]]), None)
            assert float(state.clip_info.norm_before) == np.inf
            assert int(state.clip_info.nonfinite_steps) == 1


def test_norms_of_leaves_whose_whole_is_beyond_its_report_are_clipped():
    grads = {"a": np.full(3, 1e36, "f4"), "b": np.full(2, -1e36, "f4")}
    for clip in (clipjax.clip_by_leaf_norm(1.0), clipjax.adagc(1.0)):
        updates, state = jax.jit(clip.update)(grads, clip.init(grads))
        whole = clip.clipper.threshold.kind == "adaptive-tensorwise"
        lengths = [norm(updates)] if whole else list(map(norm, updates.values()))
        np.testing.assert_allclose(lengths, 1, rtol=1e-6)
        # The report says inf, and the step is none with NaN or inf for that.
        assert np.isinf(state.clip_info.norm_before)
        assert int(state.clip_info.nonfinite_steps) == 0


def test_a_bad_block_is_reported_as_infinite_and_the_others_as_they_are():
    grads = {"a": np.float32([np.nan, 1.0]), "b": np.float32([3.0, 4.0])}
    clip = clipjax.clip_by_leaf_norm(1.0)
    updates, state = jax.jit(clip.update)(grads, clip.init(grads))
    assert np.isnan(updates["a"]).all() and norm(updates["b"]) == pytest.approx(1)
    np.testing.assert_array_equal(state.clip_info.block_norms_before, [np.inf, 5])
    np.testing.assert_array_equal(state.clip_info.block_norms_after, [np.inf, 1])
    assert int(state.clip_info.nonfinite_steps) == 1
