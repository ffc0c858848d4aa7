"""The state of every clip keeps its form, and nothing is ever traced twice."""

import functools

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import assert_close, assert_same_bits, eps, kinds

import clipjax

every_clip = pytest.mark.parametrize("key", catalogue.CLIPS)


SIZES = (5.0, 0.01, 9.0)


def three_steps(clip, params, dtype):
    """Gives a scan of three updates, with gradients in and out of range."""
    steps = [catalogue.gradients(i, dtype, size) for i, size in enumerate(SIZES)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)

    def step(state, grads):
        updates, state = clip.update(grads, state, params)
        return state, updates

    return steps, lambda state: jax.lax.scan(step, state, stacked)


@every_clip
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_state_keeps_its_form(key, dtype):
    clip, params = catalogue.clip(key), catalogue.parameters()
    first = clip.init(params)
    grads = catalogue.gradients(dtype=dtype)
    updates, state = jax.eval_shape(clip.update, grads, first, params)
    assert kinds(state) == kinds(first)
    assert kinds(updates) == kinds(grads)
    # Tracing a scan fails where the carry changes its type.
    jax.eval_shape(three_steps(clip, params, dtype)[1], first)


@pytest.mark.parametrize("key", [k for k in catalogue.CLIPS if k.startswith("recipe")])
def test_scan_of_three_updates_equals_a_loop(key):
    clip, params = catalogue.clip(key), catalogue.parameters()
    steps, scan = three_steps(clip, params, jnp.float32)
    state = clip.init(params)
    last, updates = scan(state)
    for position, grads in enumerate(steps):
        expected, state = catalogue.jitted(key)(grads, state, params)
        mine = jax.tree.map(lambda leaf: leaf[position], updates)  # noqa: B023
        # The order of a float32 sum may differ between two compilations.
        assert_close(mine, expected, rtol=8 * eps(jnp.float32))
    assert int(catalogue.clip_state(last).count) == 3
    assert_close(last, state, rtol=8 * eps(jnp.float32))


@every_clip
def test_init_on_structs(key):
    clip = catalogue.clip(key)
    params = catalogue.parameters()
    structs = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params
    )
    expected = clip.init(params)
    assert_same_bits(clip.init(structs), expected)
    assert kinds(clip.init(structs)) == kinds(expected)
    abstract = jax.eval_shape(clip.init, params)
    assert jax.tree.structure(abstract) == jax.tree.structure(expected)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(abstract)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(expected)
    ]


@every_clip
def test_no_data_before_the_first_step(key):
    state = catalogue.clip_state(catalogue.clip(key).init(catalogue.parameters()))
    for field in ("norm", "threshold", "factor", "clipped_norm", "clipped_fraction"):
        assert np.isnan(getattr(state.info, field)), field
    for block in jax.tree.leaves(state.info.blocks):
        assert np.all(np.isnan(block))
    assert int(state.count) == int(state.info.nonfinite_count) == 0
    assert int(state.info.nonfinite_leaf) == -1


@every_clip
def test_state_is_small(key):
    clip = catalogue.clip(key)
    big = {"dense": {"bias": (2,), "kernel": (300, 2)}, "scale": ()}
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), big, is_leaf=is_shape
    )
    info = catalogue.clip_state(jax.eval_shape(clip.init, params)).info
    blocks = 302 if key == "granularity-leaf_stacked" else catalogue.LEAF_COUNT
    for number in jax.tree.leaves(info):
        assert number.size <= blocks


def jaxpr(function, *args):
    """Writes down what a function does, without compiling it."""
    return str(jax.make_jaxpr(function)(*args))


@every_clip
def test_unknown_extra_arguments_change_nothing(key):
    clip, params = catalogue.clip(key), catalogue.parameters()
    extra = functools.partial(clip.update, value=1.0, unheard_of="x")
    inputs = catalogue.gradients(), clip.init(params), params
    assert jaxpr(extra, *inputs) == jaxpr(clip.update, *inputs)


@pytest.mark.parametrize("key", [k for k in catalogue.CLIPS if k != catalogue.CHAIN])
def test_update_without_a_state(key):
    clip, params = catalogue.clip(key), catalogue.parameters()
    grads = catalogue.gradients()
    if clip.clipper.threshold.remembers:
        with pytest.raises(ValueError, match="memory.*state that init made"):
            clip.update(grads, None, params)
        return
    mine = jaxpr(lambda grads: clip.update(grads, None, params), grads)
    theirs = jaxpr(lambda grads: clip.update(grads, clip.init(params), params), grads)
    assert mine == theirs


