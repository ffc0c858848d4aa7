"""The order of clip and mean, as two named things."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec
from oracle import assert_close, norm, random_tree
from placements import assert_devices_agree

import clipjax

WORKERS = PartitionSpec("workers")
SHAPES = {"a": (2, 2), "b": (2, 2)}


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("workers",), (kind,))


def each(seed, size=20.0):
    """Makes eight gradients, stacked."""
    stacked = {name: (8, *shape) for name, shape in SHAPES.items()}
    return random_tree(seed, stacked, size=size)


def off_the_mesh(state):
    """Keeps JAX from compiling a step anew for states that lie on all devices."""
    return jax.tree.map(np.asarray, state)


def on_workers(clip, params=None):
    """Runs a clip in shard_map; what comes out is the same on all workers."""

    def step(grads, state):
        own = jax.tree.map(lambda leaf: leaf[0], grads)
        return clip.update(own, state, params)

    where = {"in_specs": (WORKERS, PartitionSpec()), "out_specs": PartitionSpec()}
    return jax.jit(jax.shard_map(step, mesh=mesh(), **where))


def test_e37_clip_of_the_mean_and_mean_of_the_clips():
    grads = jnp.array([[10.0, 0.0], [-8.0, 0.0]])
    clip = clipjax.clip_by_global_norm(1.0)

    def both(grads):
        each_first = clipjax.per_worker(clip, "workers").update(grads, None)[0]
        return clip.update(jax.lax.pmean(grads, "workers"), None)[0], each_first

    mean_first, each_first = jax.jit(jax.vmap(both, axis_name="workers"))(grads)
    np.testing.assert_allclose(mean_first, [[1.0, 0.0]] * 2, rtol=1e-6)
    np.testing.assert_array_equal(each_first, np.zeros((2, 2)))


CLIPS = {
    "chain": optax.chain(clipjax.autoclip(50.0, 4), optax.trace(0.9)),
    "feedback": clipjax.error_feedback(clipjax.clip_by_global_norm(1.0), cap=2.0),
}


def mean_of_workers(leaf):
    """Joins the workers' states: floats by the mean, counts by the largest."""
    join = np.mean if jnp.issubdtype(leaf.dtype, jnp.inexact) else np.max
    return jnp.asarray(join(np.asarray(leaf), axis=0), leaf.dtype)


@pytest.mark.parametrize("name", CLIPS)
def test_it_is_the_mean_over_a_loop_of_workers(name):
    clip = CLIPS[name]
    wrapped = clipjax.per_worker(clip, "workers")
    params = jax.tree.map(jnp.zeros, SHAPES, is_leaf=lambda n: isinstance(n, tuple))
    state = looped = wrapped.init(params)
    update = jax.jit(jax.vmap(clip.update, in_axes=(0, None, None)))
    step = on_workers(wrapped, params)
    for seed in range(3):
        grads = each(seed)
        updates, state = step(grads, state)
        assert_devices_agree((updates, state))
        state = off_the_mesh(state)
        own = update(grads, looped, params)
        expected, looped = jax.tree.map(mean_of_workers, own)
        assert_close(updates, expected, rtol=1e-5, atol=1e-6)
        assert_close(state, looped, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*pmap:DeprecationWarning")
def test_pmap_and_vmap_agree_with_shard_map():
    clip = clipjax.per_worker(clipjax.zclip(warmup_steps=1), "workers")
    start = clip.init(jax.tree.map(lambda leaf: leaf[0], each(0)))
    grads = each(1)
    expected = on_workers(clip)(grads, start)
    in_axes = {"in_axes": (0, None), "axis_name": "workers"}
    mapped = jax.jit(jax.vmap(clip.update, out_axes=None, **in_axes))
    assert_close(mapped(grads, start), expected)
    stacked = jax.pmap(clip.update, **in_axes)(grads, start)
    for i in range(8):
        mine = jax.tree.map(lambda leaf: leaf[i], stacked)  # noqa: B023
        assert_close(mine, expected, atol=1e-6)


def test_one_bad_worker_is_counted_once_by_all():
    clip = clipjax.per_worker(
        clipjax.clip_by(1.0, nonfinite=clipjax.guards.zero), "workers"
    )
    grads = each(0)
    grads["b"] = grads["b"].at[3, 0, 0].set(jnp.nan)
    state = clip.init(jax.tree.map(lambda leaf: leaf[0], grads))
    updates, state = on_workers(clip)(grads, state)
    assert int(state.clip_info.nonfinite_steps) == 1
    assert 0 < norm(updates) <= 7 / 8 * (1 + 1e-6)
    assert clipjax.nonfinite_path(state, updates) == "b"


REMEMBER = {
    "ema": clipjax.clip_by(clipjax.thresholds.ema(1.5)),
    "autoclip": clipjax.autoclip(window=8),
    "skip": clipjax.skip_nonfinite(optax.trace(0.9)),
}


@functools.cache
def two_workers(name):
    update = clipjax.per_worker(REMEMBER[name], "workers").update
    return jax.jit(
        jax.vmap(update, in_axes=(0, None), out_axes=None, axis_name="workers")
    )


@pytest.mark.parametrize("name", REMEMBER)
def test_a_bad_worker_has_no_part_in_what_all_remember(name):
    """Its memory, empty at first, would halve that of two workers."""
    clip, together = REMEMBER[name], two_workers(name)
    update = jax.jit(clip.update)
    alone = state = clip.init(jnp.ones(2))
    for scale, bad in ((1.0, True), (1.2, False), (0.9, True), (30.0, False)):
        grads = np.float32(scale) * np.float32([[3, 4]] * 2)
        expected, alone = update(grads[0], alone)
        if bad:
            grads[1] = np.nan
        updates, state = together(grads, state)
        if not bad:
            np.testing.assert_allclose(updates, expected, rtol=1e-6)
    mine, theirs = (
        jax.tree.leaves(getattr(tree, "clip_memory", tree)) for tree in (state, alone)
    )
    for one, other in zip(mine, theirs, strict=True):
        if jnp.issubdtype(one.dtype, jnp.inexact):
            np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.float16])
