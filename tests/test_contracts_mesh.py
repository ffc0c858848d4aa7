"""Many devices give the numbers of one: jit, shard_map, pmap and vmap."""

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracle import assert_close, assert_same_bits, eps, hard_clip, norm, random_tree

import clipjax
from clipjax import granularity, guards, norms

# All shards have one shape: XLA compiles their loops once.
SHAPES = {"replicated": (1, 3), "rows": (8, 3), "columns": (1, 24)}
SPECS = {
    "replicated": PartitionSpec(),
    "rows": PartitionSpec("x"),
    "columns": PartitionSpec(None, "x"),
}


def trees():
    return random_tree(1, SHAPES, size=30.0), random_tree(2, SHAPES, size=3.0)


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("x",), axis_types=(kind,))


BY_NAME = granularity.group(lambda path, leaf: path[0])
# Those that are not in `placements.CLIPS`: there no axis has to be named.
CLIPS = {
    "group": lambda **k: clipjax.clip_by(0.3, granularity=BY_NAME, **k),
    "linf": lambda **k: clipjax.clip_by(0.3, norm=norms.linf, **k),
    "rms": lambda **k: clipjax.clip_by_block_rms(0.3, **k),
}


def sharded(clip):
    step = jax.shard_map(
        lambda grads: clip.update(grads, None),
        mesh=mesh(),
        in_specs=(SPECS,),
        out_specs=(SPECS, PartitionSpec()),
    )
    return jax.jit(step)


def in_shard_map(clip, grads):
    return sharded(clip)(grads)


@pytest.mark.parametrize("name", CLIPS)
def test_shard_map_equals_one_device(name):
    grads, _ = trees()
    expected = jax.jit(CLIPS[name]().update)(grads, None)
    step = sharded(CLIPS[name](axis_name="x"))
    assert_close(step(grads), expected, rtol=16 * eps("f4"))
    # A maximum over devices drops NaN.
    grads["rows"] = grads["rows"].at[5, 1].set(jnp.nan)
    updates, state = step(grads)
    is_whole = name == "linf"
    bad = updates if is_whole else updates["rows"]
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(bad))
    assert int(state.clip_info.nonfinite_steps) == 1
    assert clipjax.nonfinite_path(state, grads) == "rows"


def test_shard_map_at_extreme_magnitudes():
    # Every device must take the same branch, or the collectives hang.
    grads, _ = trees()
    step = sharded(clipjax.clip_by_global_norm(1.0, axis_name="x"))
    # All of them; or one shard of one leaf, which the others do not see.
    for rows, others in ((1e25, 1e25), (1e-25, 1e-25), (1e25, 1.0)):
        scaled = {name: others * leaf for name, leaf in grads.items()}
        scaled["rows"] = grads["rows"].at[5].mul(rows)
        updates, state = step(scaled)
        assert norm(updates) == pytest.approx(1, rel=2e-6)
        found = float(state.clip_info.norm_before)
        assert found == pytest.approx(norm(scaled), rel=2e-6)


def test_jit_on_a_mesh_never_loses_a_nan():
    grads, _ = trees()
    grads["rows"] = grads["rows"].at[5, 1].set(jnp.nan)
    shardings = {leaf: NamedSharding(mesh(), spec) for leaf, spec in SPECS.items()}
    clip = clipjax.clip_by(1.0, norm=norms.linf)
    step = jax.jit(lambda grads: clip.update(grads, None))
    updates, state = step(jax.device_put(grads, shardings))
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(updates))
    assert int(state.clip_info.nonfinite_steps) == 1
    assert clipjax.nonfinite_path(state, grads) == "rows"


@pytest.mark.parametrize("name", ["clip_by_leaf_norm", "clip_by_value"])
def test_an_empty_leaf_that_is_split(name):
    grads, _ = trees()
    grads["empty"] = jnp.zeros((8, 0))
    specs = {**SPECS, "empty": PartitionSpec("x")}
    clip = getattr(clipjax, name)(1.0)
    update = lambda grads, params: clip.update(grads, None, params)[0]  # noqa: E731
    step = jax.shard_map(update, mesh=mesh(), in_specs=(specs, specs), out_specs=specs)
    expected = jax.jit(update)(grads, grads)
    assert_close(jax.jit(step)(grads, grads), expected, rtol=1e-6, atol=1e-6)


