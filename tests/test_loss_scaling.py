"""Loss scaling: unscale, then check, then clip; sharp edges F44 and F45."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale
from loss_scale import next_scale
from oracle import assert_same_bits, bits, eps, kinds, norm

import clipjax

GRADS = np.array([0.3, 0.4], np.float32)
one = clipjax.clip_by_global_norm(1.0)


def chain(clip, *rest, scale=None):
    inner = clipjax.skip_nonfinite(optax.chain(clip, *rest))
    return optax.chain(clipjax.unscale(scale), inner)


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # Optax itself mixes dtypes
        yield


TRACED = chain(one)


@pytest.mark.parametrize("scale", [jnp.float32(2**15), np.float64(8)])
def test_f44_the_gradient_is_clipped_in_its_true_units(scale):
    scaled = jnp.asarray(GRADS * np.float32(scale), jnp.float16)
    constant = chain(one, scale=scale)
    updates, state = jax.jit(constant.update)(scaled, constant.init(scaled))
    again, _ = jax.jit(TRACED.update)(
        scaled, TRACED.init(scaled), loss_scale=np.float32(scale)
    )
    assert updates.dtype == jnp.float32
    np.testing.assert_allclose(updates, GRADS, rtol=eps(jnp.float16))
    assert_same_bits(again, updates)
    assert float(clipjax.metrics(state)["clip/clip_ratio"]) == 1


def test_f44_the_wrong_order_shrinks_the_step():
    scaled = jnp.asarray(GRADS * 2**15, jnp.float16)
    wrong = optax.chain(one, clipjax.unscale(2.0**15))
    updates, _ = jax.jit(wrong.update)(scaled, wrong.init(scaled))
    assert norm(updates) == pytest.approx(2.0**-15, rel=eps(jnp.float16))
    assert float(updates[0]) == pytest.approx(1.8e-5, rel=0.02)


def test_the_result_does_not_depend_on_the_scale():
    # Applications B66 and A4.29: of norm 0.05 and clipped to 0.02, at any scale.
    optimizer = chain(clipjax.clip_by_global_norm(0.02), optax.sgd(0.1))
    grads = np.array([0.03, 0.04], np.float16).astype(np.float32)
    found = []
    for scale in 2.0 ** np.arange(-4, 21, 4, dtype=np.float32):
        updates, _ = jax.jit(optimizer.update)(
            jnp.asarray(grads * scale), optimizer.init(grads), loss_scale=scale
        )
        found.append(bits(updates))
    assert len(set(found)) == 1


def test_what_the_scale_saved_from_underflow_is_not_lost_in_unscaling():
    # Half of float16's smallest number: float16 would round it to zero again.
    tiny = 2.0**-25
    scaled = jnp.full(4, tiny * 2**15, jnp.float16)
    updates, _ = clipjax.unscale(2.0**15).update(scaled, optax.EmptyState())
    np.testing.assert_array_equal(updates, np.full(4, tiny, np.float32))


def test_leaves_keep_at_least_their_precision():
    with jax.enable_x64(True):
        grads = {
            "half": jnp.asarray([2.0], jnp.bfloat16),
            "eight bits": jnp.asarray([2.0], jnp.float8_e4m3fn),
            "double": jnp.asarray([2 * np.pi], jnp.float64),
            "complex": jnp.asarray([2 + 4j], "complex64"),
            "integer": jnp.arange(2),
            "none": None,
        }
        updates, _ = clipjax.unscale(2.0).update(grads, optax.EmptyState())
        expected = {
            "half": jnp.ones(1, jnp.float32),
            "eight bits": jnp.ones(1, jnp.float32),
            "double": jnp.asarray([np.pi], jnp.float64),
            "complex": jnp.asarray([1 + 2j], "complex64"),
            "integer": jnp.arange(2),
            "none": None,
        }
        assert_same_bits(updates, expected)


def test_a_scale_that_makes_no_sense():
    update, state = jax.jit(TRACED.update), TRACED.init(GRADS)
    for scale in (0, -1.0, np.nan, np.inf, 1e-39):
        with pytest.raises(ValueError, match="loss_scale must be a number of at least"):
            clipjax.unscale(scale)
        # Under jit it cannot raise: never a sign flip, and no silent zero.
        updates, after = update(GRADS, state, loss_scale=jnp.float32(scale))
        assert norm(updates) == 0 and int(after[1].skipped_count) == 1


def test_a_scale_whose_reciprocal_is_subnormal():
    grads = np.array([1e38, 3e38], np.float32)
    traced = jax.jit(
        lambda grads, s: clipjax.unscale().update(grads, None, loss_scale=s)[0]
    )
    for scale in (2.0**126, 2.0**127, 3e38):
        divide = clipjax.unscale(scale).update
        constant = jax.jit(lambda grads, divide=divide: divide(grads, None)[0])
        for found in (constant(grads), traced(grads, scale)):
            np.testing.assert_allclose(found, grads.astype(float) / scale, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e39, np.ones(2, np.float32)])
def test_a_scale_that_does_not_fit_the_gradient(scale):
    with pytest.raises(ValueError, match="loss_scale must be"):
        clipjax.unscale(scale).update(jnp.ones(3), None)


def test_a_scale_of_size_one_leaves_the_shape_alone():
    updates, _ = clipjax.unscale(jnp.full((1, 1), 2.0)).update(jnp.ones(3), None)
    np.testing.assert_array_equal(updates, np.full(3, 0.5))


@pytest.mark.parametrize("scale", [True, "2"])
def test_a_scale_that_is_no_number(scale):
    with pytest.raises(TypeError, match="loss_scale must be"):
        clipjax.unscale(scale)


def test_a_missing_scale_is_asked_for():
    with pytest.raises(ValueError, match="unscale needs loss_scale: call update"):
        clipjax.unscale().update(GRADS, optax.EmptyState())


ADAPTIVE = {
    "zclip": functools.partial(clipjax.zclip, warmup_steps=2),
    "ema": lambda: clipjax.clip_by(clipjax.thresholds.ema(1.5)),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_f45_an_overflow_is_skipped_and_leaves_the_statistics_alone(
    name, standard_promotion
):
    optimizer = chain(ADAPTIVE[name](), optax.adam(0.1))
    params = jnp.ones(2)

    @jax.jit
    def step(carry, grads):
        params, state, scale, good_steps = carry
        scaled = (grads * scale).astype(jnp.float16)
        updates, state = optimizer.update(scaled, state, params, loss_scale=scale)
        params = optax.apply_updates(params, updates)
        scale, good_steps = next_scale(scale, good_steps, state[1].streak > 0, 2)
        return params, state, scale, good_steps

    carry = (params, optimizer.init(params), jnp.float32(2**15), jnp.int32(0))
    for _ in range(3):  # the third one grows the scale to where float16 is too small
        before = carry
        carry = step(carry, jnp.asarray(GRADS * 4))
    assert [float(before[2]), float(carry[2])] == [2.0**16, 2.0**15]
    assert int(carry[1][1].skipped_count) == 1
    assert_same_bits(carry[0], before[0])
    assert_same_bits(carry[1][1].inner_state, before[1][1].inner_state)
    after = step(carry, jnp.asarray(GRADS * 4))
    assert int(after[1][1].skipped_count) == 1
    assert norm(after[0] - carry[0]) > 0
    assert kinds(after) == kinds(carry)


def test_flax_dynamic_scale_in_front(standard_promotion):
    # It divides and checks by itself; the skip takes the place of its selections.
    optimizer = clipjax.skip_nonfinite(
        optax.chain(clipjax.zclip(warmup_steps=2), optax.sgd(0.1))
    )

    def loss(params, inputs):
        return jnp.sum(jnp.asarray(params, jnp.float16) * inputs).astype(jnp.float32)

    @jax.jit
    def step(carry, inputs):
        params, state, dynamic_scale = carry
        dynamic_scale, is_finite, _, grads = dynamic_scale.value_and_grad(loss)(
            params, inputs
        )
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state, dynamic_scale), is_finite

    params = jnp.zeros(2)
    carry = (params, optimizer.init(params), DynamicScale(scale=jnp.float32(2**17)))
    for is_good in (False, False, True, True):
        before = carry
        carry, is_finite = step(carry, jnp.asarray(GRADS * 4, jnp.float16))
        assert bool(is_finite) == is_good
        assert float(carry[2].scale) == float(before[2].scale) / (1 if is_good else 2)
        if not is_good:
            assert_same_bits(carry[0], before[0])
            assert_same_bits(carry[1].inner_state, before[1].inner_state)
    # Two steps, clipped to 1 as long as ZClip warms up.
    np.testing.assert_allclose(carry[0], [-2 * 0.1 * 0.6, -2 * 0.1 * 0.8], rtol=1e-3)
    assert float(clipjax.metrics(carry[1])["clip/grad_norm_raw"]) == pytest.approx(
        2.0, rel=1e-3
    )


def accumulated(inner, every, micro_batches, scales):
    """Accumulates scaled float16 micro-batches, each under a scale of its own."""
    steps = optax.MultiSteps(inner, every, should_skip_update_fn=optax.skip_not_finite)
    optimizer = optax.chain(clipjax.unscale(), steps.gradient_transformation())
    params = jnp.zeros(2)
    state, applied = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for grads, scale in zip(micro_batches, scales, strict=True):
        scaled = (jnp.asarray(grads, jnp.float32) * scale).astype(jnp.float16)
        updates, state = update(scaled, state, params, loss_scale=scale)
        applied.append(updates)
    return np.stack(applied), state


SCALES = [jnp.float32(2.0**k) for k in (8, 12, 10, 3, 7, 11)]


def test_f42_micro_batches_of_different_scales_are_averaged_then_clipped(
    standard_promotion,
):
    applied, state = accumulated(one, 2, [[10.0, 0.0], [-8.0, 0.0]], SCALES[:2])
    np.testing.assert_array_equal(applied, [[0, 0], [1, 0]])
    metrics = clipjax.metrics(state)
    assert float(metrics["clip/grad_norm_raw"]) == 1
    assert int(state[1].inner_opt_state.clip_steps) == 1


@pytest.mark.parametrize("every", [1, 2, 3])
def test_f43_accumulation_of_scaled_micro_batches(every, standard_promotion):
    total = np.arange(12.0).reshape(6, 2) / 8  # exact in float16
    micro_batches = total.reshape(every, -1, 2).mean(axis=1)
    clip = clipjax.clip_by_global_norm(0.5)
    applied, _ = accumulated(clip, every, micro_batches, SCALES[:every])
    expected = total.mean(axis=0) / np.linalg.norm(total.mean(axis=0)) / 2
    np.testing.assert_allclose(applied[-1], expected, rtol=2 * eps(jnp.float16))
    assert norm(applied[:-1]) == 0


def test_f43_a_partial_last_group_waits_and_an_overflow_is_left_out(
    standard_promotion,
):
    micro_batches = [[3.0, 4.0], [np.inf, 0.0], [9.0, 12.0], [1.0, 1.0], [1.0, 2.0]]
    micro_batches += [[5.0, 5.0]]
    applied, state = accumulated(one, 2, micro_batches, SCALES)
    np.testing.assert_allclose(applied[2], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(applied[4], np.array([1, 1.5]) / 3.25**0.5, rtol=1e-6)
    # The sixth is one of a group of two: it is kept, and nothing is applied yet.
    assert norm(applied[[0, 1, 3, 5]]) == 0
    assert int(state[1].inner_opt_state.clip_steps) == 2
    np.testing.assert_array_equal(state[1].acc_grads, [5.0, 5.0])