def test_momentum_of_any_dtype(dtype):
    clip = clipjax.per_worker(optax.trace(0.5), "workers")
    grads = 8000 * np.arange(1, 9)[:, None] * (1j if dtype == jnp.complex64 else 1)
    state = clip.init(jnp.ones(1, dtype))
    updates, state = on_workers(clip)(jnp.asarray(grads, dtype), state)
    assert state.trace.dtype == updates.dtype == dtype
    for mean in (updates, state.trace):
        np.testing.assert_allclose(mean, np.mean(grads, 0), rtol=1e-3)


def test_nothing_is_remembered_where_all_workers_are_bad():
    step = two_workers("ema")
    _, before = step(np.ones((2, 2), "f4"), REMEMBER["ema"].init(jnp.ones(2)))
    _, state = step(np.full((2, 2), np.nan, "f4"), before)
    assert_close(state.clip_memory, before.clip_memory, rtol=0, atol=0)
    assert int(state.clip_info.nonfinite_steps) == 1
    assert float(state.clip_info.norm_before) == np.inf


def test_parameters_may_be_split_over_another_axis():
    grid = jax.make_mesh((2, 4), ("workers", "model"), (AxisType.Auto,) * 2)
    grads = random_tree(1, {"w": (2, 8)}, size=30.0)
    clip = clipjax.per_worker(clipjax.clip_by_global_norm(1.0), "workers")

    def step(grads, params):
        return clip.update({"w": grads["w"][0]}, None, params)[0]

    model = PartitionSpec("model")
    where = {"in_specs": (PartitionSpec("workers", "model"), model), "out_specs": model}
    step = jax.jit(jax.shard_map(step, mesh=grid, **where))
    updates = step(grads, {"w": grads["w"][0]})
    units = [row / np.linalg.norm(row) for row in np.asarray(grads["w"])]
    np.testing.assert_allclose(updates["w"], np.mean(units, axis=0), rtol=1e-5)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="clip must be a gradient transformation"):
        clipjax.per_worker(1.0, "workers")
    with pytest.raises(ValueError, match="axis_name must name the workers' axes"):
        clipjax.per_worker(clipjax.clip_by_global_norm(1.0), ())


REFUSED = {
    "clip": clipjax.clip_by_global_norm(1.0),
    "named": clipjax.clip_by_global_norm(1.0, axis_name="model"),
    "compound": clipjax.acclip(),
    "error_feedback": clipjax.error_feedback(optax.identity()),
    "skip_nonfinite": clipjax.skip_nonfinite(optax.identity()),
    "skip_on_spike": clipjax.skip_on_spike(optax.identity(), loss=False),
    "periodic_reset": clipjax.periodic_reset(clipjax.clip_by_global_norm(1.0), 5),
}


