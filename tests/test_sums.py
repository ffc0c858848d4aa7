"""Sums of what is made on the fly: as exact as plain ones, and nothing written down."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from clipjax.sums import LARGE, largest, total

# In rows to the last entry, with a rest, and beside other axes.
SHAPES = {
    "even": ((256, 512), None),
    "odd": ((3, 7919), None),
    "vector": ((LARGE + 1,), (0,)),
    "inner": ((5, 96, 96), (1, 2)),
    "outer": ((96, 5, 96), (0, 1)),
    "small": ((7, 5), None),
}
every_shape = pytest.mark.parametrize(("shape", "axes"), SHAPES.values(), ids=SHAPES)
PARTS = {"total": (total, np.sum), "largest": (largest, np.max)}
every_part = pytest.mark.parametrize(("part", "reference"), PARTS.values(), ids=PARTS)


def entries(shape, dtype=jnp.float32):
    values = np.random.default_rng(0).exponential(size=shape)
    return jnp.asarray(values, dtype)


def clamped(part, axes=None):
    return lambda leaf: part(jnp.clip(leaf, 0.1, 2.0), axes)


@every_part
@every_shape
def test_against_numpy_in_float64(part, reference, shape, axes):
    leaf = entries(shape)
    found = jax.jit(functools.partial(part, axes=axes))(leaf)
    wide = np.asarray(leaf, np.float64)
    expected = reference(wide, axis=axes, keepdims=axes is not None)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=5e-7)


def test_equal_entries_add_up():
    """Roundings that all go the same way are the worst that can happen."""
    leaf = jnp.full((512, 1024), 0.1)
    found = jax.jit(clamped(total))(leaf)
    assert float(found) == pytest.approx(np.float64(np.float32(0.1)) * leaf.size, 1e-6)


@every_part
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, -1])
def test_nothing_that_is_not_finite_is_lost(part, reference, bad, place):
    leaf = entries((LARGE + 1,)).at[place].set(bad)
    assert np.array_equal(jax.jit(part)(leaf), bad, equal_nan=True)


@every_part
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes_are_kept(part, reference, dtype):
    leaf = entries((32, 1024), dtype) / 32
    found = jax.jit(part)(leaf)
    assert found.dtype == dtype
    expected = reference(np.asarray(leaf, np.float64))
    np.testing.assert_allclose(float(found), expected, rtol=float(jnp.finfo(dtype).eps))


@every_part
def test_derivatives_and_batches(part, reference):
    leaf = entries((2, 160, 128))
    plain = {total: jnp.sum, largest: jnp.max}[part]
    for transform in (jax.vmap, lambda part: jax.vmap(jax.grad(part))):
        found = jax.jit(transform(part))(leaf)
        np.testing.assert_allclose(found, jax.jit(transform(plain))(leaf), rtol=1e-6)


@every_part
def test_in_shard_map_they_are_of_a_device_s_own(part, reference):
    mesh = jax.make_mesh((2,), ("x",), (AxisType.Auto,), devices=jax.devices()[:2])
    where = {"in_specs": PartitionSpec("x"), "out_specs": PartitionSpec("x")}
    leaf = entries((2, 128, 160))
    each = jax.shard_map(lambda x: clamped(part, (1, 2))(x), mesh=mesh, **where)
    clipped = np.clip(np.asarray(leaf, np.float64), 0.1, 2.0)
    expected = reference(clipped, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(jax.jit(each)(leaf), expected, rtol=5e-7)


@every_part
@pytest.mark.parametrize("axes", [None, (1, 2)])
def test_nothing_is_written_down(part, reference, axes):
    leaf = jax.ShapeDtypeStruct((4, 128, 512), jnp.float32)
    compiled = jax.jit(clamped(part, axes)).lower(leaf).compile()
    size = 4 * 4 * 128 * 512
    assert compiled.memory_analysis().temp_size_in_bytes < size / 64
