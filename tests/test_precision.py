"""Every dtype: what is measured, what comes out, and what is refused."""

import catalogue
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from catalogue import NARROW
from oracle import assert_same_bits, bits, eps, hard_clip, kinds, norm, wide

import clipjax
from clipjax import granularity, norms

BELOW_SIXTEEN_BITS = NARROW[2:]
# A step of each kind of memory: outliers, zeros, subnormals of the narrow dtypes.
STEPS = np.random.default_rng(0).standard_normal((3, 2, 3)) * [
    [[1.0]],
    [[4.0]],
    [[0.2]],
]


def half_ulp(values, dtype):
    """Gives half the distance to the next number of a dtype, subnormals included."""
    info = jnp.finfo(dtype)
    size = np.maximum(np.abs(wide(values)), float(info.tiny))
    return float(info.eps) * 2.0 ** np.floor(np.log2(size)) / 2


def in_scan(clip, steps, params):
    """Gives all updates of a run under jit and scan, whose states keep their kinds."""

    def step(state, grads):
        updates, state = clip.update(grads, state, params)
        return state, updates

    state = clip.init(params)
    after = jax.eval_shape(lambda: jax.lax.scan(step, state, steps)[0])
    assert kinds(after) == kinds(state)
    # Without the last state: the reports compile as long as the updates.
    return jax.jit(lambda: jax.lax.scan(step, state, steps)[1])()


# One of each way to rescale, with and without a memory; others share these, and blocks
# and entries are compared with NumPy below.
REPRESENTATIVE = ["adagc", "spectral_clamp", "scale_by_l0_l1"]


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_every_narrow_dtype_is_the_wide_result_rounded_once(name):
    # One tree with a leaf of each dtype, so that one compilation tries them all.
    dtypes = NARROW if name == "adagc" else ("float16", "bfloat16", "float8_e4m3fn")
    steps = {dtype: jnp.asarray(STEPS, dtype) for dtype in dtypes}
    steps["complex64"] = jnp.asarray(STEPS + 1j, "complex64")
    widened = {
        dtype: leaf if dtype == "complex64" else leaf.astype(jnp.float32)
        for dtype, leaf in steps.items()
    }
    params = {dtype: jnp.ones((2, 3)) for dtype in steps}
    clip = catalogue.RECIPES[name]()
    updates = in_scan(clip, steps, params)
    exact = in_scan(clip, widened, params)
    assert kinds(updates) == kinds(steps)
    roundings = 2 if f"recipe-{name}" == catalogue.CHAIN else 1
    for dtype in dtypes:
        error = np.abs(wide(updates[dtype]) - wide(exact[dtype]))
        allowed = roundings * half_ulp(exact[dtype], dtype) * (1 + 1e-3)
        assert np.all(error <= allowed), dtype
    np.testing.assert_allclose(updates["complex64"], exact["complex64"], rtol=1e-6)


PARTS = {
    "whole": {},
    "leaf": {"granularity": granularity.leaf(), "norm": norms.rms},
    "entries": None,
}


def clip_of(part):
    settings = PARTS[part]
    return (
        clipjax.clip_by_value(0.5)
        if settings is None
        else clipjax.clip_by(0.5, **settings)
    )


@pytest.mark.parametrize("part", ["leaf", "entries"])
def test_numpy_in_float64_agrees(part):
    # A leaf of each dtype, so that one compilation tries them all.
    steps = {dtype: jnp.asarray(STEPS, dtype) for dtype in NARROW}

    @jax.jit
    def update(steps):
        updates, state = clip_of(part).update(steps, None)
        return updates, state.clip_info.block_norms_before

    updates, lengths = update(steps)
    for position, dtype in enumerate(sorted(NARROW)):
        leaf = steps[dtype]
        if part == "entries":
            exact = np.clip(wide(leaf), -0.5, 0.5)
        else:
            exact = hard_clip(leaf, 0.5, "rms")
            found = float(lengths[position])
            assert found == pytest.approx(norm(leaf, "rms"), rel=3e-7)
        error = np.abs(wide(updates[dtype]) - exact)
        assert np.all(error <= half_ulp(exact, dtype) * (1 + 1e-3)), dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_numpy_in_float64_agrees_on_a_whole_tree(dtype):
    steps = jnp.asarray(STEPS, dtype)
    updates, state = jax.jit(clip_of("whole").update)(steps, None)
    exact = hard_clip(steps, 0.5)
    length = pytest.approx(norm(steps), rel=3e-7)
    assert float(state.clip_info.norm_before) == length
    error = np.abs(wide(updates) - exact)
    assert np.all(error <= half_ulp(exact, dtype) * (1 + 1e-3))


def numbers_of(dtype):
    """Gives all finite numbers of a dtype, or a sample of those of 16 bits.

    They go up to where the norm of all of them leaves float32.
    """
    size = jnp.finfo(dtype).bits
    codes = np.arange(0, 2**size, 7 if size == 16 else 1)
    codes = codes.astype(np.uint16 if size == 16 else np.uint8)
    numbers = codes.view(getattr(ml_dtypes, dtype, dtype))
    return numbers[np.abs(numbers.astype(np.float32)) < 1e30]


def test_every_bit_pattern_below_the_threshold_is_kept():
    grads = {dtype: numbers_of(dtype) for dtype in NARROW}
    largest = {dtype: float(jnp.finfo(dtype).max) for dtype in NARROW}

    @jax.jit
    def update(grads):
        whole = clipjax.clip_by_global_norm(1e35).update(grads, None)
        entries = {
            dtype: clipjax.clip_by_value(largest[dtype]).update(leaf, None)
            for dtype, leaf in grads.items()
        }
        updates = {d: (whole[0][d], entries[d][0]) for d in NARROW}
        states = [whole[1], *(state for _, state in entries.values())]
        return updates, [state.clip_info.nonfinite_steps for state in states]

    updates, nonfinite_steps = update(grads)
    for dtype, both in updates.items():
        assert [bits(each) for each in both] == [bits(grads[dtype])] * 2, dtype
    assert not np.any(nonfinite_steps)


