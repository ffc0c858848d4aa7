"""The clip for a narrow format, and the report that says what it is worth."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from oracle import assert_close, bits, cosine, eps, wide

import clipjax
from clipjax import thresholds

FORMATS = {"int8": 127 / 1, "float8_e4m3fn": 448 * 2**9}


def numpy_clip(leaf, ratio, steps):
    """Clips by the equation, in float64."""
    size = np.abs(wide(leaf))
    counts = (size > 0) & np.isfinite(size)
    typical = np.exp(np.mean(np.log(size[counts])))
    limit = typical / steps * ratio
    return np.clip(wide(leaf), -limit, limit), limit


report_of = jax.jit(clipjax.quantization_report, static_argnums=1)


@pytest.mark.parametrize(("dtype", "steps"), [("int8", 1.0), ("float8_e4m3fn", 4.0)])
def test_numpy_in_float64_agrees(dtype, steps):
    generator = np.random.default_rng(0)
    spikes = [0.0, -0.0, 1e3, -1e9, 1e-41, np.inf]
    grads = {
        "tail": np.append(generator.standard_t(3, 500), spikes).astype(np.float32),
        "large": (1e6 * generator.standard_normal((3, 4))).astype(np.float32),
    }
    clip = clipjax.quantization_clip(jnp.dtype(dtype), steps)
    updates, state = jax.jit(clip.update)(jax.tree.map(jnp.asarray, grads), None)
    # The subnormal entry is zero to XLA.
    known = {**grads, "tail": np.where(grads["tail"] == spikes[4], 0, grads["tail"])}
    limits = []
    for name, leaf in known.items():
        expected, limit = numpy_clip(leaf, FORMATS[dtype], steps)
        found = np.where(grads[name] == spikes[4], 0, updates[name])
        np.testing.assert_allclose(found, expected, rtol=3e-6)
        limits.append(limit)
    assert float(state.clip_info.clip_threshold) == pytest.approx(min(limits), rel=3e-6)


def test_leaves_without_a_range_are_left_alone():
    grads = {"zero": jnp.zeros(3), "nan": jnp.full(2, jnp.nan), "empty": jnp.zeros(0)}
    updates, state = jax.jit(clipjax.quantization_clip().update)(grads, None)
    assert {n: bits(u) for n, u in updates.items()} == {
        n: bits(g) for n, g in grads.items()
    }
    assert float(state.clip_info.clip_threshold) == np.inf


def samples():
    """Applications D15: a bulk alone, with a heavy tail, with one huge outlier."""
    generator = np.random.default_rng(0)
    gaussian = generator.standard_normal(100_000)
    tail = generator.standard_t(3, 100_000)
    outlier = np.append(gaussian[1:], 1000.0)
    named = {"gaussian": gaussian, "tail": tail, "outlier": outlier}
    return {name: jnp.asarray(leaf, jnp.float32) for name, leaf in named.items()}


def reports(grads, dtype=jnp.int8):
    """Reports before a clip, after it, and after one at the 99.9 % quantile."""
    clip = clipjax.quantization_clip(dtype)
    clipped, _ = jax.jit(clip.update)(grads, clip.init(grads))
    limits = {name: np.quantile(np.abs(leaf), 0.999) for name, leaf in grads.items()}
    by_quantile = {
        name: jnp.clip(leaf, -limits[name], limits[name])
        for name, leaf in grads.items()
    }
    return [
        report_of(tree, dtype, reference=grads)
        for tree in (grads, clipped, by_quantile)
    ]


def test_d15_clipping_first_is_worse_in_cosine_and_better_for_the_bulk():
    before, after, by_quantile = reports(samples())
    # Gaussian: the largest entry is a fine scale already, and nothing is clipped.
    assert before["gaussian"].cosine > 0.9998
    assert bits(after["gaussian"].cosine) == bits(before["gaussian"].cosine)
    for name in ("tail", "outlier"):
        for clipped in (after, by_quantile):
            assert clipped[name].cosine < before[name].cosine
            assert clipped[name].nonzero_fraction > before[name].nonzero_fraction
            assert clipped[name].occupied_fraction > before[name].occupied_fraction
    # One outlier: without the clip it is all that is left.
    assert before["outlier"].nonzero_fraction < 0.01
    assert before["outlier"].cosine == pytest.approx(0.954, abs=2e-3)
    assert after["outlier"].nonzero_fraction > 0.94
    assert by_quantile["outlier"].nonzero_fraction > 0.98
    assert by_quantile["outlier"].cosine == pytest.approx(0.31, abs=5e-3)


def test_eight_bit_floats_hold_the_outlier_and_the_bulk():
    before, after, _ = reports(samples(), jnp.float8_e4m3fn)
    for name, report in before.items():
        assert report.cosine > 0.999 and report.nonzero_fraction > 0.99
        assert bits(report.cosine) == bits(after[name].cosine)


def numpy_quantized(leaf, dtype):
    peak = np.abs(leaf).max()
    if dtype.startswith("int"):
        return np.round(leaf / peak * np.float32(np.iinfo(dtype).max)), 255
    numpy_dtype = np.dtype(getattr(ml_dtypes, dtype))
    codes = np.arange(256, dtype=np.uint8).view(numpy_dtype).astype(np.float32)
    largest = np.float32(ml_dtypes.finfo(numpy_dtype).max)
    quantized = (leaf / peak * largest).astype(numpy_dtype).astype(np.float32)
    return quantized, len(set(codes[np.isfinite(codes)].tolist()))


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "float8_e5m2fnuz"])
def test_the_report_is_what_numpy_counts(dtype):
    leaf = np.append(np.random.default_rng(1).standard_t(2, 300), [0.0, 0.0])
    leaf = leaf.astype(np.float32).reshape(2, 151)
    report = report_of({"w": jnp.asarray(leaf)}, jnp.dtype(dtype))["w"]
    quantized, levels = numpy_quantized(leaf, dtype)
    assert float(report.cosine) == pytest.approx(cosine(leaf, quantized), rel=1e-6)
    kept = np.sum(quantized != 0) / 300
    assert float(report.nonzero_fraction) == pytest.approx(kept, rel=1e-6)
    occupied = len(np.unique(quantized)) / levels
    assert float(report.occupied_fraction) == pytest.approx(occupied, rel=1e-6)


def test_the_report_of_odd_leaves():
    tree = {
        "zero": jnp.zeros(3),
        "nan": jnp.array([1.0, jnp.nan]),
        "half": jnp.array([1.0, 3e-5], jnp.float16),
        "integer": jnp.arange(2),
        "none": None,
    }
    report = report_of(tree, jnp.int8)
    assert list(report) == ["half", "nan", "zero"]
    assert np.isnan(report["zero"].cosine) and np.isnan(report["nan"].cosine)
    assert np.isnan(report["zero"].nonzero_fraction)
    assert float(report["half"].nonzero_fraction) == 0.5
    with pytest.raises(TypeError, match="real, got complex64 at 'z'"):
        clipjax.quantization_report({"z": jnp.ones(2, "complex64")})
    nothing = report_of({"w": jnp.full(9, jnp.nan)}, jnp.int8)["w"]
    assert float(nothing.occupied_fraction) == 0
    assert clipjax.quantization_report({}) == {}
    for reference, message in (
        ({}, "the leaves of reference have no leaf w"),
        ({"w": jnp.ones(1)}, "reference must have shapes like those of tree, got"),
    ):
        with pytest.raises(ValueError, match=message):
            clipjax.quantization_report({"w": jnp.ones(2)}, reference=reference)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float16, jnp.bfloat16])
def test_the_report_of_entries_near_the_largest_number(dtype):
    for leaf in ([1.0, 2.0], [3e38, 1e38], [3e38, 3e38], [1e-38, 3e-38]):
        report = report_of({"w": jnp.array(leaf)}, dtype)["w"]
        assert float(report.cosine) == pytest.approx(1, abs=1e-4)
        assert float(report.nonzero_fraction) == 1


@pytest.mark.parametrize("bad", ["uint8", "float32", "float8_e8m0fnu", "int32", "x", 3])
def test_formats_that_are_refused(bad):
    message = "dtype must be a signed integer or floating dtype of at most 16 bits"
    for make in (
        clipjax.quantization_clip,
        thresholds.quantization_range,
        lambda dtype: clipjax.quantization_report({}, dtype),
    ):
        with pytest.raises(TypeError, match=message):
            make(bad)


def test_settings_that_are_refused():
    for steps in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="steps must be"):
            clipjax.quantization_clip(steps=steps)
    with pytest.raises(TypeError, match="steps must be"):
        clipjax.quantization_clip(steps="4")
    with pytest.raises(
        ValueError, match="for single entries: use clipjax.clip_entries"
    ):
        clipjax.clip_by(thresholds.quantization_range())


@pytest.mark.parametrize("spec", [PartitionSpec("x"), PartitionSpec()])
def test_shards_share_the_range_of_their_leaf(spec):
    grads = samples()["tail"][:80] * jnp.repeat(jnp.logspace(0, 7, 8), 10)
    whole = clipjax.quantization_clip(steps=64.0)
    expected = jax.jit(whole.update)(grads, whole.init(grads))
    clip = clipjax.quantization_clip(steps=64.0, axis_name="x")
    step = jax.shard_map(
        lambda grads: clip.update(grads, None),
        mesh=jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(spec,),
        out_specs=(spec, PartitionSpec()),
    )
    assert_close(jax.jit(step)(grads), expected, rtol=16 * eps(jnp.float32))
    assert 0 < float(expected[1].clip_info.clipped_fraction) < 1


def test_the_recipe_is_its_coordinates():
    expected = clipjax.clip_entries(thresholds.quantization_range(jnp.int8, 4.0))
    assert clipjax.quantization_clip() == expected
    assert hash(clipjax.quantization_clip()) == hash(expected)


def test_a_format_as_wide_as_float32_clips_next_to_nothing():
    grads = {"w": jnp.array([1.0, 1e30])}
    update = jax.jit(clipjax.quantization_clip(jnp.bfloat16).update)
    np.testing.assert_array_equal(update(grads, None)[0]["w"], grads["w"])
