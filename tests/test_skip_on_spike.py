"""`skip_on_spike` leaves out steps that stand out, and never learns from them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec
from oracle import assert_close, assert_same_bits, kinds, norm, random_tree
from steps import run as run_steps

import clipjax
from clipjax import skip_on_spike

PARAMS = {"a": jnp.array([1.0, -0.0]), "b": jnp.array([[2.0]])}
SHAPES = {"a": (2,), "b": (1, 1)}


def gradient(size=1.0, dtype=jnp.float32, seed=0):
    return random_tree(seed, SHAPES, dtype, size)


def adam():
    optimizer = optax.adam(0.1)

    def update(*args):
        # Optax itself mixes dtypes here.
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)


ADAM = adam()


def run(optimizer, batches):
    """Runs (size or gradient, loss) pairs."""
    grads = [size if isinstance(size, dict) else gradient(size) for size, _ in batches]
    losses = [{"value": jnp.float32(loss)} for _, loss in batches]
    return run_steps(optimizer, grads, PARAMS, extra=losses)


def noisy(steps, seed=0, level=2.0, noise=0.02):
    generator = np.random.default_rng(seed)
    losses = level * (1 + noise * generator.standard_normal(steps))
    norms = 1 + 0.1 * generator.standard_normal(steps)
    return list(zip(norms, losses, strict=True))


@functools.cache
def wrapped(**settings):
    """Builds one wrapper per settings, which JAX compiles once."""
    return skip_on_spike(ADAM, **({"window": 16, "alarm_after": 5} | settings))


SPIKES = {
    "loss": (1.0, 3.0),
    "norm": (5.0, 2.0),
    "both": (50.0, 30.0),
    "nan_loss": (1.0, np.nan),
    "inf_loss": (1.0, np.inf),
    "minus_inf_loss": (1.0, -np.inf),
    "nan_gradient": (np.nan, 2.0),
    "inf_entry": ({"a": jnp.array([0.1, jnp.inf]), "b": jnp.array([[1.0]])}, 2.0),
    "overflowing_norm": ({"a": jnp.array([3e38] * 2), "b": jnp.array([[1.0]])}, 2.0),
}


@pytest.fixture(scope="module")
def without():
    return run(wrapped(), noisy(20) + noisy(3, seed=1))


@pytest.mark.parametrize("kind", SPIKES)
def test_a_spike_leaves_no_trace(kind, without):
    # Continued from the twentieth step, which both have in common.
    before, after = without[19], noisy(3, seed=1)
    spike, loss = SPIKES[kind]
    grads = [spike if isinstance(spike, dict) else gradient(spike)]
    grads += [gradient(size) for size, _ in after]
    losses = [{"value": jnp.float32(loss)} for loss in (loss, *(x for _, x in after))]
    found = run_steps(wrapped(), grads, PARAMS, state=before[1], extra=losses)
    with_spike = [*without[:20], *found]
    updates, state = with_spike[20]
    assert bool(state.is_spike) and int(state.skipped_count) == 1
    assert int(state.streak) == 1 and not bool(state.alarm)
    # -0.0 in the parameters included.
    assert_same_bits(optax.apply_updates(PARAMS, updates), PARAMS)
    previous = with_spike[19][1]
    for field in ("inner_state", "history", "accepted"):
        assert_same_bits(getattr(state, field), getattr(previous, field))
        assert_same_bits(
            getattr(with_spike[-1][1], field), getattr(without[-1][1], field)
        )
    assert_same_bits(with_spike[-1][0], without[-1][0])
    assert int(state.inner_state[0].count) == 20
    assert int(with_spike[-1][1].streak) == 0


def test_steps_without_a_spike_are_those_of_the_inner_optimizer():
    batches = noisy(40)
    mine, state = run(wrapped(), batches)[-1]
    inner_state = ADAM.init(PARAMS)
    for size, _ in batches:
        expected, inner_state = jax.jit(ADAM.update)(gradient(size), inner_state)
    # XLA fuses, and so rounds, differently.
    assert_close(mine, expected, rtol=1e-6)
    assert_close(state.inner_state, inner_state, rtol=1e-6)
    assert int(state.skipped_count) == 0 and int(state.accepted) == 40


def test_the_history_is_that_of_the_latest_accepted_steps():
    batches = noisy(21)
    batches[18] = (1.0, 99.0)
    state = run(wrapped(), batches)[-1][1]
    accepted = [batch for batch in batches if batch[1] < 99]
    for key, column in (("norm", 0), ("loss", 1)):
        expected = np.sort([batch[column] for batch in accepted[-16:]])
        found = np.sort(np.ravel(state.history[key]))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_limit_is_that_of_numpy():
    sigma = 3.0
    batches = noisy(30, noise=0.2)
    losses = np.array([loss for _, loss in batches][-16:])
    limit = losses.mean() + sigma * losses.std(ddof=1)
    for loss, expected in ((limit * 0.999, False), (limit * 1.001, True)):
        optimizer = wrapped(sigma=sigma, tolerance=0.0)
        state = run(optimizer, [*batches, (1.0, loss)])[-1][1]
        assert bool(state.is_spike) == expected
        assert int(state.skipped_count) == expected  # and none before


@pytest.mark.parametrize("minimum", [None, 2])
def test_too_short_a_history_judges_nothing(minimum):
    needed = minimum or 8
    wild = [(1.0, 10.0 ** (i % 2 * 3)) for i in range(needed)]
    optimizer = wrapped(minimum_history=minimum)
    found = run(optimizer, [*wild, (1.0, 1e9)])
    assert not any(bool(state.is_spike) for _, state in found[:-1])
    assert bool(found[-1][1].is_spike)


def test_without_history_nan_is_a_spike():
    found = run(wrapped(), [(1.0, np.nan), (np.nan, 1.0), (1.0, 1.0)])
    assert [bool(state.is_spike) for _, state in found] == [True, True, False]
    assert [int(state.accepted) for _, state in found] == [0, 0, 1]


def test_a_constant_history_does_not_make_a_spike_of_noise():
    constant = [(1.0, 2.0)] * 20
    for size, loss, expected in (
        (1.0, 2.002, False),
        (1.001, 2.0, False),
        (1.1, 2.2, False),
        (1.0, 2.4, True),
        (1.2, 2.0, True),
        (1.0, 0.0, False),
        (0.0, 2.0, False),
    ):
        state = run(wrapped(), [*constant, (size, loss)])[-1][1]
        assert bool(state.is_spike) == expected, (size, loss)


@pytest.mark.parametrize("level", [-2.0, 0.0])
def test_negative_losses_and_zero_gradients(level):
    found = run(wrapped(), [(0.0, level)] * 20 + [(1e-3, level + 0.01)])
    assert not bool(found[-1][1].is_spike)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_histories_at_extreme_magnitudes(scale):
    batches = [(size * scale, loss * scale) for size, loss in noisy(20)]
    found = run(wrapped(), [*batches, (scale, 2 * scale), (scale, 4 * scale)])
    assert [bool(state.is_spike) for _, state in found[-2:]] == [False, True]


def test_slow_growth_is_followed():
    optimizer = skip_on_spike(optax.identity())
    growth = np.float32(1.01 ** np.arange(800.0))
    from_a_standstill = np.append(np.ones(200, np.float32), growth[:600])

    def step(state, size):
        updates, state = optimizer.update(size, state, value=size)
        return state, state.is_spike

    @jax.jit
    @jax.vmap
    def spikes(sizes):
        return jax.lax.scan(step, optimizer.init(jnp.zeros(())), sizes)[1]

    assert not np.any(spikes(np.stack([growth, from_a_standstill])))


def test_a_lasting_shift_raises_the_alarm_until_told():
    optimizer = wrapped()
    found = run(optimizer, noisy(20) + [(1.0, 4.0)] * 30)
    for step, (_, state) in enumerate(found[20:], start=1):
        assert int(state.streak) == int(state.skipped_count) == step
        assert bool(state.alarm) == (step >= 5)
    state = found[-1][1]
    state = state._replace(accepted=jnp.zeros_like(state.accepted))
    update = jax.jit(optimizer.update)
    for _ in range(20):
        _, state = update(gradient(), state, PARAMS, value=jnp.float32(4.0))
        assert not bool(state.is_spike) and bool(state.alarm)
    _, state = update(gradient(), state, PARAMS, value=jnp.float32(6.0))
    assert bool(state.is_spike)


def test_the_norm_alone():
    optimizer = wrapped(loss=False)
    state = optimizer.init(PARAMS)
    assert set(state.history) == {"norm"}
    sizes = [1.0] * 10 + [9.0]
    _, state = run_steps(optimizer, [gradient(size) for size in sizes], PARAMS)[-1]
    assert bool(state.is_spike)


def test_a_missing_or_odd_loss():
    state = wrapped().init(PARAMS)

    def step(**extra):
        return jax.eval_shape(lambda: wrapped().update(gradient(), state, **extra))

    with pytest.raises(ValueError, match=r"skip_on_spike needs the loss.*value=loss"):
        step()
    with pytest.raises(ValueError, match=r"scalar loss, got shape \(2,\)"):
        step(value=jnp.ones(2))
    assert kinds(step(value=2)[1]) == kinds(state)  # an integer


def test_bfloat16_gradients_are_measured_well():
    # One thousand entries of 0.1: a sum of squares in bfloat16 would stick at 2.
    params = jnp.zeros(1000)
    grads = jnp.full(1000, 0.1, jnp.bfloat16)
    optimizer = skip_on_spike(optax.sgd(0.1), window=4)
    batches = [grads * jnp.bfloat16(factor) for factor in (1, 1, 1, 4)]
    loss = {"value": jnp.bfloat16(2.0)}
    updates, state = run_steps(optimizer, batches, params, extra=[loss] * 4)[-1]
    assert bool(state.is_spike) and np.all(updates == 0)
    assert float(state.history["norm"][0, 0]) == pytest.approx(norm(grads), rel=1e-6)


def test_scan_and_vmap_keep_seeds_apart():
    optimizer = skip_on_spike(optax.trace(0.9), window=8, minimum_history=4)
    losses = np.full((3, 20), 2.0, np.float32)
    losses[1, 10] = 9.0
    losses[2, 12:14] = np.nan

    def train(losses):
        def step(state, loss):
            _, state = optimizer.update(gradient(), state, PARAMS, value=loss)
            return state, state.is_spike

        return jax.lax.scan(step, optimizer.init(PARAMS), losses)

    together = jax.jit(jax.vmap(train))
    states, spikes = jax.tree.map(np.asarray, together(losses))
    assert_same_bits(spikes, losses != 2.0)
    for seed in range(3):
        expected, _ = together(np.stack([losses[seed]] * 3))  # beside its equals
        mine, expected = (
            jax.tree.map(lambda leaf, seed=seed: np.asarray(leaf)[seed], tree)
            for tree in (states, expected)
        )
        assert_same_bits(mine, expected)


def test_it_works_with_skip_nonfinite_in_both_orders():
    good, bad = noisy(20), SPIKES["nan_gradient"]
    batches = [*good, bad, SPIKES["loss"], *noisy(2, seed=1)]
    outside = clipjax.skip_nonfinite(wrapped())
    inside = skip_on_spike(clipjax.skip_nonfinite(ADAM), window=16)
    plain = run(wrapped(), good + noisy(2, seed=1))[-1]
    for optimizer, own, other in ((outside, 1, 1), (inside, 2, 0)):
        found = run(optimizer, batches)
        updates, state = found[-1]
        first, second = (state.inner_state, state)[:: 1 if own == 1 else -1]
        assert (int(first.skipped_count), int(second.skipped_count)) == (own, other)
        assert_close(updates, plain[0], rtol=1e-6)
        assert_close(state.inner_state.inner_state, plain[1].inner_state, rtol=1e-6)
        assert_same_bits(first.history, plain[1].history)


def test_extra_arguments_reach_the_inner_optimizer():
    seen = []

    def update(updates, state, params=None, *, value, learning_rate):
        seen.append((value, learning_rate))
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    optimizer = skip_on_spike(inner)
    extra = {"value": 3.0, "learning_rate": 0.1}
    jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p, **extra), PARAMS)
    assert seen == [(3.0, 0.1)]


def test_shapes_only_and_a_clip_inside():
    inner = optax.chain(clipjax.clip_by_global_norm(1.0), optax.sgd(0.1))
    optimizer = skip_on_spike(inner, name="watch", loss=False)
    shapes = jax.eval_shape(lambda: PARAMS)
    assert kinds(optimizer.init(shapes)) == kinds(optimizer.init(PARAMS))
    state = run(optimizer, noisy(2))[-1][1]
    assert state.skip_names == {"watch": {"whole": ()}}
    raw = clipjax.metrics(state)["clip/grad_norm_raw"]
    assert float(raw) == float(state.history["norm"][1, 0])  # measured alike


def test_all_devices_decide_alike():
    grads = {"r": jnp.arange(1.0, 5.0), "s": jnp.arange(8.0)}
    specs = {"r": PartitionSpec(), "s": PartitionSpec("x")}
    losses = jnp.full(8, 2.0).at[0].set(2.08)
    settings = {"minimum_history": 2, "window": 4}
    optimizer = skip_on_spike(optax.sgd(1.0), axis_name="x", **settings)
    state = optimizer.init(grads)
    state = state._replace(
        accepted=jnp.int32(3),
        history={"loss": jnp.full(4, 2.0), "norm": jnp.full((4, 1), 13.0)},
    )

    def shards(optimizer):
        return jax.jit(
            jax.shard_map(
                lambda g, loss, state: optimizer.update(g, state, value=loss[0]),
                mesh=jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,)),
                in_specs=(specs, PartitionSpec("x"), PartitionSpec()),
                out_specs=(specs, PartitionSpec()),
            )
        )

    whole = skip_on_spike(optax.sgd(1.0), **settings)
    step, alone = shards(optimizer), jax.jit(whole.update)
    spike = grads | {"s": grads["s"].at[5].set(1e3)}
    for given, bad in ((grads, False), (spike, True)):
        updates, new = step(given, losses, state)
        expected = alone(given, state, value=jnp.float32(2.01))
        assert bool(new.is_spike) == bad
        assert_close((updates, new), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="pass axis_name"):
        jax.eval_shape(shards(whole), grads, losses, state)


REFUSED = [
    ({"inner": 1}, TypeError, "inner must be a gradient transformation, got 1"),
    ({"window": 1}, ValueError, "window must be .* got 1"),
    ({"window": 8.0}, TypeError, "window must be an integer of at least 2, got 8.0"),
    ({"sigma": -1.0}, ValueError, "sigma must be .* got -1.0"),
    ({"sigma": float("inf")}, ValueError, "sigma must be .* got inf"),
    ({"tolerance": "1"}, TypeError, "tolerance must be .* got '1'"),
    ({"minimum_history": 1}, ValueError, "minimum_history must be .* got 1"),
    ({"minimum_history": 129}, ValueError, "at most window=128, got 129"),
    ({"alarm_after": 0}, ValueError, "alarm_after must be .* got 0"),
    ({"loss": 1}, TypeError, "loss must be True or False, got 1"),
]


def test_bad_arguments():
    for arguments, kind, message in REFUSED:
        with pytest.raises(kind, match=message):
            skip_on_spike(**({"inner": optax.sgd(0.1)} | arguments))


def test_a_state_of_another_window_is_refused():
    state = wrapped().init(PARAMS)
    other = skip_on_spike(ADAM, window=8)
    with pytest.raises(ValueError, match=r"history.loss should have shape \(8,\)"):
        jax.eval_shape(lambda: other.update(gradient(), state, PARAMS, value=1.0))
