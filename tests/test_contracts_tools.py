"""What the tools around JAX may do with the state of any clip, and with its step."""

import io
import pickle

import catalogue
import chex
import flax.serialization
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from catalogue import about
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracle import assert_close, assert_same_bits, eps, flat

import clipjax

WRAPPED = {
    "skip_nonfinite": lambda: clipjax.skip_nonfinite(adam_after("adagc")),
    "skip_on_spike": lambda: clipjax.skip_on_spike(adam_after("clip_by_leaf_norm")),
    "error_feedback": lambda: clipjax.error_feedback(clipjax.clip_by_leaf_norm(1.0)),
    "periodic_reset": lambda: clipjax.periodic_reset(adam_after("zclip"), 5),
    "per_worker": lambda: clipjax.per_worker(clipjax.clip_by_leaf_norm(1.0), "x"),
}
STATES = catalogue.RECIPES | catalogue.COMPOUNDS | WRAPPED
# One of each structure of a state.
STRUCTURES = ("whole", "leaf", "group", "unit", "learnt-leaf", "entries", "svd")


def adam_after(name):
    return optax.chain(catalogue.RECIPES[name](), optax.scale_by_adam())


def one_step(name):
    """Gives a state after a compiled step."""
    return catalogue.run(name, catalogue.gradients(), 1.0)[1]


def fresh(name):
    return catalogue.REPRESENTATIVES[name](1.0).init(catalogue.parameters())


def test_tree_map_params_finds_what_belongs_to_parameters():
    params = catalogue.parameters()
    table = {"dense": {"bias": None, "kernel": 0.4}, "scale": 0.3}
    labels = {"dense": {"bias": "a", "kernel": "b"}, "scale": "a"}
    others = {
        "table": lambda: clipjax.clip_by_leaf_norm(table),
        "labels": lambda: clipjax.clip_by_group_norm(labels, {"a": 1.0, "b": 2.0}),
    }
    for name, make in (STATES | others).items():
        with about(name):
            optimizer = optax.chain(make(), optax.trace(0.9))
            state = optimizer.init(params)
            marked = optax.tree_map_params(
                optimizer,
                lambda leaf: np.full(np.shape(leaf), 7),
                state,
                transform_non_params=lambda leaf: np.full(np.shape(leaf), 8),
            )
            assert jax.tree.structure(marked) == jax.tree.structure(state)
            # The trace has a leaf per parameter; a report has none.
            assert set(flat(marked[1])) == {7}
            clips = catalogue.clip_states(marked)
            assert all(set(flat(clip.clip_info)) == {8} for clip in clips)


@pytest.mark.parametrize("name", ["leaf", "learnt-leaf"])
def test_a_state_is_sharded_by_tree_map_params(name):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("x"))
    whole = NamedSharding(mesh, PartitionSpec())
    params = {"a": jnp.arange(16.0), "b": jnp.ones((8, 2))}
    clip = catalogue.REPRESENTATIVES[name](1.0)
    optimizer = optax.chain(clip, optax.trace(0.9))
    shardings = optax.tree_map_params(
        optimizer,
        lambda _: split,
        optimizer.init(params),
        transform_non_params=lambda _: whole,
    )
    state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    step = jax.jit(optimizer.update, out_shardings=(split, shardings))
    updates, state = step(jax.device_put(params, split), state, params)
    expected, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    assert_close(updates, expected)
    assert state[1].trace["a"].sharding == split


def test_fields_of_a_state_have_nobody_else_s_names():
    params = catalogue.parameters()
    adam = optax.scale_by_adam()
    theirs = optax.chain(
        optax.adam(0.1),
        optax.trace(0.9),
        optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
        optax.apply_if_finite(optax.adam(0.1), 2),
        optax.inject_hyperparams(optax.adam)(0.1),
        optax.contrib.reduce_on_plateau(),
        optax.scale_by_lbfgs(2),
    ).init(params)
    names = {"count", "threshold", "norm", "factor", "info", "value", "learning_rate"}
    for path, _ in jax.tree_util.tree_leaves_with_path(theirs):
        names |= {key.name for key in path if hasattr(key, "name")}
    for name, make in catalogue.RECIPES.items():
        with about(name):
            state = make().init(params)
            for taken in names:
                assert optax.tree.get(state, taken, "absent") == "absent", taken
            # Adam's own are found beside a clip.
            beside = optax.chain(make(), adam)
            beside = beside.init(params)
            assert optax.tree.get(beside, "count") is beside[-1].count


