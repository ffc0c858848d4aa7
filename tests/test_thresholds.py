"""Thresholds that are given, combined or relative: what each allows at each step."""

import dataclasses

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
    """Clips gradients of these norms; gives the thresholds that the updates show."""
    clip = clipjax.clip_by(source, **parts)
    state, found = clip.init(GRAD), []
    for size in sizes:
        updates, state = clip.update(GRAD / 5 * size, state)
        found.append(float(state.clip_info.clip_threshold))
        assert norm(updates) == pytest.approx(min(size, found[-1]), rel=1e-6)
    return np.array(found)


def test_constant():
    np.testing.assert_array_equal(allowed(0.5, [1, 2]), [0.5, 0.5])
    np.testing.assert_array_equal(allowed(thresholds.constant(2), [1, 2]), [2, 2])
    np.testing.assert_array_equal(allowed(np.float64(0.5), [1]), [0.5])
    np.testing.assert_array_equal(allowed(None, [1, 2]), [np.inf, np.inf])


def test_schedules():
    for schedule in (
        optax.cosine_decay_schedule(4.0, 5, alpha=0.1),
        optax.linear_schedule(4.0, 1.0, 5),
        thresholds.schedule(lambda steps: 1 + steps),  # integers
    ):
        with jax.numpy_dtype_promotion("standard"):  # the schedules mix dtypes
            function = getattr(schedule, "function", schedule)
            expected = [float(function(step)) for step in range(7)]
            found = allowed(schedule, [5] * 7)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_schedule_without_a_module():
    """As code in an interactive tool may make it, by exec."""
    namespace = {}
    exec("schedule = lambda step: 0.5", namespace)
    assert namespace["schedule"].__module__ is None
    assert thresholds.schedule(namespace["schedule"])
    clipjax.clip_by_value(namespace["schedule"])


def test_minimum_maximum_and_scaled():
    falling = optax.linear_schedule(4.0, 0.0, 4)
    for source, expected in (
        (falling, [4, 3, 2, 1]),
        (thresholds.minimum(falling, 2.5), [2.5, 2.5, 2, 1]),
        (thresholds.maximum(falling, 2.5), [4, 3, 2.5, 2.5]),
        (thresholds.scaled(falling, 10.0), [40, 30, 20, 10]),
        (thresholds.minimum(thresholds.scaled(falling, 0.5), 1.2), [1.2, 1.2, 1, 0.5]),
        (thresholds.minimum(5.0, falling, 3.5), [3.5, 3, 2, 1]),
    ):
        np.testing.assert_allclose(allowed(source, [1] * 4), expected, rtol=1e-6)


def test_minimum_with_a_bad_source_stops_and_counts():
    clip = clipjax.clip_by(thresholds.minimum(1.0, lambda steps: jnp.float32(np.nan)))
    updates, state = clip.update(GRAD, clip.init(GRAD))
    assert norm(updates) == 0
    assert int(state.clip_info.invalid_threshold_steps) == 1


def test_after():
    found = allowed(thresholds.after(2, 0.5, before=3.0), [1] * 4)
    np.testing.assert_array_equal(found, [3, 3, 0.5, 0.5])
    found = allowed(thresholds.after(1, 0.5), [1] * 2)
    np.testing.assert_array_equal(found, [np.inf, 0.5])
    np.testing.assert_array_equal(allowed(thresholds.after(0, 0.5), [1]), [0.5])
    # A source learns before it is in force.
    source = thresholds.after(3, thresholds.warmup_statistic(2), before=9.0)
    np.testing.assert_allclose(allowed(source, [1, 2, 7, 7]), [9, 9, 9, 2], rtol=1e-6)


def test_warmup_statistic():
    source = thresholds.warmup_statistic(3, 1.5, floor=0.1, cap=10.0)
    found = allowed(source, [1, 4, 2, 100, 1])
    np.testing.assert_allclose(found, [10, 10, 10, 6, 6], rtol=1e-6)
    assert allowed(source, [1e-3] * 4)[-1] == pytest.approx(0.1, rel=1e-6)
    # A spike during the warm-up stays below the cap for ever (edges I59).
    found = allowed(source, [0.1, 0.1, 1e4, 0.1, 5000])
    np.testing.assert_allclose(found, 10, rtol=1e-6)


