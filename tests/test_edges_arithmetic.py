"""Sharp edges A: core arithmetic. Ids are item numbers of the edge list."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from oracle import assert_same_bits, bits, eps, norm, random_tree

import clipjax

clip_one = clipjax.clip_by_global_norm(1.0)
GRAD = jnp.array([3.0, 4.0])


@jax.jit
def clipped(grads, threshold):
    """Clips by global norm; one compilation for each form of the gradient."""
    return clipjax.clip_by_global_norm(threshold).update(grads, None)


def run(grads, threshold=1.0):
    return clipped(grads, jnp.float32(threshold))


def test_a01_a_clip_that_fires():
    updates, state = run(GRAD)
    np.testing.assert_allclose(updates, [0.6, 0.8], rtol=1e-6)
    info = state.clip_info
    recorded = info.norm_before, info.norm_after, info.clip_ratio
    np.testing.assert_allclose(recorded, [5.0, 1.0, 0.2], rtol=1e-6)
    assert int(info.clipped_steps) == float(info.clipped_fraction) == 1


def test_a02_norm_equal_to_the_threshold():
    updates, state = run(GRAD, 5.0)
    assert_same_bits(updates, GRAD)
    assert int(state.clip_info.clipped_steps) == 0


def test_a03_every_bit_below_the_threshold():
    grads = jnp.asarray(np.array([0.3, 0.4, -0.0, 1e-40, -1e-45], np.float32))
    updates, _ = run(grads)
    assert_same_bits(updates, grads)
    assert np.signbit(updates[2]) and updates[2] == 0


def test_a04_zero_gradient():
    updates, state = run(jnp.zeros(2))
    assert_same_bits(updates, jnp.zeros(2))
    assert float(state.clip_info.norm_before) == 0
    assert float(state.clip_info.clip_ratio) == 1


@pytest.mark.parametrize("threshold", [0.0, optax.linear_schedule(0.0, 0.0, 1)])
def test_a05_zero_gradient_and_zero_threshold(threshold):
    clip = clipjax.clip_by_global_norm(threshold)
    updates, state = clip.update(jnp.zeros(2), None)
    assert_same_bits(updates, jnp.zeros(2))
    assert float(state.clip_info.clip_threshold) == 0
    assert int(state.clip_info.invalid_threshold_steps) == 0
    updates, state = clip.update(GRAD, None)
    assert_same_bits(updates, jnp.zeros(2))


def test_a06_zero_threshold_fires():
    updates, state = run(GRAD, 0.0)
    assert_same_bits(updates, jnp.zeros(2))
    assert float(state.clip_info.clipped_fraction) == 1


def test_a07_infinite_threshold():
    for clip in (run, lambda g, c: clipjax.clip_by_global_norm(c).update(g, None)):
        updates, state = clip(GRAD, np.inf)
        assert_same_bits(updates, GRAD)
        assert float(state.clip_info.norm_before) == 5
        assert float(state.clip_info.clip_threshold) == np.inf


@pytest.mark.parametrize("threshold", [-1.0, np.nan, True, "1.0"])
def test_a08_bad_threshold_when_built(threshold):
    with pytest.raises((TypeError, ValueError), match="max_norm must be"):
        clipjax.clip_by_global_norm(threshold)


@pytest.mark.parametrize("threshold", [-1.0, np.nan])
def test_a08_bad_threshold_when_traced(threshold):
    updates, state = run(GRAD, threshold)
    assert norm(updates) == 0
    assert int(state.clip_info.invalid_threshold_steps) == 1


def test_a09_tiny_thresholds_need_no_epsilon():
    updates, _ = run(jnp.array([3e-7, 4e-7]), 1e-7)
    assert norm(updates) == pytest.approx(1e-7, rel=4 * eps("f4"))
    grads = jnp.array([1e-8, 0.0])
    assert_same_bits(run(grads, 1e-8)[0], grads)


def test_a10_squares_that_overflow():
    updates, state = run(jnp.array([1e20, 1e20]))
    np.testing.assert_allclose(updates, [0.5**0.5] * 2, rtol=4 * eps("f4"))
    expected = pytest.approx(2**0.5 * 1e20, rel=1e-6)
    assert float(state.clip_info.norm_before) == expected


def test_a11_squares_that_underflow():
    updates, state = run(jnp.array([1e-25, 0.0]), 1e-30)
    np.testing.assert_allclose(updates, [1e-30, 0.0], rtol=4 * eps("f4"))
    assert float(state.clip_info.norm_before) == pytest.approx(1e-25, rel=1e-6)


def test_a12_float16_whose_square_overflows():
    updates, state = run(jnp.array([300.0], jnp.float16))
    assert_same_bits(updates, jnp.array([1.0], jnp.float16))
    assert float(state.clip_info.norm_before) == 300
    mixed = {"half": jnp.array([3.0], jnp.float16), "full": jnp.array([4e5])}
    updates, state = run(mixed)
    assert float(updates["half"][0]) == pytest.approx(7.5e-6, rel=eps(jnp.float16) * 8)


def test_a13_a_thousand_bfloat16_leaves():
    grads = {f"leaf{i:04}": jnp.ones(1, jnp.bfloat16) for i in range(1000)}
    updates, state = clip_one.update(grads, None)
    assert float(state.clip_info.norm_before) == pytest.approx(1000**0.5, rel=1e-6)
    # Each entry is rounded once: 1 / sqrt(1000) lies between two bfloat16 numbers.
    exact = float(jnp.asarray(1000**-0.5, jnp.bfloat16))
    assert {float(leaf[0]) for leaf in updates.values()} == {exact}


def test_a14_the_bound_holds_to_rounding():
    grads = jnp.asarray(np.random.default_rng(0).standard_normal((50, 1000)), "f4")
    updates = jax.jit(jax.vmap(lambda g: clip_one.update(g, None)[0]))(grads)
    lengths = np.linalg.norm(np.asarray(updates, np.float64), axis=1)
    assert np.all(lengths <= 1 + 3 * eps("f4"))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((31,), "f4"), ((5000,), "f4"), ((33, 33, 3), "f4"), ((1000,), jnp.bfloat16)],
)
def test_a14_the_bound_holds_for_equal_entries(shape, dtype):
    # Rounding errors of equal addends do not cancel: XLA's sum of some thousand of them
    # on a CPU is off by up to 2e-5.
    rounding = 2e-5 if np.prod(shape) > 100 else 4 * eps("f4")
    for value in (0.1, 0.3, 0.7, 1.1, 1.3):
        grads = jnp.full(shape, value, dtype)
        updates, state = run(grads, 0.01)
        found = float(state.clip_info.norm_before)
        assert found == pytest.approx(norm(grads), rel=rounding)
        assert norm(updates) <= 0.01 * (1 + 2 * eps(dtype) + rounding)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_a15_float8(dtype):
    grads = jnp.asarray([288.0, 0.0], dtype)
    updates, state = run(grads)
    assert updates.dtype == dtype
    np.testing.assert_array_equal(np.asarray(updates, np.float32), [1.0, 0.0])
    assert float(state.clip_info.norm_before) == float(np.float32(grads[0]))


FLOATS = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]


def test_a16_every_pair_of_dtypes():
    with jax.enable_x64(True):
        for one, other in itertools.product(FLOATS, FLOATS):
            grads = {
                "tuple": (jnp.asarray([3.0], one),),
                "list": [jnp.asarray([4.0], other)],
            }
            out, state = jax.eval_shape(clip_one.update, grads, None)
            assert jax.tree.structure(out) == jax.tree.structure(grads)
            assert out["tuple"][0].dtype == one and out["list"][0].dtype == other
            is_double = {"float64", "complex128"} & {one, other}
            expected = "float64" if is_double else "float32"
            assert state.clip_info.norm_before.dtype == expected


def test_a16_float64_is_measured_in_float64():
    with jax.enable_x64(True):
        grads = {
            "double": jnp.asarray([1.0, 1e-9], jnp.float64),
            "half": jnp.asarray([1e-4], jnp.float16),
        }
        update = jax.jit(clipjax.clip_by_global_norm(0.5).update)
        updates, state = update(grads, None)
        assert float(state.clip_info.norm_before) == pytest.approx(
            norm(grads), rel=1e-15
        )
        factor = 0.5 / norm(grads)
        np.testing.assert_allclose(updates["double"], grads["double"] * factor, 1e-15)


def test_complex_leaves_count_their_magnitude():
    grads = {"z": jnp.array([3 + 4j], jnp.complex64), "x": jnp.array([12.0])}
    updates, state = run(grads)
    assert float(state.clip_info.norm_before) == pytest.approx(13.0, rel=1e-6)
    np.testing.assert_allclose(updates["z"], [(3 + 4j) / 13], rtol=1e-6)
    small = {"z": jnp.array([complex(-0.0, 1e-40)], jnp.complex64)}
    assert bits(run(small)[0]["z"]) == bits(small["z"])


def test_complex_entries_keep_their_phase():
    updates, _ = clipjax.clip_by_value(1.0).update(
        jnp.array([3 + 4j, 0.1j], "c8"), None
    )
    np.testing.assert_allclose(updates, [0.6 + 0.8j, 0.1j], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e35])
def test_direction_survives_extreme_magnitudes(size):
    grads = random_tree(0, {"a": (7,), "b": (3, 2)}, size=size)
    updates, state = run(grads, size / 10)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) / 10, grads)
    for name in exact:
        np.testing.assert_allclose(updates[name], exact[name], rtol=1e-6)
    assert float(state.clip_info.norm_before) == pytest.approx(size, rel=1e-6)


@pytest.mark.parametrize("dtype", ["f4", "bfloat16"])
def test_norms_beyond_the_range_count_as_infinite(dtype):
    """The last power of two with a reciprocal that XLA does not flush is 2^126."""
    for size, is_measured in [(2.0**125, True), (2.0**126, False), (2.0**127, False)]:
        grads = jnp.asarray([size, 0.0], dtype)
        updates, state = run(grads)
        assert int(state.clip_info.nonfinite_steps) == (not is_measured)
        if is_measured:
            np.testing.assert_array_equal(np.asarray(updates, "f4"), [1.0, 0.0])
        else:  # never let through, and never silently zero
            assert np.all(np.isnan(updates))
