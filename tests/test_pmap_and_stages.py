"""Placements without types or meshes: pmap, and leaves on different devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from oracle import assert_close, bits, eps, norm
from placements import OneDevice, assert_same_numbers, make

import clipjax
from clipjax import granularity

SHAPES = {"matrix": (16, 3), "vector": (16,)}
ONE_DEVICE = OneDevice(SHAPES, "matrix")
PARAMS = ONE_DEVICE.params
GRAD = jnp.array([3.0, 4.0])


def shards(tree):
    return jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(8, -1, *leaf.shape[1:]), tree
    )


def copies(tree):
    return jax.tree.map(lambda leaf: np.stack([leaf] * 8), tree)


def joined(stacked, like):
    """Puts shards together again; what is not split must agree to the bit."""

    def join(rows, whole):
        rows = np.asarray(rows)
        if rows.shape[1:] != whole.shape:
            return rows.reshape(whole.shape)
        assert len({bits(row) for row in rows}) == 1
        return rows[0]

    return jax.tree.map(join, stacked, like)


@pytest.mark.filterwarnings("ignore:.*pmap:DeprecationWarning")
# Sums and maxima, of units, with a memory, and of leaves that are whole: what is there
# beside the sums of `over_devices` is compared in `test_placements.py`.
@pytest.mark.parametrize("name", ["whole", "units", "learnt", "maxima", "spectral"])
def test_pmap(name):
    settings = {"units": {"axis": 0}, "spectral": {"axis_name": ()}}.get(name, {})
    clip = make(name, **{"axis_name": "i"} | settings)
    # Every device holds the whole gradient, as in data parallelism; or a shard of it.
    place = copies if name == "spectral" else shards
    params = place(PARAMS)
    state = jax.pmap(clip.init)(params)
    update = jax.pmap(clip.update, axis_name="i")
    for grads, (expected, expected_state) in zip(
        ONE_DEVICE.gradients(), ONE_DEVICE.results(name), strict=True
    ):
        updates, state = update(place(grads), state, params)
        assert_same_numbers(joined(updates, expected), expected)
        whole = joined(state, expected_state)
        assert_close(whole, expected_state, rtol=32 * eps("f4"), atol=1e-6)


STAGES = ("clip_by_global_norm", "clip_by_leaf_norm", "clip_by_value", "spectral_clamp")


@pytest.mark.parametrize("name", STAGES)
def test_leaves_on_different_devices_are_sent_to_jit(name):
    """Pipeline stages, each committed to a device of its own, and no jit around."""
    clip = getattr(clipjax, name)(1.0)
    one, two = jax.devices()[3], jax.devices()[5]
    grads = {"a": jax.device_put(GRAD, one), "b": jax.device_put(GRAD, two)}
    message = "different devices, 'a' on .*3.* and 'b' on .*5.*: call it under jit"
    with pytest.raises(ValueError, match=message):
        clip.update(grads, None)


def test_all_leaves_on_a_device_that_is_not_the_first_are_no_stages():
    one = jax.devices()[3]
    grads = {name: jax.device_put(GRAD, one) for name in "ab"}
    updates, _ = clipjax.clip_by_value(1.0, report=False).update(grads, None)
    assert all(leaf.devices() == {one} for leaf in updates.values())


def test_e38_stages_share_one_norm():
    clip = clipjax.clip_by_global_norm(1.0)
    devices = jax.devices()[:2]
    mesh = jax.make_mesh((2,), ("stage",), (AxisType.Auto,), devices=devices)
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


@pytest.mark.parametrize(
    "blocks",
    [
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


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("clip_by_leaf_norm", AxisType.Explicit),
        ("adagc", AxisType.Auto),
        ("adagc", AxisType.Explicit),
        ("spectral_clip", AxisType.Explicit),
    ],
)
def test_a_stack_that_is_split_under_jit(name, kind):
    clip = getattr(clipjax, name)(1.0, stacked=1)
    layers = np.arange(1, 9, dtype="f4").reshape(8, 1, 1) * np.ones((8, 4, 3), "f4")
    expected, state = jax.jit(clip.update)(layers, clip.init(layers), layers)
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
