"""Placements without types or meshes: pmap, and leaves on different devices."""

import functools

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from oracle import assert_close, bits, eps, norm
from placements import RECIPES, SPECTRAL, OneDevice, assert_same_numbers

import clipjax
from clipjax import granularity

SHAPES = {"matrix": (16, 3), "vector": (16,)}
ONE_DEVICE = OneDevice(RECIPES, SHAPES, "matrix")
PARAMS = ONE_DEVICE.params


def shards(tree):
    return jax.tree.map(lambda leaf: leaf.reshape(8, -1, *leaf.shape[1:]), tree)


def copies(tree):
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), tree)


def joined(stacked, like):
    """Puts shards together again; what is not split must agree to the bit."""

    def join(rows, whole):
        if rows.shape[1:] != whole.shape:
            return rows.reshape(whole.shape)
        assert len({bits(row) for row in np.asarray(rows)}) == 1
        return rows[0]

    return jax.tree.map(join, stacked, like)


@pytest.mark.filterwarnings("ignore:.*pmap:DeprecationWarning")
@pytest.mark.parametrize("name", RECIPES)
def test_pmap(name):
    is_spectral = name in SPECTRAL
    units = {"axis": 0} if name == "adaptive_grad_clip" else {}
    clip = RECIPES[name](axis_name=() if is_spectral else "i", **units)
    place = copies if is_spectral else shards
    with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes
        params = place(PARAMS)
        state = jax.pmap(clip.init)(params)
        update = jax.pmap(clip.update, axis_name="i")
        for grads, (expected, expected_state) in zip(
            ONE_DEVICE.gradients(), ONE_DEVICE.results(name), strict=True
        ):
            updates, state = update(place(grads), state, params)
            assert_same_numbers(joined(updates, expected), expected)
            whole = joined(state, expected_state)
            assert_close(whole, expected_state, rtol=32 * eps(jnp.float32), atol=1e-6)


# Optax corrects the moments of all leaves in one compiled function.
ADAM = ("stable_update_clip", "spam_clip")


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ADAM])
def test_leaves_on_different_devices(name):
    """Pipeline stages, each committed to a device of its own, and no jit around."""
    clip = RECIPES[name]()
    place = {"matrix": jax.devices()[3], "vector": jax.devices()[5]}
    params = jax.device_put(PARAMS, place)
    state = clip.init(params)
    with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes
        for grads, (expected, expected_state) in zip(
            ONE_DEVICE.gradients(), ONE_DEVICE.results(name), strict=True
        ):
            updates, state = clip.update(jax.device_put(grads, place), state, params)
            for key, leaf in updates.items():
                assert leaf.devices() == {place[key]}
            assert_same_numbers(updates, expected)
            assert_close(state, expected_state, rtol=32 * eps(jnp.float32), atol=1e-6)


