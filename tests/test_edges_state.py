"""Sharp edges F, G and H: placement, accumulation, state, checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from oracle import assert_same_bits, kinds, norm

import clipjax
from clipjax import granularity, thresholds

GRAD = jnp.array([3.0, 4.0])
one = clipjax.clip_by_global_norm(1.0)


def one_step(optimizer, grads, params):
    with jax.numpy_dtype_promotion("standard"):  # Optax itself mixes dtypes
        updates, state = optimizer.update(grads, optimizer.init(params), params)
    return optax.apply_updates(params, updates), state


def accumulate(optimizer, micro_batches, params):
    """Runs MultiSteps over micro-batches, and gives all updates."""
    optimizer = optax.MultiSteps(optimizer, every_k_schedule=len(micro_batches))
    state, updates = optimizer.init(params), []
    with jax.numpy_dtype_promotion("standard"):
        for grads in micro_batches:
            update, state = optimizer.update(grads, state, params)
            updates.append(update)
    return updates, state


def test_f42_the_mean_of_the_micro_batches_is_clipped():
    micro_batches = [jnp.array([10.0, 0.0]), jnp.array([-8.0, 0.0])]
    updates, state = accumulate(one, micro_batches, jnp.zeros(2))
    np.testing.assert_array_equal(updates, [[0, 0], [1, 0]])
    metrics = clipjax.metrics(state)
    assert float(metrics["clip/grad_norm_raw"]) == 1
    assert int(state.inner_opt_state.clip_steps) == 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_f43_accumulation_does_not_change_the_update(count):
    parts = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    micro_batches = [jnp.asarray(part.mean(0)) for part in np.split(parts, count)]
    updates, _ = accumulate(clipjax.clip_by_global_norm(0.01), micro_batches, GRAD)
    whole = parts.mean(0)
    expected = whole / np.linalg.norm(whole) * 0.01
    np.testing.assert_allclose(updates[-1], expected, rtol=1e-5)


def test_g46_coupled_and_decoupled_decay():
    params = jnp.array([10.0, 0.0]) * 10
    decay = optax.add_decayed_weights(0.1)
    decoupled, _ = optax.chain(one, decay).update(
        GRAD, optax.chain(one, decay).init(params), params
    )
    np.testing.assert_allclose(decoupled, [10.6, 0.8], rtol=1e-6)
    coupled, _ = optax.chain(decay, one).update(
        GRAD, optax.chain(decay, one).init(params), params
    )
    np.testing.assert_allclose(coupled, np.array([13, 4]) / 185**0.5, rtol=1e-6)


def test_g47_adam_does_not_see_the_scale_of_constant_gradients():
    ends = []
    for threshold in (1e-3, 1e3):
        clip = clipjax.clip_by_global_norm(threshold)
        optimizer = optax.chain(clip, optax.adam(0.1))
        params, state = jnp.zeros(2), optimizer.init(jnp.zeros(2))
        with jax.numpy_dtype_promotion("standard"):
            for _ in range(5):
                updates, state = optimizer.update(GRAD, state, params)
                params = optax.apply_updates(params, updates)
        ends.append(params)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-3)


def test_g48_the_bound_holds_where_the_clip_stands():
    grads = jnp.ones(100)
    before_rate = optax.chain(optax.scale_by_adam(), one, optax.scale(-0.5))
    after_rate = optax.chain(optax.scale_by_adam(), optax.scale(-0.5), one)
    moved, _ = one_step(before_rate, grads, jnp.zeros(100))
    assert norm(moved) == pytest.approx(0.5, rel=1e-6)
    moved, _ = one_step(after_rate, grads, jnp.zeros(100))
    assert norm(moved) == pytest.approx(1.0, rel=1e-6)


def test_h54_resuming_is_bit_identical(tmp_path):
    source = thresholds.warmup_statistic(3, 0.5, cap=2.0)
    clip = clipjax.clip_by(source, granularity=granularity.leaf())
    params = {"dense/kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    batches = [
        jax.tree.map(lambda leaf, i=i: leaf * (i + 1.0), params) for i in range(5)
    ]
    update = jax.jit(clip.update)

    def train(state, batches):
        for grads in batches:
            updates, state = update(grads, state)
        return updates, state

    _, halfway = train(clip.init(params), batches[:2])
    expected = train(halfway, batches[2:])

    checkpointer = orbax.checkpoint.StandardCheckpointer()
    checkpointer.save(tmp_path / "clip", halfway)
    checkpointer.wait_until_finished()
    abstract = jax.eval_shape(clip.init, params)
    restored = checkpointer.restore(tmp_path / "clip", abstract)
    checkpointer.close()
    assert_same_bits(restored, halfway)
    assert_same_bits(train(restored, batches[2:]), expected)


def test_h56_the_first_value_of_a_schedule_is_its_value_at_zero():
    clip = clipjax.clip_by_global_norm(optax.piecewise_constant_schedule(4.0, {1: 0.5}))
    state = clip.init(GRAD)
    lengths = []
    update = jax.jit(clip.update)
    with jax.numpy_dtype_promotion("standard"):  # the schedule mixes dtypes
        for _ in range(3):
            updates, state = update(GRAD, state)
            lengths.append(norm(updates))
    np.testing.assert_allclose(lengths[0], 4.0, rtol=1e-6)
    np.testing.assert_allclose(lengths[-1], 2.0, rtol=1e-6)


def test_h56_a_schedule_counts_optimizer_steps_not_micro_batches():
    clip = clipjax.clip_by_global_norm(optax.linear_schedule(4.0, 0.0, 4))
    optimizer = optax.MultiSteps(clip, every_k_schedule=2)
    state, step = optimizer.init(GRAD), jax.jit(optimizer.update)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(4):
            _, state = step(GRAD, state, GRAD)
    assert float(clipjax.metrics(state)["clip/threshold"]) == 3


@pytest.mark.parametrize(
    "threshold",
    [jnp.float32(0.3), jnp.full((1,), 0.3, "f4"), np.float64(0.3), np.array(0.3)],
    ids=["f32", "f32-vector", "np.float64", "np.array"],
)
def test_h57_array_thresholds_and_narrow_gradients(threshold):
    clip = clipjax.clip_by_global_norm(threshold)
    grads = {"narrow": GRAD.astype(jnp.bfloat16), "wide": GRAD}
    state = clip.init(grads)
    updates, new = jax.jit(clip.update)(grads, state)
    assert kinds(updates) == kinds(grads)
    assert kinds(new) == kinds(state)
    assert float(new.clip_info.clip_threshold) == np.float32(0.3)


def test_h57_a_scheduled_threshold_and_a_mixed_tree():
    clip = clipjax.clip_by_leaf_norm(optax.cosine_decay_schedule(0.3, 10))
    grads = {"narrow": GRAD.astype(jnp.float16), "wide": GRAD}
    with jax.numpy_dtype_promotion("standard"):  # the schedule mixes dtypes
        updates, state = jax.jit(clip.update)(grads, clip.init(grads))
    assert kinds(updates) == kinds(grads)
    np.testing.assert_allclose(state.clip_info.block_thresholds, [0.3, 0.3], rtol=1e-6)


def test_h58_init_and_update_with_none():
    state = one.init(None)
    updates, state = one.update(GRAD, state)
    np.testing.assert_allclose(updates, [0.6, 0.8], rtol=1e-6)
    assert int(state.clip_steps) == 1
    updates, _ = one.update(GRAD, None)
    np.testing.assert_allclose(updates, [0.6, 0.8], rtol=1e-6)
    assert one.update(None, one.init(None))[0] is None