def test_warmup_statistic_counts_finite_steps_only():
    clip = clipjax.clip_by(thresholds.warmup_statistic(2, cap=10.0))
    state = clip.init(GRAD)
    for grads in (GRAD, GRAD * jnp.nan, GRAD * jnp.inf, 2 * GRAD, 9 * GRAD):
        before = state
        _, state = clip.update(grads, state)
        if not np.all(np.isfinite(grads)):
            assert_same_bits(state.clip_memory, before.clip_memory)
    updates, _ = clip.update(9 * GRAD, state)
    assert norm(updates) == pytest.approx(10, rel=1e-6)
    assert int(state.clip_memory["warmup-statistic"].norms_seen[0]) == 2
    assert int(state.clip_info.nonfinite_steps) == 2


def test_warmup_statistic_per_block():
    grads = {"a": GRAD, "b": 2 * GRAD}
    source, leaf = thresholds.warmup_statistic(1), granularity.leaf()
    clip = clipjax.clip_by(source, granularity=leaf)
    _, state = clip.update(grads, clip.init(grads))
    updates, state = clip.update({"a": 9 * GRAD, "b": 9 * GRAD}, state)
    np.testing.assert_allclose(state.clip_info.block_thresholds, [5, 10], rtol=1e-6)
    assert norm(updates["a"]) == pytest.approx(5, rel=1e-6)
    assert norm(updates["b"]) == pytest.approx(10, rel=1e-6)


def test_relative_to_params():
    params = {"w": jnp.array([6.0, 8.0])}
    for blocks in (granularity.whole(), granularity.leaf(), granularity.unit()):
        source = thresholds.relative_to_params(0.01)
        clip = clipjax.clip_by(source, granularity=blocks)
        updates, state = clip.update({"w": GRAD}, clip.init(params), params)
        assert float(state.clip_info.clip_threshold) == pytest.approx(0.1, rel=1e-6)
        assert norm(updates) == pytest.approx(0.1, rel=1e-6)


def test_relative_to_params_uses_its_own_norm_and_floor():
    source = thresholds.relative_to_params(0.1, 2.0)
    clip = clipjax.clip_by(source, norm=clipjax.norms.linf)
    params = jnp.array([6.0, 8.0])
    for weights, largest in ((params, 0.8), (0 * params, 0.2)):
        updates, _ = clip.update(GRAD, clip.init(weights), weights)
        assert norm(updates, np.inf) == pytest.approx(largest, rel=1e-6)


@pytest.mark.parametrize("size", [1e-18, 1e18])
def test_relative_to_params_of_documented_magnitude(size):
    params = size * jnp.array([0.6, 0.8])
    clip = clipjax.clip_by(thresholds.relative_to_params(1 / size, 0.0))
    updates, _ = clip.update(GRAD, clip.init(params), params)
    assert norm(updates) == pytest.approx(1, rel=1e-6)


def test_relative_to_learning_rate():
    schedule = optax.cosine_decay_schedule(0.5, 10)
    relative = thresholds.relative_to_learning_rate
    for source, extra, expected in [
        (relative(0.2, 0.1), {}, [2, 2, 2]),
        (relative(0.2, 0.1, proportional=True), {}, [0.02] * 3),
        (relative(0.2, schedule), {}, [0.2 / schedule(t) for t in range(3)]),
        (relative(0.2), {"learning_rate": jnp.float32(0.4)}, [0.5] * 3),
        (relative(0.2, 0.0), {}, [np.inf] * 3),
        (relative(0.2, 0.0, proportional=True), {}, [0] * 3),
        (relative(optax.linear_schedule(1.0, 0.0, 2), 0.5), {}, [2, 1, 0]),
    ]:
        clip = clipjax.clip_by(source)
        state = clip.init(GRAD)
        for limit in expected:
            with jax.numpy_dtype_promotion("standard"):  # the schedules mix dtypes
                updates, state = clip.update(GRAD, state, **extra)
            assert norm(updates) == pytest.approx(min(float(limit), 5), rel=1e-6)
    clip = clipjax.clip_by(relative(0.2))
    with pytest.raises(ValueError, match="needs learning_rate: call.*learning_rate="):
        clip.update(GRAD, clip.init(GRAD))