WRAPPED = {
    "error_feedback": lambda clip: clipjax.error_feedback(clip, cap=2.0),
    "periodic_reset": lambda clip: clipjax.periodic_reset(clip, 2),
    "skip_nonfinite": clipjax.skip_nonfinite,
    "skip_on_spike": lambda clip: clipjax.skip_on_spike(clip, loss=False),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_find_the_axes_as_clips_do(name):
    optimizer = WRAPPED[name](clipjax.clip_by_global_norm(1.0))
    grads, params = trees()
    state = optimizer.init(params)
    states = jax.tree_util.tree_map_with_path(
        lambda path, _: SPECS.get(getattr(path[-1], "key", ""), PartitionSpec()), state
    )
    where = {"in_specs": (SPECS, states, SPECS), "out_specs": (SPECS, states)}
    step = jax.jit(jax.shard_map(optimizer.update, mesh=mesh(), **where))
    update = jax.jit(optimizer.update)
    for bad in (0.0, np.nan):
        grads["rows"] = grads["rows"].at[3, 0].set(bad)
        expected = update(grads, state, params)
        found = step(grads, state, params)
        assert_close(found, expected, rtol=16 * eps(jnp.float32), atol=1e-6)


GUARDED = {
    "zero": lambda **k: clipjax.clip_by(1.0, nonfinite=guards.zero, **k),
    "entries": lambda **k: clipjax.clip_entries(1.0, nonfinite=guards.drop, **k),
}


@pytest.mark.parametrize("name", GUARDED)
def test_guards_agree_across_devices(name):
    grads, _ = trees()
    grads["columns"] = grads["columns"].at[0, 6].set(jnp.nan)
    expected, _ = jax.jit(GUARDED[name]().update)(grads, None)
    updates, state = in_shard_map(GUARDED[name](axis_name="x"), grads)
    assert_close(updates, expected, rtol=16 * eps("f4"))
    assert int(state.clip_info.nonfinite_steps) == 1
    assert clipjax.nonfinite_path(state, grads) == "columns"


def test_skip_nonfinite_agrees_across_devices():
    grads, params = trees()
    grads["rows"] = grads["rows"].at[3, 0].set(jnp.nan)
    clip = clipjax.clip_by_global_norm(1.0, axis_name="x")
    optimizer = clipjax.skip_nonfinite(clip, axis_name="x")
    state = optimizer.init(params)
    step = jax.shard_map(
        optimizer.update,
        mesh=mesh(),
        in_specs=(SPECS, PartitionSpec()),
        out_specs=(SPECS, PartitionSpec()),
    )
    updates, after = jax.jit(step)(grads, state)
    assert norm(updates) == 0
    assert int(after.skipped_count) == 1
    assert_same_bits(after.inner_state, state.inner_state)
    assert clipjax.nonfinite_path(after, grads) == "rows"


# edges E34: w = 1..16 sharded, b = 4 ones replicated.
E34 = {"w": jnp.arange(1.0, 17.0), "b": jnp.ones(4)}
E34_SPECS = {"w": PartitionSpec("x"), "b": PartitionSpec()}


def test_e34_replicated_leaf_is_counted_once():
    clip = clipjax.clip_by_global_norm(1.0, axis_name="x")

    def step(grads):
        updates, state = clip.update(grads, None)
        return updates, state.clip_info.norm_before, state.clip_info.clip_ratio

    updates, length, factor = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh(),
            in_specs=(E34_SPECS,),
            out_specs=(E34_SPECS, PartitionSpec(), PartitionSpec()),
        )
    )(E34)
    assert float(length) == pytest.approx(38.7298, rel=1e-6)
    assert float(factor) == pytest.approx(0.0258199, rel=1e-5)
    scales = np.concatenate([updates["w"] / E34["w"], updates["b"]])
    np.testing.assert_allclose(scales, 1 / norm(E34), rtol=1e-6)


