"""What every clip promises about the numbers that it gives back."""

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import (
    assert_close,
    assert_same_bits,
    bits,
    cosine,
    eps,
    kinds,
    norm,
    random_tree,
)

import clipjax
from clipjax import granularity, norms, rules

every_clip = pytest.mark.parametrize("key", catalogue.CLIPS)

# Clips whose threshold is one number in the state, to be edited without a trace.
EDITABLE = [
    key
    for key in catalogue.CLIPS
    if key != catalogue.CHAIN
    and catalogue.clip(key).clipper.threshold.kind == "constant"
    and key != "threshold-array"
]
# Clips that leave a gradient below its threshold alone.
KEEPING = [
    key
    for key in EDITABLE
    if isinstance(catalogue.clip_parts(key).rule, rules.Hard | rules.Skip)
]


def run(key, grads, threshold=None, history=0):
    """Runs the compiled update of a catalogue entry, with another threshold."""
    clip, params = catalogue.clip(key), catalogue.parameters()
    state = clip.init(params)
    for seed in range(history):
        _, state = catalogue.jitted(key)(catalogue.gradients(seed), state, params)
    if threshold is not None:
        edited = jax.tree.map(
            lambda old: jnp.full_like(old, threshold), state.threshold
        )
        state = state._replace(threshold=edited)
    return catalogue.jitted(key)(grads, state, params)


@pytest.mark.parametrize(
    "key",
    [
        "recipe-clip_by_global_norm",
        "recipe-adaptive_grad_clip",
        "recipe-clip_by_block_rms",
        "norm-spectral",
    ],
)
def test_jit_equals_eager(key):
    clip, params = catalogue.clip(key), catalogue.parameters()
    grads = catalogue.gradients()
    eager = clip.update(grads, clip.init(params), params)
    rtol = 8 * eps(jnp.float32)
    assert_close(run(key, grads), eager, rtol=rtol)


@every_clip
@pytest.mark.parametrize("size", [0.0, 1e-9, 5.0])
def test_numbers_are_finite_and_zero_stays_zero(key, size):
    grads = catalogue.gradients(size=size)
    updates, state = run(key, grads)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))
    if size == 0:
        assert norm(updates) == 0
        info = catalogue.clip_state(state).info
        assert float(info.norm) == float(info.clipped_norm) == 0
        assert float(info.factor) == 1


@pytest.mark.parametrize("key", EDITABLE)
def test_threshold_zero_gives_exact_zeros(key):
    updates, state = run(key, catalogue.gradients(), threshold=0.0)
    assert norm(updates) == 0
    assert float(state.info.clipped_norm) == 0
    assert float(state.info.clipped_fraction) == 1
    assert int(state.info.clipped_steps) == 1
    assert int(state.info.invalid_threshold_count) == 0
    updates, state = run(key, catalogue.gradients(size=0), threshold=0.0)
    assert norm(updates) == 0
    assert float(state.info.factor) == 1


@pytest.mark.parametrize("key", EDITABLE)
def test_threshold_inf_measures_only(key):
    grads = catalogue.gradients()
    updates, state = run(key, grads, threshold=np.inf)
    assert_same_bits(updates, grads)
    assert float(state.info.norm) > 0
    assert float(state.info.norm) == float(state.info.clipped_norm)
    assert float(state.info.factor) == 1
    assert float(state.info.clipped_fraction) == 0
    assert int(state.info.clipped_steps) == 0


@pytest.mark.parametrize("key", EDITABLE)
@pytest.mark.parametrize("threshold", [-1.0, -0.0, -np.inf, np.nan])
def test_traced_bad_threshold_gives_zero_and_a_flag(key, threshold):
    updates, state = run(key, catalogue.gradients(), threshold)
    assert norm(updates) == 0
    is_bad = not threshold == 0
    assert int(state.info.invalid_threshold_count) == is_bad
    _, state = catalogue.jitted(key)(
        catalogue.gradients(), state, catalogue.parameters()
    )
    assert int(state.info.invalid_threshold_count) == 2 * is_bad


@pytest.mark.parametrize("key", KEEPING)
def test_identity_below_the_threshold(key):
    grads = catalogue.gradients(size=0.1)
    subnormal = np.float32(1e-40)
    grads["dense"]["kernel"] = grads["dense"]["kernel"].at[0].set([-0.0, subnormal])
    updates, state = run(key, grads, threshold=1.0)
    assert_same_bits(updates, grads)
    assert bits(updates["dense"]["kernel"][0]) == bits(np.array([-0.0, 1e-40], "f4"))
    assert float(state.info.clipped_fraction) == 0
    assert float(state.info.factor) == 1


@pytest.mark.parametrize("key", EDITABLE)
@pytest.mark.parametrize("exponent", range(-9, 10, 3))
def test_tags_hold_over_eighteen_decades(key, exponent):
    parts = catalogue.clip(key).clipper
    size = 10.0**exponent
    updates, state = run(key, catalogue.gradients(size=size), threshold=1.0)
    before, after = state.info.norm, state.info.clipped_norm
    slack = 1 + eps(jnp.float32)
    if parts.rule.contractive:
        assert after <= before * slack
    if parts.rule.bounded and isinstance(parts.granularity, granularity.Whole):
        power = {norms.l1: 1, norms.linf: np.inf}.get(parts.norm, 2)
        assert norm(updates, power) <= slack
    if parts.rule.bounded and state.info.blocks and not parts.granularity.summarised:
        assert np.all(np.asarray(state.info.blocks.clipped_norm) <= slack)


