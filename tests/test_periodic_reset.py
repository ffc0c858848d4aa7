"""`periodic_reset` takes moments back to their start, and nothing else."""

import functools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import assert_close, assert_same_bits, kinds, random_tree, wide
from steps import run as run_steps

import clipjax
from clipjax import periodic_reset

SHAPES = {"a": (3, 2), "b": {"norm": (2,)}, "c": ()}
PARAMS = random_tree(9, SHAPES)


def gradients(steps, dtype=jnp.float32):
    return [random_tree(seed, SHAPES, dtype) for seed in range(steps)]


def adam():
    optimizer = optax.with_extra_args_support(optax.adam(0.1))

    def update(*args, **extra):
        # Optax itself mixes dtypes here.
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args, **extra)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


ADAM = adam()


@functools.cache
def reset(*args, **settings):
    """Builds one wrapper around Adam per settings, which JAX compiles once."""
    return periodic_reset(ADAM, *args, **settings)


def run(optimizer, batches, params=PARAMS, state=None):
    return run_steps(optimizer, batches, params, state)


@pytest.mark.parametrize("counters", [False, True])
def test_moments_start_anew_every_so_many_steps(counters):
    batches = gradients(9)
    found = run(reset(4, counters=counters), batches)
    starts = {0: 0, 4: 3, 8: 7}  # updates number 4 and 8 are resets
    for number, (_, state) in enumerate(found, start=1):
        start = max(value for key, value in starts.items() if key <= number)
        fresh = run(ADAM, batches[start:number])[-1][1]
        mine = state.inner_state[0]
        assert_close((mine.mu, mine.nu), (fresh[0].mu, fresh[0].nu), rtol=1e-6)
        assert int(mine.count) == (number - start if counters else number)
        assert int(state.position) == number % 4
        assert int(state.reset_count) == number // 4


def test_with_its_counters_reset_adam_is_fresh():
    batches = gradients(6)
    found = run(reset(4, counters=True), batches)
    fresh = run(ADAM, batches[3:])
    for (mine, _), (theirs, _) in zip(found[3:], fresh, strict=True):
        assert_close(mine, theirs, rtol=1e-6)


def test_before_the_first_reset_nothing_changes():
    batches = gradients(4)
    mine = run(reset(5, warmup_steps=4), batches)
    for (updates, state), (expected, inner) in zip(
        mine, run(ADAM, batches), strict=True
    ):
        assert_close(updates, expected, rtol=1e-6)
        assert_close(state.inner_state, inner, rtol=1e-6)


def test_every_step():
    found = run(periodic_reset(optax.trace(0.9), 1), gradients(3))
    for grads, (updates, _) in zip(gradients(3), found, strict=True):
        assert_same_bits(updates, grads)


def spam_adam(batches, every, warmup_steps, decays=(0.9, 0.999), epsilon=1e-8):
    """The reset, ramp and Adam of SPAM's own code, in double precision."""
    first = second = 0.0
    since = warmup_steps
    for number, gradient in enumerate(batches, start=1):
        if number % every == 0:
            first = second = 0.0
            since = 0
        cosine = (1 + math.cos(math.pi * since / (warmup_steps + 1))) / 2
        scale = 1 - 0.99 * cosine if since < warmup_steps else 1.0
        first = decays[0] * first + (1 - decays[0]) * gradient
        second = decays[1] * second + (1 - decays[1]) * gradient**2
        corrected = first / (1 - decays[0] ** number)
        root = np.sqrt(second / (1 - decays[1] ** number))
        yield -0.1 * scale * corrected / (root + epsilon)
        since += 1


def test_it_is_the_rule_of_spam():
    batches = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)
    params = jnp.zeros(3)
    optimizer = reset(20, warmup_steps=7)
    found = run(optimizer, [jnp.asarray(batch) for batch in batches], params)
    expected = spam_adam(batches.astype(np.float64), 20, 7)
    for (updates, _), theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(wide(updates), theirs, rtol=2e-4)