def test_e38_stages_share_one_norm():
    clip = clipjax.clip_by_global_norm(1.0)
    first, second = jax.devices()[:2]
    grads = {
        "one": jax.device_put(jnp.array([3.0, 0.0]), first),
        "two": jax.device_put(jnp.array([0.0, 4.0]), second),
    }
    updates, state = clip.update(grads, clip.init(grads))
    np.testing.assert_allclose(updates["one"], [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(updates["two"], [0.0, 0.8], rtol=1e-6)
    assert updates["two"].devices() == {second}
    assert float(state.clip_info.norm_before) == 5

    mesh = jax.make_mesh((2,), ("stage",), (AxisType.Auto,), devices=[first, second])
    stage = PartitionSpec("stage")
    where = {"in_specs": stage, "out_specs": stage}
    stacked = jnp.array([[3.0, 0.0], [0.0, 4.0]])
    step = jax.shard_map(lambda g: clip.update(g, None, g)[0], mesh=mesh, **where)
    np.testing.assert_allclose(jax.jit(step)(stacked), stacked / 5, rtol=1e-6)


def test_e39_replicas_do_not_enlarge_the_norm():
    grid = jax.make_mesh((2, 4), ("replica", "shard"), (AxisType.Auto,) * 2)
    grads = jnp.arange(1.0, 9.0)
    clip = clipjax.clip_by_global_norm(1.0)
    where = {"in_specs": PartitionSpec("shard"), "out_specs": PartitionSpec()}
    step = jax.shard_map(
        lambda grads: clip.update(grads, None, grads)[1].clip_info.norm_before,
        mesh=grid,
        **where,
    )
    assert float(jax.jit(step)(grads)) == pytest.approx(norm(grads), rel=1e-6)


@pytest.mark.skipif(not hasattr(jax.lax, "pcast"), reason="JAX before it had pcast")
def test_a_reduced_gradient_is_no_shard():
    """A leaf that does not differ would be counted on each device of its parameter."""
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    clip = clipjax.clip_by_global_norm(1.0)

    def step(inputs, params, passed):
        varying = jax.lax.pcast(params, "x", to="varying")
        grads = jax.grad(lambda params: jnp.sum(params * inputs))(varying)
        grads = jax.lax.pmean(grads, "x")
        return clip.update(grads, None, {"own": varying, "old": params}[passed])[0]

    def run(passed):
        where = {"in_specs": (PartitionSpec("x"), PartitionSpec())}
        run = functools.partial(step, passed=passed)
        run = jax.shard_map(run, mesh=mesh, out_specs=PartitionSpec(), **where)
        return jax.jit(run)(jnp.full(8, 5.0), jnp.zeros(1))

    np.testing.assert_array_equal(run("old"), [1.0])
    with pytest.raises(ValueError, match="it looks reduced.*before jax.lax.pcast"):
        run("own")


@pytest.mark.parametrize(
    "clip",
    [
        clipjax.clip_by_global_norm(1.0, axis_name="x"),
        clipjax.per_worker(clipjax.clip_by_global_norm(1.0), "x"),
    ],
)
def test_an_axis_that_is_not_there(clip):
    step = jax.jit(lambda grads: clip.update(grads, None)[0])
    with pytest.raises(ValueError, match=r"names 'x', .*leave axis_name out"):
        step(jnp.ones(2))


def test_devices_without_work_take_part():
    """edges E41: a stage whose gradient is all zeros, or empty, reduces as others."""
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    clip = clipjax.clip_by_global_norm(1.0)
    where = {"in_specs": PartitionSpec("x"), "out_specs": PartitionSpec("x")}

    def step(grads):
        works = jax.lax.axis_index("x") == 3
        idle = jnp.zeros_like(grads)
        grads = jax.lax.cond(works, lambda: grads, lambda: 0 * grads + idle)
        return clip.update(grads, None, grads)[0]

    updates = jax.jit(jax.shard_map(step, mesh=mesh, **where))(jnp.full(16, 3.0))
    expected = np.zeros(16)
    expected[6:8] = np.sqrt(0.5)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


MEGABYTE = 10**6
# What is compared with the gradient cannot be written over it.
COMPARED = ("clip_by_value", "cclip", "two_sided_clip")
# These sum up selected entries, which XLA's CPU backend writes to memory.
SELECTED = ("clippy", "quantization_clip")


@pytest.mark.skipif(
    jax.__version_info__ < (0, 10), reason="older XLA copies a leaf for the conditional"
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "name", sorted(set(catalogue.RECIPES) - {*SELECTED, *SPECTRAL})
)
def test_e40_a_gibibyte_needs_no_temporary_memory(name, dtype):
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    shape, clip = (8192, 8192), RECIPES[name]()
    split = jax.NamedSharding(mesh, PartitionSpec("x"))
    whole = jax.NamedSharding(mesh, PartitionSpec())
    leaf = jax.ShapeDtypeStruct(shape, dtype, sharding=split)
    grads = dict.fromkeys("abcd", leaf)
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
        jax.eval_shape(clip.init, grads),
    )
    donated = () if name in COMPARED else (0, 1)
    step = jax.jit(clip.update, donate_argnums=donated)
    compiled = step.lower(grads, state, grads).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * MEGABYTE
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize(
    "blocks",
    [
        granularity.element(),
        granularity.unit({"split": 0}),
        granularity.leaf(),
        granularity.whole(),
    ],
    ids=repr,
)
def test_devices_by_themselves_with_leaves_that_are_split_and_not(blocks):
    mesh = jax.make_mesh((2,), ("x",), (AxisType.Auto,), devices=jax.devices()[:2])
    clip = clipjax.clip_by(0.5, granularity=blocks, axis_name=())
    tree = {"split": jnp.arange(8.0).reshape(4, 2), "whole": jnp.ones(3)}

    def measure(tree):
        return clip.update(tree, None)[1].clip_info.norm_before[None]

    specs = {"split": PartitionSpec("x"), "whole": PartitionSpec()}
    run = jax.shard_map(
        measure, mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec("x")
    )
    squares = np.array([0 + 1 + 4 + 9, 16 + 25 + 36 + 49]) + 3
    np.testing.assert_allclose(jax.jit(run)(tree), np.sqrt(squares), rtol=1e-6)


def test_a_stack_is_not_guessed_from_a_shard():
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    layers, clip = jnp.ones((8, 4)), clipjax.clip_by_leaf_norm(1.0, stacked=1)
    specs = (PartitionSpec("x"), PartitionSpec(), PartitionSpec("x"))
    step = jax.shard_map(clip.update, mesh=mesh, in_specs=specs, out_specs=specs[:2])
    with pytest.raises(ValueError, match="does not tell which layers of a stack"):
        jax.jit(step)(layers, clip.init(layers), layers)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "name", ["clip_by_leaf_norm", "adagc", "larc_clip", "spectral_clip"]
)
def test_a_stack_that_is_split_under_jit(name, kind):
    settings = {"trust_coefficient": 0.1} if name == "larc_clip" else {}
    clip = getattr(clipjax, name)(1.0, stacked=1, **settings)
    layers = jnp.arange(1.0, 9.0).reshape(8, 1, 1) * jnp.ones((8, 4, 3))
    expected, state = clip.update(layers, clip.init(layers), layers)
    mesh = jax.make_mesh((8,), ("x",), (kind,))
    with jax.set_mesh(mesh):
        split = jax.device_put(layers, jax.NamedSharding(mesh, PartitionSpec("x")))
        found, other = jax.jit(clip.update)(split, clip.init(split), split)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(
        other.clip_info.block_norms_before,
        state.clip_info.block_norms_before,
        rtol=1e-6,
    )


WRAPPERS = {
    "skip_nonfinite": clipjax.skip_nonfinite,
    "skip_on_spike": lambda clip: clipjax.skip_on_spike(clip, loss=False),
    "error_feedback": clipjax.error_feedback,
    "error_feedback with a cap": lambda clip: clipjax.error_feedback(clip, cap=1.0),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_of_stages_that_leave_the_default_device_out(name):
    wrapped = WRAPPERS[name](clipjax.clip_by_global_norm(1.0))
    grads = {"a": jnp.arange(3.0), "b": jnp.arange(4.0)}
    one, two = jax.devices()[1:3]
    placed = {
        "a": jax.device_put(grads["a"], one),
        "b": jax.device_put(grads["b"], two),
    }
    here, there = wrapped.init(grads), wrapped.init(placed)
    for _ in range(3):
        expected, here = wrapped.update(grads, here, grads)
        found, there = wrapped.update(placed, there, placed)
        assert_close(found, expected, 1e-6)
        assert found["a"].devices() == {one} and found["b"].devices() == {two}