@pytest.mark.parametrize(
    "key", [k for k in catalogue.CLIPS if k not in catalogue.NEED_PARAMS]
)
def test_params_are_not_needed(key):
    clip, params = catalogue.clip(key), catalogue.parameters()
    inputs = catalogue.gradients(), clip.init(params)
    with_params = functools.partial(clip.update, params=params)
    assert jaxpr(with_params, *inputs) == jaxpr(clip.update, *inputs)


@pytest.mark.parametrize("key", catalogue.NEED_PARAMS)
def test_params_are_asked_for(key):
    clip = catalogue.clip(key)
    with pytest.raises(ValueError, match=r"\w+ needs params: call update"):
        clip.update(catalogue.gradients(), clip.init(catalogue.parameters()))


@every_clip
def test_every_number_of_the_first_state_has_its_own_buffer(key):
    """What shares one cannot be donated."""
    state = catalogue.clip(key).init(catalogue.parameters())
    buffers = [
        leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) if leaf.size
    ]
    assert len(set(buffers)) == len(buffers)


@pytest.mark.parametrize("key", ["recipe-clip_by_leaf_norm", "recipe-clip_by_value"])
def test_donated_state(key):
    clip, params = catalogue.clip(key), catalogue.parameters()
    grads = catalogue.gradients()
    # Buffers that XLA cannot reuse in place give a warning, which is an error here.
    step = jax.jit(clip.update, donate_argnums=1)
    _, state = step(grads, clip.init(params), params)
    first = clip.init(params)
    _, state = step(grads, first, params)
    assert first.count.is_deleted()
    assert float(state.info.norm) == pytest.approx(5.0)


class Counted:
    """Counts how often a function is traced."""

    def __init__(self, function):
        self.traces = 0
        self.function = function

    def __call__(self, *args):
        self.traces += 1
        return self.function(*args)


def test_one_trace_when_the_number_in_the_state_is_edited():
    clip = clipjax.clip_by_global_norm(1.0)
    grads = jnp.array([3.0, 4.0])
    counted = Counted(clip.update)
    step = jax.jit(counted)
    state = clip.init(grads)
    for threshold in (1.0, 0.5, 2.0):
        state = state._replace(threshold=jnp.asarray(threshold, state.threshold.dtype))
        updates, state = step(grads, state)
        np.testing.assert_allclose(updates, grads / 5 * threshold, rtol=1e-6)
    assert counted.traces == 1


def test_one_trace_when_an_array_changes():
    counted = Counted(
        lambda grads, threshold: clipjax.clip_by_global_norm(threshold).update(
            grads, None
        )
    )
    step = jax.jit(counted)
    grads = jnp.array([3.0, 4.0])
    for threshold in (1.0, 0.5, 2.0):
        updates, _ = step(grads, jnp.float32(threshold))
        np.testing.assert_allclose(updates, grads / 5 * threshold, rtol=1e-6)
    assert counted.traces == 1


@pytest.mark.parametrize(
    "key", ["threshold-schedule", "threshold-after", "threshold-warmup_statistic"]
)
def test_one_trace_over_four_steps(key):
    clip = catalogue.clip(key)
    counted = Counted(clip.update)
    step = jax.jit(counted)
    state = clip.init(catalogue.parameters())
    for seed in range(4):
        _, state = step(catalogue.gradients(seed), state)
    assert counted.traces == 1


def test_schedule_is_read_at_the_number_of_updates():
    schedule = optax.linear_schedule(4.0, 1.0, 3)
    clip = clipjax.clip_by_global_norm(schedule)
    grads = jnp.array([3.0, 4.0])
    state = clip.init(grads)
    for expected in (4.0, 3.0, 2.0, 1.0, 1.0):
        updates, state = clip.update(grads, state)
        np.testing.assert_allclose(state.info.threshold, expected, rtol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(updates), expected, rtol=1e-6)


def test_blocks_unknown_to_init_are_refused():
    clip = clipjax.clip_by_leaf_norm(1.0)
    state = clip.init({"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="init did not see: b"):
        clip.update({"a": jnp.ones(2), "b": jnp.ones(2)}, state)


@pytest.mark.parametrize(
    "key", ["threshold-learnt_per_leaf", "threshold-warmup_statistic"]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_memory_is_frozen_by_a_bad_step(key, bad):
    clip = catalogue.clip(key)
    update = functools.partial(catalogue.jitted(key), params=catalogue.parameters())
    grads = catalogue.gradients()
    _, state = update(grads, clip.init(grads))
    poisoned = {**grads, "scale": jnp.full_like(grads["scale"], bad)}
    _, after = update(poisoned, state)
    assert_same_bits(after.threshold, state.threshold)
    assert int(after.info.nonfinite_count) == 1
    assert int(after.count) == 2
    _, later = update(catalogue.gradients(2), after)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(later.threshold))
    assert np.all(np.asarray(later.threshold.seen) == 2)