def test_the_first_update_after_a_reset_is_as_documented():
    # Long after the start, so that the bias correction is over.
    params = jnp.zeros(())
    optimizer = reset(20_000)
    state = optimizer.init(params)
    inner = state.inner_state[0]._replace(count=jnp.int32(19_999))
    state = state._replace(
        position=jnp.int32(19_999), inner_state=(inner, *state.inner_state[1:])
    )
    updates, _ = run(optimizer, [jnp.float32(0.7)], params, state)[0]
    assert float(updates) == pytest.approx(-0.1 * 0.1 / math.sqrt(0.001), rel=1e-4)


RAMP = periodic_reset(optax.identity(), 6, warmup_steps=3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_ramp(dtype):
    optimizer = RAMP
    grads = gradients(1, dtype)[0]
    found = run(optimizer, [grads] * 12, gradients(1, dtype)[0])
    for number, (updates, _) in enumerate(found, start=1):
        k = number % 6
        if number < 6 or k >= 3:
            assert_same_bits(updates, grads)
            continue
        factor = np.float32(0.01 + 0.99 * (1 - math.cos(math.pi * k / 4)) / 2)
        expected = jax.tree.map(lambda leaf, f=factor: wide(leaf) * f, grads)
        assert_close(updates, expected, rtol=float(jnp.finfo(dtype).eps))


def test_the_ramp_leaves_other_leaves_alone():
    params = {"i": jnp.arange(2), "n": None, "w": jnp.ones(2)}
    optimizer = periodic_reset(optax.identity(), 2, warmup_steps=1)
    updates, _ = run(optimizer, [params] * 2, params)[-1]
    assert_same_bits(updates["i"], params["i"])
    assert updates["n"] is None
    assert_close(updates["w"], np.full(2, 0.01))


def test_settings_and_schedules_are_kept():
    def inner(learning_rate):
        return optax.chain(
            clipjax.clip_by_global_norm(1.0),
            optax.scale_by_rms(),
            optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, 10)),
            optax.scale_by_learning_rate(learning_rate),
        )

    optimizer = periodic_reset(
        optax.inject_hyperparams(inner)(learning_rate=0.1), 2, counters=True
    )
    state = optimizer.init(PARAMS)
    state.inner_state.hyperparams["learning_rate"] = jnp.float32(0.5)
    with jax.numpy_dtype_promotion("standard"):  # Optax itself mixes dtypes here
        _, state = run(optimizer, gradients(4), state=state)[-1]
    clip, rms, schedule, _ = state.inner_state.inner_state
    assert float(state.inner_state.hyperparams["learning_rate"]) == 0.5
    counts = (clip.clip_steps, schedule.count, state.inner_state.count)
    assert list(map(int, counts)) == [4, 4, 4]
    assert float(clip.clip_info.clip_threshold) == 1.0
    last = gradients(4)[-1]
    squares = jax.tree.map(lambda leaf: 0.1 * np.square(wide(leaf)), last)
    assert_close(rms.nu, squares, rtol=1e-5)


def masked(inner):
    return optax.masked(inner, {"a": True, "b": {"norm": False}, "c": True})


def partitioned(inner):
    labels = {"a": "body", "b": "head", "c": "body"}
    return optax.partition({"body": inner, "head": optax.set_to_zero()}, labels)


