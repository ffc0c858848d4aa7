"""Sharp edges A: core arithmetic. Ids are item numbers of the edge list."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from oracle import assert_same_bits, bits, eps, norm, random_tree

import clipjax

pytestmark = pytest.mark.optimized

clip_one = clipjax.clip_by_global_norm(1.0)


@pytest.fixture(params=["eager", "jit"])
def run(request):
    """Runs a clip once, without a state to begin with."""

    def run(clip, grads):
        update = lambda grads: clip.update(grads, None)  # noqa: E731
        return (jax.jit(update) if request.param == "jit" else update)(grads)

    return run


def test_a01_a_clip_that_fires(run):
    updates, state = run(clip_one, jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(updates, [0.6, 0.8], rtol=1e-6)
    info = state.info
    recorded = info.norm, info.clipped_norm, info.factor, info.clipped_fraction
    np.testing.assert_allclose(recorded, [5.0, 1.0, 0.2, 1.0], rtol=1e-6)
    assert int(info.clipped_steps) == 1


def test_a02_norm_equal_to_the_threshold(run):
    grads = jnp.array([3.0, 4.0])
    updates, state = run(clipjax.clip_by_global_norm(5.0), grads)
    assert_same_bits(updates, grads)
    assert int(state.info.clipped_steps) == 0


def test_a03_every_bit_below_the_threshold(run):
    grads = jnp.asarray(np.array([0.3, 0.4, -0.0, 1e-40, -1e-45], np.float32))
    updates, _ = run(clip_one, grads)
    assert_same_bits(updates, grads)
    assert np.signbit(updates[2]) and updates[2] == 0


def test_a04_zero_gradient(run):
    updates, state = run(clip_one, jnp.zeros(3))
    assert_same_bits(updates, jnp.zeros(3))
    assert float(state.info.norm) == 0 and float(state.info.factor) == 1


@pytest.mark.parametrize("threshold", [0.0, optax.linear_schedule(0.0, 0.0, 1)])
def test_a05_zero_gradient_and_zero_threshold(run, threshold):
    updates, state = run(clipjax.clip_by_global_norm(threshold), jnp.zeros(2))
    assert_same_bits(updates, jnp.zeros(2))
    assert float(state.info.threshold) == 0
    assert int(state.info.invalid_threshold_count) == 0


def test_a06_zero_threshold_fires(run):
    updates, state = run(clipjax.clip_by_global_norm(0.0), jnp.array([3.0, 4.0]))
    assert_same_bits(updates, jnp.zeros(2))
    assert float(state.info.clipped_fraction) == 1


def test_a07_infinite_threshold(run):
    grads = jnp.array([3.0, 4.0])
    updates, state = run(clipjax.clip_by_global_norm(jnp.inf), grads)
    assert_same_bits(updates, grads)
    assert float(state.info.norm) == 5
    assert float(state.info.threshold) == np.inf


@pytest.mark.parametrize("threshold", [-1.0, np.nan, True, "1.0"])
def test_a08_bad_threshold_when_built(threshold):
    with pytest.raises((TypeError, ValueError), match="max_norm must be"):
        clipjax.clip_by_global_norm(threshold)


@pytest.mark.parametrize("threshold", [-1.0, np.nan])
def test_a08_bad_threshold_when_traced(threshold):
    grads = jnp.array([3.0, -4.0])

    @jax.jit
    def step(threshold):
        return clipjax.clip_by_global_norm(threshold).update(grads, None)

    updates, state = step(jnp.float32(threshold))
    assert norm(updates) == 0
    assert int(state.info.invalid_threshold_count) == 1


def test_a09_tiny_thresholds_need_no_epsilon(run):
    updates, _ = run(clipjax.clip_by_global_norm(1e-7), jnp.array([3e-7, 4e-7]))
    assert norm(updates) == pytest.approx(1e-7, rel=4 * eps(jnp.float32))
    grads = jnp.array([1e-8])
    updates, _ = run(clipjax.clip_by_global_norm(1e-8), grads)
    assert_same_bits(updates, grads)


def test_a10_squares_that_overflow(run):
    updates, state = run(clip_one, jnp.array([1e20, 1e20]))
    np.testing.assert_allclose(updates, [0.5**0.5] * 2, rtol=4 * eps(jnp.float32))
    assert float(state.info.norm) == pytest.approx(2**0.5 * 1e20, rel=1e-6)


def test_a11_squares_that_underflow(run):
    updates, state = run(clipjax.clip_by_global_norm(1e-30), jnp.array([1e-25]))
    np.testing.assert_allclose(updates, [1e-30], rtol=4 * eps(jnp.float32))
    assert float(state.info.norm) == pytest.approx(1e-25, rel=1e-6)


def test_a12_float16_whose_square_overflows(run):
    updates, state = run(clip_one, jnp.array([300.0], jnp.float16))
    assert_same_bits(updates, jnp.array([1.0], jnp.float16))
    assert float(state.info.norm) == 300
    mixed = {"half": jnp.array([3.0], jnp.float16), "full": jnp.array([4e5])}
    updates, state = run(clip_one, mixed)
    assert float(updates["half"][0]) == pytest.approx(7.5e-6, rel=eps(jnp.float16) * 8)


def test_a13_a_thousand_bfloat16_leaves():
    grads = {f"leaf{i:04}": jnp.ones(1, jnp.bfloat16) for i in range(1000)}
    updates, state = clip_one.update(grads, None)
    assert float(state.info.norm) == pytest.approx(1000**0.5, rel=1e-6)
    assert norm(updates) <= 1 + eps(jnp.bfloat16)


def test_a14_the_bound_holds_to_rounding():
    grads = jnp.asarray(np.random.default_rng(0).standard_normal((50, 1000)), "f4")
    updates = jax.vmap(lambda g: clip_one.update(g, None)[0])(grads)
    lengths = np.linalg.norm(np.asarray(updates, np.float64), axis=1)
    assert np.all(lengths <= 1 + eps(jnp.float32))


SIZES = [(1,), (31,), (32,), (1000,), (5000,), (23, 37), (33, 33, 3), (16, 16, 15)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a14_the_bound_holds_for_equal_entries(shape, dtype):
    # Rounding errors of equal addends do not cancel: a plain sum is off by up to 138
    # ulps here.
    ulps = 1 if np.prod(shape) == 1 or np.prod(shape) >= 32 else 2.2
    for value in (0.1, 0.3, 0.7, 1.1, 1.3):
        grads = jnp.full(shape, value, dtype)
        _, state = clip_one.update(grads, None)
        assert float(state.info.norm) == pytest.approx(
            norm(grads), rel=ulps * eps("f4")
        )
        updates, _ = clipjax.clip_by_global_norm(0.01).update(grads, None)
        assert norm(updates) <= 0.01 * (1 + ulps * eps(dtype))


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_a15_float8(run, dtype):
    grads = jnp.asarray([288.0, 0.0], dtype)
    updates, state = run(clip_one, grads)
    assert updates.dtype == dtype
    np.testing.assert_array_equal(np.asarray(updates, np.float32), [1.0, 0.0])
    assert float(state.info.norm) == float(np.float32(grads[0]))


FLOATS = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]


@pytest.mark.parametrize("one", FLOATS)
@pytest.mark.parametrize("other", FLOATS)
def test_a16_every_pair_of_dtypes(one, other):
    with jax.enable_x64(True):
        grads = {
            "tuple": (jnp.asarray([3.0], one),),
            "list": [jnp.asarray([4.0], other)],
        }
        out, state = jax.eval_shape(lambda grads: clip_one.update(grads, None), grads)
        assert jax.tree.structure(out) == jax.tree.structure(grads)
        assert out["tuple"][0].dtype == one and out["list"][0].dtype == other
        is_double = {"float64", "complex128"} & {one, other}
        assert state.info.norm.dtype == ("float64" if is_double else "float32")


def test_a16_float64_is_measured_in_float64():
    with jax.enable_x64(True):
        grads = {
            "double": jnp.asarray([1.0, 1e-9], jnp.float64),
            "half": jnp.asarray([1e-4], jnp.float16),
        }
        updates, state = clipjax.clip_by_global_norm(0.5).update(grads, None)
        assert float(state.info.norm) == pytest.approx(norm(grads), rel=1e-15)
        factor = 0.5 / norm(grads)
        np.testing.assert_allclose(updates["double"], grads["double"] * factor, 1e-15)


def test_complex_leaves_count_their_magnitude(run):
    grads = {"z": jnp.array([3 + 4j], jnp.complex64), "x": jnp.array([12.0])}
    updates, state = run(clip_one, grads)
    assert float(state.info.norm) == pytest.approx(13.0, rel=1e-6)
    np.testing.assert_allclose(updates["z"], [(3 + 4j) / 13], rtol=1e-6)
    small = {"z": jnp.array([complex(-0.0, 1e-40)], jnp.complex64)}
    assert bits(run(clip_one, small)[0]["z"]) == bits(small["z"])


def test_complex_entries_keep_their_phase(run):
    updates, _ = run(clipjax.clip_by_value(1.0), jnp.array([3 + 4j, 0.1j], "c8"))
    np.testing.assert_allclose(updates, [0.6 + 0.8j, 0.1j], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e35])
def test_direction_survives_extreme_magnitudes(run, size):
    grads = random_tree(0, {"a": (7,), "b": (3, 2)}, size=size)
    updates, state = run(clipjax.clip_by_global_norm(size / 10), grads)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) / 10, grads)
    for name in exact:
        np.testing.assert_allclose(updates[name], exact[name], rtol=1e-6)
    assert float(state.info.norm) == pytest.approx(size, rel=1e-6)
