"""What holds for clips that carry an optimizer's memory, as for any other clip."""

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracle import assert_close, assert_same_bits, eps, kinds

import clipjax

every_compound = pytest.mark.parametrize("name", catalogue.COMPOUNDS)
# Optax's Adam relies on promotion between the dtypes of moments and counts.
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def steps(name, count=4, dtype=jnp.float32):
    """Runs a few jitted updates, and gives all updates and the last state."""
    compound, params = catalogue.COMPOUNDS[name](), catalogue.parameters()
    update, state = jax.jit(compound.update), compound.init(params)
    found = []
    for seed in range(count):
        updates, state = update(catalogue.gradients(seed, dtype), state, params)
        found.append(updates)
    return found, state


@every_compound
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_state_keeps_its_form(name, dtype):
    compound, params = catalogue.COMPOUNDS[name](), catalogue.parameters()
    shapes = jax.eval_shape(lambda: params)
    first = jax.eval_shape(compound.init, shapes)
    _, last = steps(name, dtype=dtype)
    assert kinds(last) == kinds(first)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(steps(name)[0]))


@every_compound
def test_scan_equals_a_loop(name):
    compound, params = catalogue.COMPOUNDS[name](), catalogue.parameters()
    expected, last = steps(name)
    grads = [catalogue.gradients(seed) for seed in range(4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)

    def step(state, grad):
        updates, state = compound.update(grad, state, params)
        return state, updates

    state, updates = jax.lax.scan(step, compound.init(params), stacked)
    assert_close(state, last, rtol=8 * eps(jnp.float32))
    final = jax.tree.map(lambda leaf: leaf[-1], updates)
    assert_close(final, expected[-1], rtol=32 * eps(jnp.float32))


@every_compound
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_thresholds_are_frozen_by_a_bad_step(name, bad):
    compound, params = catalogue.COMPOUNDS[name](), catalogue.parameters()
    _, state = steps(name)
    grads = catalogue.gradients()
    grads["scale"] = jnp.full_like(grads["scale"], bad)
    _, after = jax.jit(compound.update)(grads, state, params)
    for before, later in zip(clips(state), clips(after), strict=True):
        assert_same_bits(later.threshold, before.threshold)
        assert int(later.clip_info.nonfinite_steps) == 1
    if name == "acclip":
        assert_same_bits(after.inner, state.inner)


@every_compound
def test_skip_nonfinite_around_it(name):
    compound, params = catalogue.COMPOUNDS[name](), catalogue.parameters()
    guarded = clipjax.skip_nonfinite(compound)
    state = guarded.init(params)
    _, state = guarded.update(catalogue.gradients(), state, params)
    bad = jax.tree.map(lambda leaf: leaf * jnp.nan, catalogue.gradients())
    _, after = guarded.update(bad, state, params)
    assert_same_bits(after.inner_state, state.inner_state)


@every_compound
def test_metrics_and_composition(name):
    compound, params = catalogue.COMPOUNDS[name](), catalogue.parameters()
    chain = optax.chain(compound, optax.scale_by_learning_rate(0.1))
    state, grads = chain.init(params), catalogue.gradients()
    _, state = jax.jit(chain.update)(grads, state, params)
    metrics = clipjax.metrics(state)
    assert np.isfinite(metrics["clip/grad_norm_raw"])
    multi = optax.MultiSteps(chain, every_k_schedule=2)
    _, state = jax.jit(multi.update)(grads, multi.init(params), params)
    assert int(clips(state)[0].count) == 0


@every_compound
def test_leaves_that_are_none(name):
    compound, params = catalogue.COMPOUNDS[name](), catalogue.parameters()
    params = {**params, "absent": None}
    state = compound.init(params)
    updates, _ = compound.update(
        {**catalogue.gradients(), "absent": None}, state, params
    )
    assert updates["absent"] is None


@pytest.mark.parametrize("name", ["acclip", "stable_update_clip"])
def test_integer_leaves_pass_a_clip_after_an_optimizer(name):
    compound, counts = catalogue.COMPOUNDS[name](), jnp.arange(3)
    params = {**catalogue.parameters(), "counts": counts}
    grads = {**catalogue.gradients(), "counts": counts}
    with jax.numpy_dtype_promotion("standard"):  # Adam averages integers as well
        updates, _ = compound.update(grads, compound.init(params), params)
    np.testing.assert_array_equal(updates["counts"], counts)
    assert updates["counts"].dtype == counts.dtype


@every_compound
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_gives_the_numbers_of_one_device(name, kind):
    compound = catalogue.COMPOUNDS[name]()
    params = {"w": jnp.ones((8, 3))}
    grads = {"w": jax.random.normal(jax.random.key(0), (8, 3))}
    expected, expected_state = steps_on(compound, params, grads)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        where = NamedSharding(mesh, PartitionSpec("data"))
        found, state = steps_on(
            compound, jax.device_put(params, where), jax.device_put(grads, where)
        )
        assert_close(found, expected, rtol=1e-6)
        assert_close(state, expected_state, rtol=1e-6)


def steps_on(compound, params, grads):
    state = jax.jit(compound.init)(params)
    for _ in range(3):
        updates, state = jax.jit(compound.update)(grads, state, params)
    return updates, state


def clips(state):
    """Finds the states of all clips."""
    is_clip = lambda node: isinstance(node, clipjax.ClipState)  # noqa: E731
    return [n for n in jax.tree.leaves(state, is_leaf=is_clip) if is_clip(n)]


def test_inner_without_a_second_moment():
    clip = clipjax.spam_clip(optax.sgd(0.1))
    with pytest.raises(ValueError, match="inner must keep a second moment"):
        clip.update(jnp.ones(2), clip.init(jnp.ones(2)))
    with pytest.raises(TypeError, match="inner must be a gradient transformation"):
        clipjax.spam_clip("adam")