@pytest.mark.parametrize("wrapper", [masked, partitioned])
def test_moments_are_found_in_part_of_a_tree(wrapper):
    inner = wrapper(ADAM)
    batches = gradients(3)
    found = run(periodic_reset(inner, 2, counters=True), batches)
    fresh = run(inner, batches[1:])
    assert_close(found[-1][1].inner_state, fresh[-1][1], rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_single_array_of_parameters(shape):
    params = jnp.ones(shape)
    optimizer = reset(2)
    grads = [jnp.full(shape, x, jnp.float32) for x in (1.0, 2.0)]
    _, state = run(optimizer, grads, params)[-1]
    assert_close(state.inner_state[0].mu, 0.1 * wide(grads[-1]), rtol=1e-6)
    assert int(state.inner_state[0].count) == 2


def test_beside_a_single_array_numbers_are_kept():
    params = jnp.ones(2)
    inner = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=1.0)
    optimizer = periodic_reset(inner, 1)
    state = optimizer.init(params)
    state.inner_state.hyperparams["learning_rate"] = jnp.float32(0.5)
    with jax.numpy_dtype_promotion("standard"):  # Optax itself mixes dtypes here
        updates, _ = run(optimizer, [params] * 3, params, state)[-1]
    assert_close(updates, np.full(2, -0.5))


def test_select():
    seen = set()

    def first_moments(path, leaf):
        seen.add((path, leaf.shape))
        return "/mu/" in path

    batches = gradients(3)
    found = run(periodic_reset(ADAM, 3, select=first_moments), batches)
    plain = run(ADAM, batches)[-1][1][0]
    fresh = run(ADAM, batches[2:])[-1][1][0]
    mine = found[-1][1].inner_state[0]
    assert_close(mine.mu, fresh.mu, rtol=1e-6)
    assert_close(mine.nu, plain.nu, rtol=1e-6)
    assert {("0/mu/b/norm", (2,)), ("0/count", ())} <= seen


def test_select_takes_keys_as_well():
    def update(updates, key, params=None):
        key, draw = jax.random.split(key)
        return {"a": jax.random.normal(draw, (2,))}, key

    inner = optax.GradientTransformation(lambda params: jax.random.key(0), update)
    optimizer = periodic_reset(inner, 3, select=lambda path, leaf: True)
    params = {"a": jnp.zeros(2)}
    draws = [updates for updates, _ in run(optimizer, [params] * 5, params)]
    assert_same_bits(draws[2:4], draws[:2])
    assert not np.array_equal(draws[0]["a"], draws[1]["a"])


def test_a_state_that_starts_from_the_parameters():
    # The slow copy restarts from the parameters of that step.
    ema = optax.GradientTransformation(
        lambda params: {"average": params},
        lambda updates, state, params=None: (
            updates,
            {
                "average": jax.tree.map(
                    lambda old, now: 0.5 * old + 0.5 * now, state["average"], params
                )
            },
        ),
    )
    optimizer = periodic_reset(ema, 3)
    state = optimizer.init({"w": jnp.float32(0.0)})
    averages = []
    for value in (8.0, 8.0, 2.0):
        params = {"w": jnp.float32(value)}
        _, state = run(optimizer, [params], params, state)[0]
        averages.append(float(state.inner_state["average"]["w"]))
    assert averages == [4.0, 6.0, 2.0]


def test_scan_and_vmap():
    dtype = jnp.bfloat16
    optimizer = periodic_reset(optax.trace(0.5), 3, warmup_steps=2)
    batches = jnp.asarray(
        np.random.default_rng(0).standard_normal((2, 7, 4)), dtype=dtype
    )

    def train(grads):
        params = jnp.zeros(4, dtype)

        def step(state, grads):
            updates, state = optimizer.update(grads, state, params)
            return state, updates

        return jax.lax.scan(step, optimizer.init(params), grads)

    _, together = jax.jit(jax.vmap(train))(batches)
    for seed in range(2):
        alone = run(optimizer, list(batches[seed]), jnp.zeros(4, dtype))
        updates = jnp.stack([updates for updates, _ in alone])
        assert_close(together[seed], updates, rtol=2 * float(jnp.finfo(dtype).eps))


def test_bfloat16_gradients_for_float32_parameters():
    inner = optax.scale_by_adam(mu_dtype=jnp.float32)
    optimizer = periodic_reset(inner, 2, warmup_steps=1)
    state = optimizer.init(PARAMS)
    with jax.numpy_dtype_promotion("standard"):  # Optax itself mixes dtypes here
        for grads in gradients(3, jnp.bfloat16):
            _, new = jax.jit(optimizer.update)(grads, state, PARAMS)
            assert kinds(new) == kinds(state)
            state = new