def test_unreduced_gradients_are_refused():
    grid = jax.make_mesh((4, 2), ("workers", "model"), (AxisType.Auto,) * 2)
    params = jnp.ones(4)

    def step(grads, clip):
        return clip.update(grads[0], clip.init(params), params)[0]

    for name, clip in REFUSED.items():
        mapped = jax.shard_map(
            functools.partial(step, clip=clip),
            mesh=grid,
            in_specs=WORKERS,
            out_specs=WORKERS,
        )
        with pytest.raises(ValueError, match=r"jax.lax.pmean.*clipjax.per_worker"):
            jax.eval_shape(mapped, jnp.ones((4, 4)))
            pytest.fail(name)


def test_a_loss_that_is_not_reduced_is_refused():
    params = jnp.ones(4)
    for source in (clipjax.thresholds.from_loss(1.0), clipjax.thresholds.polyak_cap(1)):
        clip = clipjax.clip_by(source)
        step = functools.partial(clip.update, params, clip.init(params), params)
        where = {"in_specs": WORKERS, "out_specs": WORKERS}
        step = jax.shard_map(lambda x, f=step: f(value=x[0])[0], mesh=mesh(), **where)
        with pytest.raises(ValueError, match="value differs over .*jax.lax.pmean"):
            jax.eval_shape(step, jnp.ones(8))


def test_vmap_needs_no_axis_name():
    grads = jnp.array([[3.0, 4.0], [0.3, 0.4]])
    clip = clipjax.clip_by_global_norm(1.0)
    step = jax.vmap(lambda grads: clip.update(grads, None)[0], axis_name="seeds")
    np.testing.assert_allclose(
        jax.jit(step)(grads), [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6
    )


@pytest.mark.filterwarnings("ignore:.*pmap:DeprecationWarning")
def test_where_types_do_not_tell_there_is_no_guess():
    params = jnp.ones(4)

    def step(grads, clip):
        return clip.update(grads.reshape(4), clip.init(params), params)[0]

    for name, clip in REFUSED.items():
        if name == "named":
            continue
        own = functools.partial(step, clip=clip)
        where = {"in_specs": WORKERS, "out_specs": WORKERS, "check_vma": False}
        for silent in (jax.pmap(own), jax.shard_map(own, mesh=mesh(), **where)):
            with pytest.raises(ValueError, match=r"axis_name=\(\) if every device"):
                jax.eval_shape(silent, jnp.ones((8, 4)))
                pytest.fail(name)


def test_a_memory_may_fall_by_orders_of_magnitude():
    """The mean is not taken of changes, which would round small numbers away."""
    clip = clipjax.clip_by(clipjax.thresholds.quantile(0.0, window=3))
    each_clip = on_workers(clipjax.per_worker(clip, "workers"))
    update = jax.jit(clip.update)
    alone, together = clip.init(jnp.ones(1)), clip.init(jnp.ones(1))
    for size in (1.0, 1e10, 1.0, 1.0, 1.0, 1.0):
        expected, alone = update(jnp.full(1, size), alone)
        updates, together = each_clip(jnp.full((8, 1), size), off_the_mesh(together))
        np.testing.assert_array_equal(updates, expected)
    assert_close(together, alone, rtol=1e-6)


def test_gradients_that_are_summed_already_are_refused():
    """edges: jax.grad sums gradients of parameters that do not differ."""
    clip = clipjax.per_worker(clipjax.clip_by_global_norm(1.0), "workers")

    def step(inputs, differ):
        params = jnp.ones(1)
        if differ:
            params = jax.lax.pcast(params, "workers", to="varying")
        grads = jax.grad(lambda params: jnp.mean(params * inputs))(params)
        return clip.update(grads, None)[0]

    inputs = jnp.array([10.0, -8.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])

    def mapped(differ):
        return jax.shard_map(
            functools.partial(step, differ=differ),
            mesh=mesh(),
            in_specs=WORKERS,
            out_specs=PartitionSpec(),
        )

    np.testing.assert_allclose(jax.jit(mapped(True))(inputs), 1 / 8)
    with pytest.raises(ValueError, match="look summed already.*pcast"):
        jax.eval_shape(mapped(False), inputs)


@pytest.mark.parametrize(
    ("dtype", "size"), [(jnp.float16, 1e4), (jnp.float8_e4m3fn, 64.0)]
)
def test_the_sum_of_a_mean_may_be_beyond_the_dtype(dtype, size):
    clip = clipjax.per_worker(clipjax.clip_by_global_norm(1e9), "workers")
    step = jax.shard_map(
        lambda grads: clip.update(grads, None)[0],
        mesh=mesh(),
        in_specs=WORKERS,
        out_specs=PartitionSpec(),
    )
    updates = jax.jit(step)(jnp.full((8,), size, dtype))
    assert updates.dtype == dtype
    assert float(updates[0]) == size
