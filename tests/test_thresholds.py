"""Threshold sources: what each allows at each step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import assert_same_bits, norm

import clipjax
from clipjax import granularity, thresholds

GRAD = jnp.array([3.0, 4.0])


def allowed(source, sizes, **parts):
    """Runs a clip over gradients of these norms, and gives its thresholds."""
    clip = clipjax.clip_by(source, **parts)
    update = jax.jit(clip.update)
    state, found = clip.init(GRAD), []
    for size in sizes:
        _, state = update(GRAD / 5 * size, state)
        found.append(float(state.info.threshold))
    return np.array(found)


def test_constant():
    np.testing.assert_array_equal(allowed(0.5, [1, 2]), [0.5, 0.5])
    np.testing.assert_array_equal(allowed(thresholds.constant(2), [1, 2]), [2, 2])
    np.testing.assert_array_equal(allowed(None, [1, 2]), [np.inf, np.inf])


def test_minimum_maximum_and_scaled():
    falling = optax.linear_schedule(4.0, 0.0, 4)
    sizes = [1] * 4
    for source, expected in (
        (falling, [4, 3, 2, 1]),
        (thresholds.minimum(falling, 2.5), [2.5, 2.5, 2, 1]),
        (thresholds.maximum(falling, 2.5), [4, 3, 2.5, 2.5]),
        (thresholds.scaled(falling, 10.0), [40, 30, 20, 10]),
        (thresholds.minimum(thresholds.scaled(falling, 0.5), 1.2), [1.2, 1.2, 1, 0.5]),
        (thresholds.minimum(5.0, falling, 3.5), [3.5, 3, 2, 1]),
    ):
        np.testing.assert_allclose(allowed(source, sizes), expected, rtol=1e-6)


def test_minimum_with_a_bad_source_is_flagged():
    clip = clipjax.clip_by(thresholds.minimum(1.0, lambda count: jnp.float32(np.nan)))
    updates, state = clip.update(GRAD, clip.init(GRAD))
    assert norm(updates) == 0
    assert int(state.info.invalid_threshold_count) == 1


def test_after():
    found = allowed(thresholds.after(2, 0.5, before=3.0), [1] * 4)
    np.testing.assert_array_equal(found, [3, 3, 0.5, 0.5])
    found = allowed(thresholds.after(1, 0.5), [1] * 2)
    np.testing.assert_array_equal(found, [np.inf, 0.5])
    np.testing.assert_array_equal(allowed(thresholds.after(0, 0.5), [1]), [0.5])


def test_after_learns_before_it_is_in_force():
    source = thresholds.after(3, thresholds.warmup_statistic(2), before=9.0)
    found = allowed(source, [1, 2, 7, 7])
    np.testing.assert_allclose(found, [9, 9, 9, 2], rtol=1e-6)


def test_warmup_statistic():
    source = thresholds.warmup_statistic(3, 1.5, floor=0.1, cap=10.0)
    found = allowed(source, [1, 4, 2, 100, 1])
    np.testing.assert_allclose(found, [10, 10, 10, 6, 6], rtol=1e-6)
    found = allowed(source, [1e-3] * 4)
    np.testing.assert_allclose(found[-1], 0.1, rtol=1e-6)
    # edges I59: a spike during the warm-up stays below the cap for ever.
    found = allowed(source, [0.1, 0.1, 1e4, 0.1, 5000])
    np.testing.assert_allclose(found, 10, rtol=1e-6)


def test_warmup_statistic_counts_finite_steps_only():
    clip = clipjax.clip_by(thresholds.warmup_statistic(2, cap=10.0))
    state = clip.init(GRAD)
    for grads in (GRAD, GRAD * jnp.nan, GRAD * jnp.inf, 2 * GRAD, 9 * GRAD):
        before = state
        _, state = clip.update(grads, state)
        if not np.all(np.isfinite(grads)):
            assert_same_bits(state.threshold, before.threshold)
    assert float(state.info.threshold) == 10
    assert int(state.threshold.seen) == 2
    assert int(state.info.nonfinite_count) == 2


def test_warmup_statistic_per_block():
    grads = {"a": GRAD, "b": 2 * GRAD}
    clip = clipjax.clip_by(
        thresholds.warmup_statistic(1), granularity=granularity.leaf()
    )
    _, state = clip.update(grads, clip.init(grads))
    updates, state = clip.update({"a": 9 * GRAD, "b": 9 * GRAD}, state)
    np.testing.assert_allclose(state.info.blocks.threshold, [5, 10], rtol=1e-6)
    assert norm(updates["a"]) == pytest.approx(5, rel=1e-6)


@pytest.mark.parametrize(
    "blocks", [granularity.whole(), granularity.leaf(), granularity.unit()], ids=repr
)
def test_relative_to_params(blocks):
    params = {"w": jnp.array([6.0, 8.0])}
    clip = clipjax.clip_by(thresholds.relative_to_params(0.01), granularity=blocks)
    updates, state = clip.update({"w": GRAD}, clip.init(params), params)
    assert float(state.info.threshold) == pytest.approx(0.1, rel=1e-6)
    assert norm(updates) == pytest.approx(0.1, rel=1e-6)


def test_relative_to_params_uses_its_own_norm_and_floor():
    clip = clipjax.clip_by(
        thresholds.relative_to_params(0.1, 2.0), norm=clipjax.norms.linf
    )
    params = jnp.array([6.0, 8.0])
    _, state = clip.update(GRAD, clip.init(params), params)
    assert float(state.info.threshold) == pytest.approx(0.8, rel=1e-6)
    _, state = clip.update(GRAD, clip.init(params), 0 * params)
    assert float(state.info.threshold) == pytest.approx(0.2, rel=1e-6)


def test_relative_to_params_at_extreme_parameters():
    clip = clipjax.clip_by(thresholds.relative_to_params(1e-20))
    params = jnp.array([6e25, 8e25])
    _, state = clip.update(GRAD, clip.init(params), params)
    assert float(state.info.threshold) == pytest.approx(1e6, rel=1e-6)


def test_table():
    grads = {"a": {"b": GRAD, "c": GRAD}, "d": GRAD, "e": GRAD}
    table = {"a": 1.0, "d": None, "e": float("inf")}
    clip = clipjax.clip_by_leaf_norm(table)
    updates, state = clip.update(grads, clip.init(grads))
    assert norm(updates["a"]["b"]) == norm(updates["a"]["c"]) == pytest.approx(1)
    assert_same_bits(updates["d"], GRAD)
    assert_same_bits(updates["e"], GRAD)
    expected = [1, 1, np.inf, np.inf]
    np.testing.assert_array_equal(state.info.blocks.threshold, expected)
    assert float(state.info.threshold) == 1
    with pytest.raises(ValueError, match="threshold must be a prefix of the tree"):
        clipjax.clip_by_leaf_norm({"a": 1.0}).update(grads, None)


def test_table_of_arrays_is_read_at_every_update():
    @jax.jit
    def step(limit):
        clip = clipjax.clip_by_leaf_norm({"a": limit, "b": None})
        return clip.update({"a": GRAD, "b": GRAD}, None)[0]["a"]

    for limit in (1.0, 2.0):
        assert norm(step(jnp.float32(limit))) == pytest.approx(limit, rel=1e-6)
    assert step._cache_size() == 1


def test_threshold_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"threshold of shape \(3,\) does not fit"):
        clipjax.clip_by_leaf_norm(jnp.ones(3)).update({"a": GRAD, "b": GRAD}, None)


def test_a_source_of_ones_own():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Loss(thresholds.base.Threshold):
        kind = "loss"

        def update(self, norms, state, context):
            return context.argument("value", "loss") * 0.1, state

    clip = clipjax.clip_by(Loss())
    assert repr(clip) == "clip_by(whole × l2 × hard × loss)"
    _, state = clip.update(GRAD, clip.init(GRAD), value=jnp.float32(20.0))
    assert float(state.info.threshold) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="loss needs value: call update"):
        clip.update(GRAD, clip.init(GRAD))