def test_the_largest_numbers_are_clipped_without_overflow():
    # Formats without an infinity would turn an overflow into NaN.
    largest = {dtype: float(jnp.finfo(dtype).max) for dtype in BELOW_SIXTEEN_BITS}

    @jax.jit
    def update(grads, thresholds):
        return {
            dtype: clipjax.clip_by_global_norm(thresholds[dtype]).update(leaf, None)
            for dtype, leaf in grads.items()
        }

    grads = {d: np.full(1000, -x, getattr(ml_dtypes, d)) for d, x in largest.items()}
    for dtype, (updates, state) in update(grads, largest).items():
        length = pytest.approx(largest[dtype] * 1000**0.5, rel=3e-7)
        assert float(state.clip_info.norm_before) == length, dtype
        expected = np.float32(-largest[dtype] / 1000**0.5).astype(updates.dtype)
        np.testing.assert_array_equal(wide(updates), wide(expected), err_msg=dtype)


HAVE_NAN = [dtype for dtype in BELOW_SIXTEEN_BITS if dtype != "float4_e2m1fn"]


@pytest.mark.parametrize("dtype", HAVE_NAN)
def test_nan_in_eight_bits(dtype):
    grads = {"good": jnp.ones(2, dtype), "w": jnp.asarray([1.0, np.nan], dtype)}
    updates, state = clipjax.clip_by_global_norm(1.0).update(grads, None)
    assert np.all(np.isnan(wide(updates["good"])))
    assert clipjax.nonfinite_path(state, grads) == "w"
    optimizer = clipjax.skip_nonfinite(clipjax.clip_by_global_norm(1.0))
    updates, state = optimizer.update(grads, optimizer.init(grads))
    # -0.0 where the dtype has it; in others its bits would be NaN.
    assert_same_bits(updates, jax.tree.map(lambda g: jnp.full_like(g, -0.0), grads))
    assert norm(updates) == 0 and int(state.skipped_count) == 1


def test_a_format_without_sign_and_zero_is_refused():
    scales = {"w": jnp.ones(2), "scale": jnp.ones(2, jnp.float8_e8m0fnu)}
    clip = clipjax.clip_by_global_norm(1.0)
    for run in (clip.init, lambda grads: clip.update(grads, None)):
        with pytest.raises(TypeError, match="^scale has dtype float8_e8m0fnu"):
            run(scales)
    masked = optax.masked(clip, {"w": True, "scale": False})
    updates, _ = masked.update(scales, masked.init(scales))
    assert bits(updates["scale"]) == bits(scales["scale"])


@pytest.mark.parametrize("name", catalogue.COMPOUNDS)
def test_optimizers_in_eight_bits_are_refused(name):
    # Adam's average of squares would be 0 in them, and its step 0 / 0.
    compound = catalogue.COMPOUNDS[name]()
    grads = {"w": jnp.ones((2, 2), jnp.float8_e4m3fn)}
    if name == "stable_spam_clip":  # two clips, with no optimizer in them
        updates, _ = jax.jit(compound.update)(grads, compound.init(grads))
        assert np.all(np.isfinite(wide(updates["w"])))
        return
    with pytest.raises(TypeError, match="w has dtype float8_e4m3fn, too narrow"):
        compound.init(grads)
    with pytest.raises(TypeError, match="w has dtype float8_e4m3fn, too narrow"):
        compound.update(grads, compound.init({"w": jnp.ones((2, 2))}))


def test_the_second_moment_of_complex_entries_is_real():
    grads = {"z": jnp.asarray([3 + 4j, 0.3 - 0.4j], "complex64")}
    clip = clipjax.spam_clip(optax.scale_by_rms(), theta=4.0, warmup_steps=1)
    update = jax.jit(clip.update)
    with jax.numpy_dtype_promotion("standard"):
        _, state = update(grads, clip.init(grads))
        _, after = update({"z": np.asarray(grads["z"]) * np.complex64(100)}, state)
    # √(θ · (1 - 0.9) · |g|²), of which the largest entry sets the measured norm.
    expected = np.sqrt(4 * 0.1) * np.abs(wide(grads["z"]))
    assert float(after.clip_state.clip_info.norm_after) == pytest.approx(
        np.linalg.norm(expected), rel=1e-5
    )


def test_direction_cosine_of_eight_bits():
    grads = jnp.asarray([3.0, 4.0], jnp.float8_e5m2)
    found = clipjax.direction_cosine(grads, jnp.asarray([4.0, 3.0], jnp.float4_e2m1fn))
    assert float(found) == pytest.approx(24 / 25, rel=4 * eps(jnp.float32))


@pytest.mark.parametrize("part", PARTS)
def test_complex128_is_measured_and_scaled_in_double_precision(part):
    with jax.enable_x64(True):
        grads = {"z": STEPS + 1j * STEPS[::-1] * (1 + 1e-9)}
        assert grads["z"].dtype == "complex128"
        updates, state = jax.jit(clip_of(part).update)(grads, None)
        exact = hard_clip(grads, 0.5, "rms" if part == "leaf" else 2)
        if part == "entries":
            size = np.abs(grads["z"])
            exact = {"z": wide(grads["z"]) * np.minimum(1, 0.5 / size)}
        assert state.clip_info.norm_before.dtype == jnp.float64
        np.testing.assert_allclose(updates["z"], exact["z"], rtol=1e-15)