def test_relative_to_rate_and_params_is_larc():
    source = thresholds.relative_to_learning_rate(
        thresholds.relative_to_params(0.02, floor=0.0), 0.1
    )
    mine = clipjax.clip_by(source, granularity=granularity.leaf())
    larc = clipjax.larc_clip(0.1, 0.02)
    params = {"a": jnp.array([6.0, 8.0]), "b": jnp.array([60.0, 80.0])}
    for clip in (mine, larc):
        updates, _ = clip.update({"a": GRAD, "b": GRAD}, clip.init(params), params)
        assert norm(updates["a"]) == pytest.approx(0.02 * 10 / 0.1, rel=1e-6)
        assert norm(updates["b"]) == pytest.approx(5, rel=1e-6)


def test_table():
    grads = {"a": {"b": GRAD, "c": GRAD}, "d": GRAD, "e": GRAD}
    clip = clipjax.clip_by_leaf_norm({"a": 1.0, "d": None, "e": float("inf")})
    updates, state = clip.update(grads, clip.init(grads))
    assert norm(updates["a"]["b"]) == norm(updates["a"]["c"]) == pytest.approx(1)
    assert_same_bits(updates["d"], GRAD)
    assert_same_bits(updates["e"], GRAD)
    expected = [1, 1, np.inf, np.inf]
    np.testing.assert_array_equal(state.clip_info.block_thresholds, expected)
    assert float(state.clip_info.clip_threshold) == 1
    with pytest.raises(ValueError, match="^max_norm must be a prefix of the tree"):
        clipjax.clip_by_leaf_norm({"a": 1.0}).update(grads, None)


def test_table_of_arrays_is_read_at_every_update():
    @jax.jit
    def step(limit):
        clip = clipjax.clip_by_leaf_norm({"a": limit, "b": None})
        return clip.update({"a": GRAD, "b": GRAD}, None)[0]["a"]

    for limit in (1.0, 2.0):
        assert norm(step(jnp.float32(limit))) == pytest.approx(limit, rel=1e-6)
    assert step._cache_size() == 1


def test_one_threshold_per_block_in_an_array():
    grads = {"a": GRAD, "b": GRAD}
    updates, _ = clipjax.clip_by_leaf_norm(jnp.array([1.0, 2.0])).update(grads, None)
    assert norm(updates["a"]) == pytest.approx(1, rel=1e-6)
    assert norm(updates["b"]) == pytest.approx(2, rel=1e-6)
    with pytest.raises(ValueError, match=r"threshold of shape \(3,\) does not fit"):
        clipjax.clip_by_leaf_norm(jnp.ones(3)).update(grads, None)


def test_rule_of_thumb():
    values = {"cnn": 5, "rnn": 1, "gru": 5, "lstm": 5, "deep-lstm": 10}
    values |= {"transformer": 1, "wgan-gp-critic": 10}
    for model, value in values.items():
        assert thresholds.rule_of_thumb(model) == value
    with pytest.raises(ValueError, match="one of 'cnn', .* got 'mamba'"):
        thresholds.rule_of_thumb("mamba")


@dataclasses.dataclass(frozen=True, repr=False)
class Loss(thresholds.Threshold):
    """A tenth of the loss: a threshold of one's own."""

    share: float = 0.1
    kind = "loss"

    def update(self, norms, state, context):
        loss = context.argument("value", "loss")
        return context.blocks.fill(context.cast(loss * self.share)), state


def test_a_threshold_of_ones_own():
    clip = clipjax.clip_by(Loss())
    assert repr(clip) == "clip_by(whole × l2 × hard × loss(0.1))"
    updates, _ = clip.update(GRAD, clip.init(GRAD), value=jnp.float32(20.0))
    assert norm(updates) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="loss needs value: call update"):
        clip.update(GRAD, clip.init(GRAD))