def test_e35_without_axis_name_is_an_error_about_the_local_norm():
    clip = clipjax.clip_by_global_norm(1.0)
    with pytest.raises(ValueError, match="axis_name"):
        jax.jit(
            jax.shard_map(
                lambda grads: clip.update(grads, None)[0],
                mesh=mesh(),
                in_specs=(E34_SPECS,),
                out_specs=E34_SPECS,
            )
        )(E34)


def test_check_vma_off_counts_every_leaf_as_split():
    grads = {"w": jnp.arange(1.0, 17.0)}
    clip = clipjax.clip_by_global_norm(1.0, axis_name="x")
    length = jax.jit(
        jax.shard_map(
            lambda grads: clip.update(grads, None)[1].clip_info.norm_before,
            mesh=mesh(),
            in_specs=({"w": PartitionSpec("x")},),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
    )(grads)
    assert float(length) == pytest.approx(norm(grads), rel=1e-6)


def test_clip_of_the_mean_gradient():
    # edges E37: clip after the mean, not the mean of clips.
    grads = jnp.array([[10.0, 0.0], [-8.0, 0.0]])
    clip = clipjax.clip_by_global_norm(1.0, axis_name="data")
    pair = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])

    def step(grads):
        return clip.update(jax.lax.pmean(grads[0], "data"), None)[0]

    updates = jax.jit(
        jax.shard_map(
            step,
            mesh=pair,
            in_specs=PartitionSpec("data"),
            out_specs=PartitionSpec(),
        )
    )(grads)
    np.testing.assert_allclose(updates, [1.0, 0.0], rtol=1e-6)


def test_e36_six_sharding_patterns_on_two_axes():
    axes = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    patterns = [
        PartitionSpec(),
        PartitionSpec("x"),
        PartitionSpec("y"),
        PartitionSpec("x", "y"),
        PartitionSpec(("x", "y")),
        PartitionSpec(None, "x"),
    ]
    shapes = {f"leaf{i:02}": (8, 8) for i in range(12)}
    grads = random_tree(5, shapes, size=20.0)
    spread = {
        name: jax.device_put(leaf, NamedSharding(axes, patterns[i % 6]))
        for i, (name, leaf) in enumerate(grads.items())
    }
    clip = clipjax.clip_by_global_norm(1.0)
    compiled = jax.jit(clip.update).lower(spread, clip.init(grads)).compile()
    updates, state = compiled(spread, clip.init(grads))
    assert_close(updates, hard_clip(grads, 1.0), rtol=16 * eps(jnp.float32))
    assert float(state.clip_info.norm_before) == pytest.approx(20.0, rel=1e-6)
    text = compiled.as_text()
    assert "all-gather" not in text
    # The replica groups: over x, over y, over both; and the flat pair of axes.
    main = text.split("ENTRY")[1]
    assert main.count(" all-reduce(") + main.count(" all-reduce-start(") <= 4


# A window and averages, of leaves and of units; see `adagc` in `test_placements.py`.
@pytest.mark.parametrize(
    ("kind", "name", "part"),
    [
        (AxisType.Auto, "quantile", granularity.leaf()),
        (AxisType.Explicit, "zscore", granularity.unit()),
    ],
)
def test_memories_on_a_mesh(kind, name, part):
    clip = clipjax.clip_by(catalogue.THRESHOLDS[name](), granularity=part)
    grads = [random_tree(seed, {"w": (3, 8)}, size=10.0**seed) for seed in range(3)]

    def run(grads):
        update, state = jax.jit(clip.update), jax.jit(clip.init)(grads[0])
        for grad in grads:
            updates, state = update(grad, state)
        return updates, state

    expected = run(grads)
    mesh = jax.make_mesh((8,), ("model",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        where = NamedSharding(mesh, PartitionSpec(None, "model"))
        found = run([jax.device_put(grad, where) for grad in grads])
        assert_close(found, expected, rtol=16 * eps("f4"))
