"""The reproducible norm: the same bits whatever the mesh, and the right number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracle import bits, norm, random_tree

import clipjax
from clipjax import granularity, norms

SHAPES = {"a": (64, 40), "b": (4096,), "c": (3,)}
LAYOUTS = (
    {"a": PartitionSpec("x"), "b": PartitionSpec("x"), "c": PartitionSpec()},
    {"a": PartitionSpec(None, "x"), "b": PartitionSpec(), "c": PartitionSpec()},
)
CLIP = clipjax.clip_by(1.0, norm=norms.reproducible_l2)


def tree():
    grads = random_tree(3, SHAPES, size=7.0)
    return grads | {"b": (1e-3 * grads["b"]).astype(jnp.bfloat16)}


def measured(grads):
    return CLIP.update(grads, None, grads)[1].info.norm


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_the_norm_is_the_same_to_the_bit_on_any_mesh(devices):
    grads = tree()
    expected = bits(jax.jit(measured)(grads))
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh(
            (devices,), ("x",), (kind,), devices=jax.devices()[:devices]
        )
        for layout in LAYOUTS:
            if kind is AxisType.Auto and layout is LAYOUTS[0]:
                where = {"in_specs": (layout,), "out_specs": PartitionSpec()}
                shards = jax.shard_map(measured, mesh=mesh, **where)
                assert bits(jax.jit(shards)(grads)) == expected
            shardings = {key: NamedSharding(mesh, spec) for key, spec in layout.items()}
            with jax.set_mesh(mesh):
                found = jax.jit(measured)(jax.device_put(grads, shardings))
            assert bits(found) == expected


def test_it_is_right():
    grads = tree()
    assert float(measured(grads)) == pytest.approx(norm(grads), rel=2**-24)
    exact = [norm(grads[name]) for name in sorted(grads)]
    for part in (granularity.leaf(), granularity.unit(), granularity.element()):
        clip = clipjax.clip_by(0.1, norm=norms.reproducible_l2, granularity=part)
        found = clip.update(grads, None)[1].info.blocks.norm
        np.testing.assert_allclose(found, exact, rtol=3e-7)


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1.0, 1e10, 1e38])
def test_many_small_entries_beside_a_large_one(size):
    grads = jnp.full(100_000, 1e-4 * size).at[7].set(size)
    exact = size * np.sqrt(1 + 99_999 * 1e-8)
    assert float(measured(grads)) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen(bad):
    updates, state = CLIP.update(jnp.array([1.0, bad]), None)
    assert not np.isfinite(state.info.norm)
    assert int(state.info.nonfinite_count) == 1
    assert np.isnan(updates[1])


def test_nan_on_one_shard_is_not_lost():
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    grads = jnp.ones((8, 4)).at[5, 1].set(jnp.nan)
    sharded = jax.device_put(grads, NamedSharding(mesh, PartitionSpec("x")))
    updates, state = jax.jit(CLIP.update)(sharded, CLIP.init(grads))
    assert not np.isfinite(state.info.norm)
    assert np.all(np.isnan(updates))


def test_complex_and_double_entries():
    assert float(measured(jnp.array([3 + 4j, 12j]))) == 13
    with jax.enable_x64(True):
        found = jax.jit(measured)(jnp.array([3.0, 4.0 + 1e-12], jnp.float64))
        assert found.dtype == jnp.float64
        assert float(found) == pytest.approx(5 + 0.8e-12, rel=1e-15)


def test_the_derivative_is_that_of_the_plain_norm():
    grads = jnp.array([3.0, 4.0])
    plain = clipjax.clip_by(1.0)
    mine, theirs = (
        jax.jacobian(lambda grads: clip.update(grads, None)[0])(grads)  # noqa: B023
        for clip in (CLIP, plain)
    )
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)