@every_clip
def test_direction_is_kept(key):
    grads = catalogue.gradients()
    updates, _ = run(key, grads)
    parts = catalogue.clip_parts(key)
    if norm(updates) == 0:
        assert isinstance(parts.rule, rules.Skip)
    elif isinstance(parts.granularity, granularity.Whole):
        assert cosine(grads, updates) == pytest.approx(1, abs=4 * eps(jnp.float32))
    if not parts.granularity.scales:
        return
    for before, after in zip(
        jax.tree.leaves(grads), jax.tree.leaves(updates), strict=True
    ):
        # At every granularity a clip scales by a factor that is not negative.
        assert np.all(np.asarray(before) * np.asarray(after) >= 0)
        if parts.granularity == granularity.leaf():
            turned = 1 - cosine(before, after) if norm(after) else 0
            assert abs(turned) <= 4 * eps(jnp.float32)


@every_clip
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_is_flagged(key, bad):
    grads = catalogue.gradients()
    grads["dense"]["kernel"] = grads["dense"]["kernel"].at[1, 0].set(bad)
    learns = catalogue.clip_parts(key).threshold.remembers
    updates, state = run(key, grads, history=3 if learns else 0)
    info = catalogue.clip_state(state).info
    assert int(info.nonfinite_count) == 1
    assert int(info.nonfinite_leaf) == 1
    assert clipjax.nonfinite_path(state, grads) == "dense/kernel"
    parts = catalogue.clip_parts(key)
    kernel = np.asarray(updates["dense"]["kernel"])
    if key == "guard-zero":
        assert_same_bits(updates, jax.tree.map(jnp.zeros_like, grads))
    elif key == "guard-drop":
        without = catalogue.gradients()
        without["dense"]["kernel"] = without["dense"]["kernel"].at[1, 0].set(0)
        expected, _ = run(key, without)
        assert_same_bits(updates, expected)
    elif isinstance(parts.granularity, granularity.Element):
        clean, _ = run(key, catalogue.gradients())
        assert np.isnan(kernel[1, 0]) if np.isnan(bad) else kernel[1, 0] * bad > 0
        assert np.isfinite(np.delete(kernel.reshape(-1), 2)).all()
        assert_same_bits(updates["scale"], clean["scale"])
    elif info.threshold == np.inf:  # not clipped
        assert np.isnan(kernel[1, 0]) if np.isnan(bad) else kernel[1, 0] == bad
    elif isinstance(parts.granularity, granularity.Whole):
        # Never one leaf silently zero: the whole block is lost, and says so.
        assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(updates))
    else:
        assert np.isnan(kernel[1, 0])
        assert np.isfinite(updates["scale"])


def test_finite_entries_of_the_other_blocks_survive():
    grads = {"bad": jnp.array([jnp.inf, 1.0]), "good": jnp.array([3.0, 4.0])}
    updates, state = clipjax.clip_by_leaf_norm(1.0).update(grads, None)
    assert np.all(np.isnan(updates["bad"]))
    np.testing.assert_allclose(updates["good"], [0.6, 0.8], rtol=1e-6)
    assert int(state.info.nonfinite_count) == 1


@pytest.mark.parametrize("dtype", ["float16", "complex64"])
@every_clip
def test_dtype_is_kept(key, dtype):
    if (key, dtype) == ("threshold-estimated_smoothness", "complex64"):
        pytest.skip("it remembers gradients in the parameters' dtype, here real")
    clip, params = catalogue.clip(key), catalogue.parameters()
    grads = jax.tree.map(lambda leaf: leaf.astype(dtype), catalogue.gradients())
    grads["scale"] = 2 * jnp.ones((), jnp.float32)  # a mixed tree
    state = clip.init(params)
    updates, after = jax.eval_shape(clip.update, grads, state, params)
    assert kinds(updates) == kinds(grads)
    assert kinds(after) == kinds(state)


@every_clip
def test_float64_is_kept_and_measured_in(key):
    with jax.enable_x64(True):
        clip = catalogue.CLIPS[key]()
        params = catalogue.parameters(jnp.float64)
        grads = catalogue.gradients(dtype=jnp.float64)
        grads["scale"] = grads["scale"].astype(jnp.bfloat16)
        state = clip.init(params)
        updates, after = jax.eval_shape(clip.update, grads, state, params)
        assert kinds(updates) == kinds(grads)
        assert kinds(after) == kinds(state)
        assert catalogue.clip_state(after).info.norm.dtype == jnp.float64


@every_clip
def test_weak_types_are_kept(key):
    clip, params = catalogue.clip(key), catalogue.parameters()
    weak = jnp.asarray(2.0)
    assert jax.typeof(weak).weak_type
    grads = catalogue.gradients() | {"scale": weak}
    state = clip.init(params)
    updates, after = jax.eval_shape(clip.update, grads, state, params)
    assert kinds(updates) == kinds(grads)
    assert kinds(after) == kinds(state)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "key", ["recipe-clip_by_global_norm", "recipe-clip_by_leaf_norm"]
)
def test_narrow_dtypes_are_rounded_once(key, dtype):
    shapes = {"dense": {"bias": (20,), "kernel": (9, 20)}, "scale": ()}
    grads = random_tree(3, shapes, dtype, size=50.0)
    updates, state = catalogue.jitted(key)(grads, catalogue.clip(key).init(grads), None)
    factors = {"recipe-clip_by_global_norm": 1 / norm(grads)}
    for before, after in zip(
        jax.tree.leaves(grads), jax.tree.leaves(updates), strict=True
    ):
        factor = min(1.0, factors.get(key, 1 / norm(before)))
        exact = np.asarray(before, np.float64) * factor
        # Half an ulp is one rounding; a second one would add another half.
        error = np.abs(np.asarray(after, np.float64) - exact)
        half_ulp = eps(dtype) * 2.0 ** np.floor(np.log2(np.abs(exact))) / 2
        assert np.all(error <= half_ulp * (1 + 1e-3))
    assert state.info.norm.dtype == jnp.float32