def test_serialization_gives_the_state_back():
    for name in STRUCTURES:
        with about(name):
            state, empty = one_step(name), fresh(name)
            stored = flax.serialization.to_bytes(state)
            assert_same_bits(flax.serialization.from_bytes(empty, stored), state)
            stored = flax.serialization.to_state_dict(state)
            stored = flax.serialization.msgpack_serialize(stored)
            stored = flax.serialization.msgpack_restore(stored)
            assert_same_bits(flax.serialization.from_state_dict(empty, stored), state)
            assert_same_bits(pickle.loads(pickle.dumps(state)), state)
            file = io.BytesIO()
            np.savez(file, *jax.tree.leaves(state))
            file.seek(0)
            leaves = np.load(file).values()
            structure = jax.tree.structure(empty)
            assert_same_bits(jax.tree.unflatten(structure, leaves), state)


def test_orbax_restores_the_state_and_an_untyped_restore_is_refused(tmp_path):
    params, grads = catalogue.parameters(), catalogue.gradients(2)
    states = {name: one_step(name) for name in STRUCTURES}
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "clips", states)
        checkpointer.wait_until_finished()
        abstract = jax.eval_shape(lambda: {name: fresh(name) for name in STRUCTURES})
        restored = checkpointer.restore(tmp_path / "clips", abstract)
        assert_same_bits(restored, states)
        untyped = checkpointer.restore(tmp_path / "clips")
    # Arrays that lie on a certain device would be another program.
    restored = jax.tree.map(np.asarray, restored)
    for name in STRUCTURES:
        clip = catalogue.REPRESENTATIVES[name](1.0)
        with about(name):
            # Resuming is to the bit as going on.
            expected = catalogue.run(name, grads, 1.0, states[name])
            assert_same_bits(catalogue.run(name, grads, 1.0, restored[name]), expected)
            assert isinstance(untyped[name], dict)
            with pytest.raises(ValueError, match="got a dictionary with the keys"):
                clip.update(grads, untyped[name], params)


@pytest.mark.parametrize("name", ["leaf", "learnt-leaf", "entries"])
def test_an_exported_step_runs(name):
    """Every recipe is exported, for every platform, in `test_lowering.py`."""
    args = (catalogue.gradients(), fresh(name), catalogue.parameters())
    step = catalogue.representative(name)
    exported = jax.export.export(step)(*args, jnp.float32(1.0))
    found = exported.call(*args, jnp.float32(1.0))
    assert_close(found, step(*args, jnp.float32(1.0)), rtol=4 * eps("f4"))


def test_nothing_is_nan_from_the_first_step_on():
    with jax.debug_nans(True):
        for name in catalogue.REPRESENTATIVES:
            with about(name):
                state = fresh(name)
                chex.assert_tree_all_finite(state)
                for size in (5.0, 0.0, 1e25, 1e-25):
                    grads = catalogue.gradients(size=size)
                    updates, state = catalogue.run(name, grads, 1.0, state)
                chex.assert_tree_all_finite((updates, state))


@pytest.mark.parametrize("name", ["whole", "learnt-leaf"])
def test_a_micro_step_that_emits_nothing_is_not_nan(name):
    params = catalogue.parameters()
    clip = catalogue.REPRESENTATIVES[name](1.0)
    optimizer = optax.MultiSteps(clip, every_k_schedule=2)
    step = jax.jit(optimizer.update)
    with jax.debug_nans(True), jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for seed in range(4):
            updates, state = step(catalogue.gradients(seed), state, params)
            chex.assert_tree_all_finite((updates, state))
    assert int(state.inner_opt_state.clip_steps) == 2


@pytest.mark.parametrize("name", ["whole", "unit", "params", "learnt-leaf", "entries"])
def test_checkify_finds_nothing(name):
    params = catalogue.parameters()
    clip = catalogue.REPRESENTATIVES[name](1.0)
    checked = checkify.checkify(clip.update, errors=checkify.all_checks)
    step, state = jax.jit(checked), clip.init(params)
    for size in (5.0, 0.0):
        grads = catalogue.gradients(size=size) | {"scale": jnp.asarray(size)}
        assert jax.typeof(grads["scale"]).weak_type
        error, (_, state) = step(grads, state, params)
        error.throw()