def test_a_checkpoint_continues_to_the_bit():
    optimizer = reset(4, warmup_steps=2)
    batches = gradients(8)
    whole = run(optimizer, batches)
    for stop in (2, 3, 4):
        state = whole[stop - 1][1]
        stored = pickle.dumps(jax.tree.map(np.asarray, state))
        restored = jax.tree.map(jnp.asarray, pickle.loads(stored))
        assert_same_bits(run(optimizer, batches[stop:], state=restored)[-1], whole[-1])


def test_inside_skip_nonfinite_bad_steps_do_not_count():
    optimizer = clipjax.skip_nonfinite(reset(3))
    batches = gradients(5)
    bad = batches[1] | {"c": jnp.float32(jnp.nan)}
    with_bad = run(optimizer, [*batches[:2], bad, *batches[2:]])[-1]
    without = run(optimizer, batches)[-1]
    assert_same_bits(with_bad[1].inner_state, without[1].inner_state)


def test_shapes_only_extra_arguments_and_the_clip_inside():
    inner = optax.chain(clipjax.clip_by_global_norm(1.0), optax.trace(0.9))
    optimizer = periodic_reset(inner, 2)
    shapes = jax.eval_shape(lambda: PARAMS)
    assert kinds(optimizer.init(shapes)) == kinds(optimizer.init(PARAMS))
    _, state = jax.eval_shape(
        lambda: optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, value=1.0)
    )
    assert state.inner_state[0].clip_names == {"clip": {"whole": {}}}


def test_the_clip_inside_keeps_what_it_has_measured():
    """Numbers of a clip have the shape of a parameter that is a single number."""
    inner = optax.chain(clipjax.clip_by(clipjax.thresholds.ema(1.5)), optax.trace(0.9))
    params = jnp.float32(1.0)
    optimizer = periodic_reset(inner, 1, counters=True)
    for reset_steps, alone in zip(
        run(optimizer, [params] * 3, params),
        run(inner, [params] * 3, params),
        strict=True,
    ):
        assert_close(reset_steps[1].inner_state[0], alone[1][0])


def test_an_optimizer_that_refuses_placeholders():
    inner = optax.GradientTransformation(
        lambda params: params.copy(),
        lambda updates, state, params=None: (updates, state),
    )
    params = {"w": jnp.ones(2)}

    def step(**settings):
        optimizer = periodic_reset(inner, 2, **settings)
        return optimizer.update(params, optimizer.init(params), params)

    with pytest.raises(ValueError, match="tree_map_params fails.*choose them with sel"):
        step()
    step(select=lambda path, leaf: True)


def test_update_without_params():
    optimizer = periodic_reset(optax.trace(0.9), 2)
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match="periodic_reset needs params: call update"):
        optimizer.update(PARAMS, state)


REFUSED = [
    ({"inner": 1}, TypeError, "inner must be a gradient transformation, got 1"),
    ({"every": 0}, ValueError, "every must be .* got 0"),
    ({"every": 5.0}, TypeError, "every must be an integer of at least 1, got 5.0"),
    ({"warmup_steps": -1}, ValueError, "warmup_steps must be .* got -1"),
    ({"warmup_steps": 5}, ValueError, "warmup_steps must be below every=5, got 5"),
    ({"select": "mu"}, TypeError, "select must be a function .* got 'mu'"),
    ({"counters": 1}, TypeError, "counters must be True or False, got 1"),
    (
        {"counters": True, "select": lambda path, leaf: True},
        ValueError,
        "counters=True goes with select=None",
    ),
]


def test_bad_arguments():
    for arguments, kind, message in REFUSED:
        with pytest.raises(kind, match=message):
            periodic_reset(**({"inner": optax.sgd(0.1), "every": 5} | arguments))
