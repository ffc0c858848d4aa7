"""The recipes that clip singular values: tables, reports, scans and meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracle import assert_close, assert_same_bits, kinds, random_tree, wide
from singular_values import every_recipe, jitted, leaf_of, sigma

import clipjax
from clipjax import thresholds
from clipjax.recipes.spectral import spectral_clamp, spectral_soft_clip


@every_recipe
def test_identity_below_the_threshold(recipe):
    leaf = leaf_of((4, 3), 0.9).at[0].set(jnp.array([-0.0, 1e-40, 0.0]))
    threshold = 1e5 if recipe is spectral_soft_clip else 1.0
    for limit in (threshold, np.inf):
        updates, state = jitted(recipe)(leaf, limit)
        assert_same_bits(updates, leaf)
        assert float(state.info.factor) == 1
        assert float(state.info.clipped_fraction) == 0


@every_recipe
def test_zero_gradient_and_zero_or_bad_thresholds(recipe):
    for shape in ((4, 3), (4,)):
        updates, state = jitted(recipe)(jnp.zeros(shape), 1.0)
        assert_same_bits(updates, jnp.zeros(shape))
        assert float(state.info.norm) == 0 and float(state.info.factor) == 1
        for bad in (0.0, -1.0, np.nan):
            updates, state = jitted(recipe)(leaf_of(shape, 5.0), bad)
            assert np.all(np.asarray(updates) == 0)
            assert int(state.info.invalid_threshold_count) == (bad != 0)


@every_recipe
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_stays_in_its_leaf(recipe, bad):
    good = leaf_of((4, 3), 5.0)
    grads = {"a": good.at[1, 2].set(bad), "b": good, "c": jnp.array([1.0, bad])}
    updates, state = jitted(recipe)(grads, 1.0)
    assert np.all(np.isnan(updates["a"])) and np.all(np.isnan(updates["c"]))
    alone, _ = jitted(recipe)(good, 1.0)
    assert_close(updates["b"], alone, rtol=1e-5)
    assert int(state.info.nonfinite_count) == 1
    assert clipjax.nonfinite_path(state, grads) == "a"


def test_report_per_leaf():
    grads = {"a": leaf_of((4, 3), 8.0), "b": leaf_of((5,), 0.5)}
    _, state = spectral_clamp(2.0).update(grads, None)
    blocks = state.info.blocks
    np.testing.assert_allclose(blocks.norm, [8.0, 0.5], rtol=1e-5)
    np.testing.assert_allclose(blocks.clipped_norm, [2.0, 0.5], rtol=1e-5)
    np.testing.assert_allclose(blocks.factor, [0.25, 1.0], rtol=1e-5)
    assert float(state.info.norm) == pytest.approx(8, rel=1e-5)
    assert float(state.info.clipped_norm) == pytest.approx(2, rel=1e-5)
    assert float(state.info.clipped_fraction) == 0.5


@every_recipe
def test_thresholds_from_a_table_and_a_schedule(recipe):
    grads = {"a": leaf_of((4, 3), 8.0), "b": leaf_of((3, 4), 8.0)}
    clip = recipe({"a": 1.0, "b": None})
    updates, state = jax.jit(clip.update)(grads, clip.init(grads))
    assert_same_bits(updates["b"], grads["b"])
    assert sigma(updates["a"])[0] <= 1 + 1e-4
    np.testing.assert_array_equal(state.info.blocks.threshold, [1.0, np.inf])
    clip = recipe(optax.linear_schedule(2.0, 1.0, 1))
    update, state = jax.jit(clip.update), clip.init(grads)
    for allowed in (2.0, 1.0):
        updates, state = update(grads, state)
        assert float(state.info.threshold) == allowed
        assert 0.9 * allowed < sigma(updates["a"])[0] <= allowed * (1 + 1e-4)


def test_clamp_learns_its_threshold_from_the_largest_singular_value():
    clip = spectral_clamp(thresholds.warmup_statistic(1, 0.5))
    leaf = leaf_of((4, 3), 8.0)
    _, state = clip.update(leaf, clip.init(leaf))
    updates, state = clip.update(leaf, state)
    assert float(state.info.threshold) == pytest.approx(4.0, rel=1e-5)
    assert sigma(updates)[0] == pytest.approx(4.0, rel=1e-5)


def test_clamp_is_the_nearest_matrix_in_the_ball():
    leaf = leaf_of((5, 4), 3.0)
    updates = wide(spectral_clamp(1.0).update(leaf, None)[0])
    distance = np.linalg.norm(wide(leaf) - updates)
    for seed in range(5):
        other = updates + 0.1 * wide(random_tree(seed, (5, 4)))
        other /= max(1, sigma(other)[0])
        assert np.linalg.norm(wide(leaf) - other) >= distance - 1e-5


@every_recipe
def test_scan_vmap_and_injected_threshold(recipe):
    clip = recipe(1.0)
    batch = jnp.stack([leaf_of((4, 3), 10.0**i, seed=i) for i in range(3)])
    state = clip.init(batch[0])
    after, scanned = jax.lax.scan(
        lambda state, leaf: clip.update(leaf, state)[::-1], state, batch
    )
    assert kinds(after) == kinds(state) and int(after.count) == 3
    mapped, _ = jax.vmap(lambda leaf: clip.update(leaf, state))(batch)
    injected = optax.inject_hyperparams(recipe)(threshold=1.0)
    step, inner = jax.jit(injected.update), injected.init(batch[0])
    for i, leaf in enumerate(batch):
        alone, _ = jitted(recipe)(leaf, 1.0)
        also, inner = step(leaf, inner)
        for other in (scanned[i], mapped[i], also):
            np.testing.assert_allclose(other, alone, atol=2e-6)
    assert step._cache_size() == 1


@every_recipe
@pytest.mark.parametrize("empty", [(0, 3), (3, 0), (0,)])
def test_leaves_without_entries(recipe, empty):
    grads = {"empty": jnp.zeros(empty), "w": leaf_of((3, 2), 5.0)}
    updates, state = recipe(1.0).update(grads, None)
    assert_same_bits(updates["empty"], grads["empty"])
    assert float(state.info.blocks.norm[0]) == 0


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("recipe", [spectral_clamp, spectral_soft_clip])
def test_mesh_equals_one_device(recipe, kind):
    grads = random_tree(
        1, {"rows": (8, 6), "columns": (3, 8), "vector": (8,)}, size=9.0
    )
    specs = {"rows": ("x",), "columns": (None, "x"), "vector": ("x",)}
    clip = recipe(0.5)
    expected_updates, expected_state = jax.jit(clip.update)(grads, clip.init(grads))
    devices = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(devices):
        places = {
            n: NamedSharding(devices, PartitionSpec(*s)) for n, s in specs.items()
        }
        split = jax.device_put(grads, places)
        updates, state = jax.jit(clip.update)(split, clip.init(split))
    assert_close(updates, expected_updates, rtol=1e-5, atol=1e-6)
    assert_close(state, expected_state, rtol=1e-5)
    for name, leaf in updates.items():
        assert leaf.sharding.is_equivalent_to(places[name], leaf.ndim), name
