"""The recipes that clip singular values: edges, reports, tables, meshes, refusals."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracle import assert_close, assert_same_bits, random_tree, wide
from singular_values import RECIPES, compiled, expected, leaf_of, sigma

import clipjax
from clipjax import rules, thresholds
from clipjax.spectral import SVD, NewtonSchulz, PowerIteration, clip_singular_values

every_recipe = pytest.mark.parametrize("name", RECIPES)


@every_recipe
def test_recipes_are_the_clip_with_their_method_and_rule(name):
    method, rule = RECIPES[name]
    recipe = getattr(clipjax, name)
    assert recipe(0.7) == clip_singular_values(0.7, method=method, rule=rule)
    stacked = clip_singular_values(0.7, method=method, rule=rule, stacked={"a": 1})
    assert recipe(0.7, stacked={"a": 1}) == stacked != recipe(0.7)
    if name != "spectral_clamp":
        other = clip_singular_values(0.7, method=type(method)(5), rule=rule)
        assert recipe(0.7, iterations=5) == other != recipe(0.7)


@every_recipe
def test_edges(name):
    """Below the threshold, zero, and thresholds that are zero, wrong and infinite."""
    update = compiled(*RECIPES[name])
    small = np.array(leaf_of((4, 3), 0.9))
    small[0] = [-0.0, 1e-40, 0.0]
    grads = {"a": small, "b": np.zeros((4, 3), "f4"), "c": leaf_of((2,), 0.5)}
    for limit in (1e5 if name == "spectral_soft_clip" else 1.0, np.inf):
        updates, info = update(grads, limit)
        assert_same_bits(updates, grads)
        assert float(info.clip_ratio) == 1 and float(info.clipped_fraction) == 0
    assert np.asarray(info.block_norms_before)[1] == 0
    for bad in (0.0, -1.0, np.nan):
        updates, info = update(grads, bad)
        assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(updates))
        assert int(info.invalid_threshold_steps) == (bad != 0)


@every_recipe
def test_nonfinite_stays_in_its_leaf(name):
    good = leaf_of((4, 3), 5.0)
    for bad in (np.nan, np.inf, -np.inf):
        bad_leaf = np.array(good)
        bad_leaf[1, 2] = bad
        grads = {"a": bad_leaf, "b": good, "c": np.float32([1.0, bad])}
        updates, info = compiled(*RECIPES[name])(grads, 1.0)
        assert np.all(np.isnan(updates["a"])) and np.all(np.isnan(updates["c"]))
        assert sigma(updates["b"])[0] <= 1 + 1e-4
        assert np.all(np.sign(updates["b"]).any())
        assert int(info.nonfinite_steps) == 1 and int(info.first_nonfinite_leaf) == 0
        np.testing.assert_array_equal(info.block_norms_before[::2], [np.inf] * 2)


def test_report_per_leaf():
    grads = {"a": leaf_of((4, 3), 8.0), "b": leaf_of((5,), 0.5)}
    updates, state = jax.jit(clipjax.spectral_clamp(2.0).update)(grads, None)
    info = state.clip_info
    np.testing.assert_allclose(info.block_norms_before, [8.0, 0.5], rtol=1e-5)
    after = [sigma(leaf)[0] for leaf in updates.values()]
    np.testing.assert_allclose(info.block_norms_after, after, rtol=1e-5)
    assert float(info.norm_before) == pytest.approx(8, rel=1e-5)
    assert float(info.norm_after) == pytest.approx(2, rel=1e-5)
    assert float(info.clipped_fraction) == 0.5


def test_thresholds_from_a_table_a_schedule_and_the_past():
    grads = {"a": leaf_of((4, 3), 8.0), "b": leaf_of((3, 4), 8.0)}
    clip = clipjax.spectral_clamp({"a": 1.0, "b": None})
    updates, _ = jax.jit(clip.update)(grads, clip.init(grads))
    assert_same_bits(updates["b"], grads["b"])
    assert sigma(updates["a"])[0] == pytest.approx(1, rel=1e-5)
    for source, lengths in (
        (optax.linear_schedule(2.0, 1.0, 1), [2.0, 1.0]),
        (thresholds.warmup_statistic(1, 0.5), [8.0, 4.0]),
    ):
        clip = clipjax.spectral_clamp(source)
        state, update = clip.init(grads), jax.jit(clip.update)
        for allowed in lengths:
            updates, state = update(grads, state)
            for leaf in updates.values():
                assert sigma(leaf)[0] == pytest.approx(allowed, rel=1e-5)


def test_clamp_is_the_nearest_matrix_in_the_ball():
    leaf = leaf_of((5, 4), 3.0)
    updates = wide(compiled(SVD(), rules.hard)(leaf, 1.0)[0])
    distance = np.linalg.norm(wide(leaf) - updates)
    for seed in range(5):
        other = updates + 0.1 * wide(random_tree(seed, (5, 4)))
        other /= max(1, sigma(other)[0])
        assert np.linalg.norm(wide(leaf) - other) >= distance - 1e-5


def test_vmap_and_injected_threshold():
    name, recipe = "spectral_clamp", clipjax.spectral_clamp
    clip = recipe(1.0)
    batch = np.stack([leaf_of((4, 3), 10.0**i, seed=i) for i in range(3)])
    state = clip.init(batch[0])
    mapped = jax.jit(jax.vmap(lambda leaf: clip.update(leaf, state)[0]))(batch)
    mapped = np.asarray(mapped)
    injected = optax.inject_hyperparams(recipe)(threshold=1.0)
    step, inner = jax.jit(injected.update), injected.init(batch[0])
    for i, leaf in enumerate(batch):
        alone, _ = compiled(*RECIPES[name])(leaf, 1.0)
        also, inner = step(leaf, inner)
        for other in (mapped[i], also):
            np.testing.assert_allclose(other, alone, atol=2e-6)
    assert step._cache_size() == 1


@every_recipe
def test_leaves_without_entries(name):
    grads = {str(s): np.zeros(s, np.float32) for s in ((0, 3), (3, 0), (0,))}
    updates, info = compiled(*RECIPES[name])(grads | {"w": leaf_of((3, 2), 5.0)}, 1.0)
    assert_same_bits({key: updates[key] for key in grads}, grads)
    np.testing.assert_array_equal(info.block_norms_before[:3], [0, 0, 0])
    assert sigma(updates["w"])[0] <= 1 + 1e-4


def test_explicit_mesh_equals_one_device():
    """An Auto one is in `test_placements.py`, a stack in `test_pmap_and_stages.py`."""
    shapes = {"rows": (8, 4), "columns": (4, 8), "vector": (8,)}
    grads = random_tree(1, shapes, size=9.0)
    specs = {"rows": ("x",), "columns": (None, "x"), "vector": ("x",)}
    clip = clipjax.spectral_soft_clip(0.5)
    expected_updates, expected_state = jax.jit(clip.update)(grads, clip.init(grads))
    devices = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(devices):
        places = {
            n: NamedSharding(devices, PartitionSpec(*s)) for n, s in specs.items()
        }
        split = jax.device_put(grads, places)
        updates, state = jax.jit(clip.update)(split, clip.init(split))
    assert_close(updates, expected_updates, rtol=1e-5, atol=1e-6)
    assert_close(state, expected_state, rtol=1e-5)
    for key, leaf in updates.items():
        assert leaf.sharding.is_equivalent_to(places[key], leaf.ndim), key


def test_shard_map_needs_whole_leaves():
    with pytest.raises(ValueError, match="axis_name must be None or ()"):
        clip_singular_values(1.0, axis_name="x")
    devices = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    leaf = np.asarray(random_tree(2, (16, 3), size=9.0))

    def update(clip):
        split = PartitionSpec("x")
        step = lambda leaf: clip.update(leaf, None, leaf)[0]  # noqa: E731
        mapped = jax.shard_map(step, mesh=devices, in_specs=split, out_specs=split)
        return jax.jit(mapped)(leaf)

    soft = {"method": SVD(), "rule": rules.sqrt}
    with pytest.raises(ValueError, match="gather it first"):
        update(clip_singular_values(0.1, **soft))
    updates = update(clip_singular_values(0.1, axis_name=(), **soft))
    for before, after in zip(
        np.split(leaf, 8), np.split(np.asarray(updates), 8), strict=True
    ):
        want = expected(before, lambda s, c: s / np.sqrt(1 + (s / c) ** 2), 0.1)
        np.testing.assert_allclose(after, want, atol=1e-5)


def test_they_print_their_settings():
    for clip, text in [
        (clipjax.spectral_clip(), "power-iteration, 16) × hard × constant(1)"),
        (clipjax.spectral_clamp(2.0), "svd) × hard × constant(2)"),
        (clipjax.spectral_soft_clip(), "newton-schulz, 12) × sqrt × constant(1)"),
    ]:
        assert repr(clip) == f"clip_singular_values(spectral({text})"


def test_what_does_not_go_together_is_refused():
    for method in (PowerIteration, NewtonSchulz):
        for bad in (True, 2.0, "3"):
            with pytest.raises(TypeError, match="iterations must be an integer"):
                method(bad)
    with pytest.raises(ValueError, match="iterations must be .* at least 1, got 0"):
        clipjax.spectral_soft_clip(1.0, iterations=0)
    for parts, message in [
        ({"method": SVD(), "rule": rules.normalise}, "rule=normalise does not"),
        ({"method": SVD(), "rule": rules.band()}, "rule=band does not shorten"),
        ({"method": SVD(), "rule": rules.skip}, "rule=skip does not shorten"),
        ({"method": SVD(), "rule": rules.psac()}, "rule=psac does not shorten"),
        ({"method": NewtonSchulz()}, "rule must be rules.sqrt"),
    ]:
        with pytest.raises(ValueError, match=message):
            clip_singular_values(1.0, **parts)
    for parts, message in [
        ({"method": "svd"}, "method must be a Method such as .*, got 'svd'"),
        ({"rule": "hard"}, "rule must be a Rule such as .*, got 'hard'"),
        ({"nonfinite": None}, "nonfinite must be a Guard such as .*, got None"),
    ]:
        with pytest.raises(TypeError, match=message):
            clip_singular_values(1.0, **parts)
