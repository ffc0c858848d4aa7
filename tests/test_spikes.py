"""Limits of `skip_on_spike`, each leaf by itself, and the record of skipped steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec
from oracle import assert_close, assert_same_bits, kinds

import clipjax
from clipjax import SkippedStep, granularity, skip_on_spike, skipped_steps, thresholds

PARAMS = {"a": jnp.zeros(()), "b": {"c": jnp.zeros(())}}
NOISE = np.random.default_rng(0)
USUAL = np.exp(0.3 * NOISE.standard_normal(40)).astype(np.float32)
SPIKED = USUAL.copy()
SPIKED[[12, 13, 30]] = 60, 2e4, 9
SPIKED[[5, 20, 25]] = 0, np.nan, np.inf


def follow(optimizer, norms, **extra):
    """Scans over scalar gradients; gives which steps were skipped, and each state."""

    def step(state, each):
        norm, more = each
        _, state = optimizer.update(norm, state, None, **more)
        return state, state

    first = optimizer.init(jnp.zeros(()))
    extra = {key: jnp.asarray(value) for key, value in extra.items()}
    last, states = jax.lax.scan(step, first, (jnp.asarray(norms), extra))
    return states.is_spike, states, last


def replay(norms, allowed):
    """Gives the steps a loop skips, whose limit follows from the norms it accepted."""
    accepted, skipped = [], []
    for norm in norms.astype(float):
        is_known = np.isfinite(norm)
        skipped.append(not is_known or bool(norm > allowed(np.array(accepted))))
        if not skipped[-1] and norm > 0:
            accepted.append(norm)
    return np.array(skipped)


def average(values, decay):
    weights = decay ** np.arange(len(values))[::-1]
    return np.sum(weights * values) / np.sum(weights)


def six_sigma(past):
    return np.mean(past) + max(6 * np.std(past, ddof=1), 0.15 * np.mean(past))


def log_normal(past):
    logs = np.log(past)
    mean = average(logs, 0.9)
    return np.exp(mean + 4 * np.sqrt(average((logs - mean) ** 2, 0.9)))


def known(allowed, least):
    return lambda past: allowed(past) if len(past) >= least else np.inf


LIMITS = {
    "limit": ({"limit": 8.5}, lambda past: 8.5),
    "multiple": (
        {"multiple": 3.0, "minimum_history": 4},
        known(lambda past: 3 * average(past, 0.99), 4),
    ),
    "sigma": ({"sigma": 6, "loss": False, "minimum_history": 9}, known(six_sigma, 9)),
    "log": (
        {"limit": thresholds.log_mean_plus_std(4.0, decay=0.9, minimum_history=8)},
        known(log_normal, 8),
    ),
    "both": (
        {"limit": 100.0, "multiple": 2.0, "minimum_history": 13},
        lambda past: min(100, known(lambda past: 2 * average(past, 0.99), 13)(past)),
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_steps_are_those_that_a_loop_skips(name):
    settings, allowed = LIMITS[name]
    optimizer = skip_on_spike(optax.trace(0.9), **settings)
    skipped, states, _ = follow(optimizer, SPIKED)
    states = jax.tree.map(np.asarray, states)
    expected = replay(SPIKED, allowed)
    # The multiple alone is not yet in force at step 12, and the limit is.
    early = [] if name == "both" else [12]
    assert np.flatnonzero(expected).tolist() == [*early, 13, 20, 25, 30]
    np.testing.assert_array_equal(skipped, expected)
    np.testing.assert_array_equal(states.skipped_count, np.cumsum(expected))
    # A skipped step leaves no trace in any statistic, nor in the optimizer's state.
    (steps,) = expected.nonzero()
    for field in ("inner_state", "history", "limit_memory", "accepted"):
        after, before = (
            jax.tree.map(lambda leaf, at=at: leaf[at], getattr(states, field))
            for at in (steps, steps - 1)
        )
        assert_same_bits(after, before)
    accepted = SPIKED[~expected]
    momentum = 0.0
    for norm in accepted:
        momentum = 0.9 * momentum + norm
    np.testing.assert_allclose(states.inner_state.trace[-1], momentum, rtol=1e-5)


def test_a_limit_that_is_an_array_or_a_schedule():
    @jax.jit
    def spikes(limit):
        optimizer = skip_on_spike(optax.identity(), limit=limit)
        return follow(optimizer, np.float32([0, 1, 1.5, np.nan]))[0]

    of = lambda limit: np.flatnonzero(spikes(jnp.float32(limit))).tolist()  # noqa: E731
    assert of(1.0) == [2, 3] and of(0.0) == [1, 2, 3] and of(np.inf) == [3]
    assert of(-1.0) == of(np.nan) == [1, 2, 3]  # never let all through
    assert spikes._cache_size() == 1
    falling = skip_on_spike(optax.identity(), limit=optax.linear_schedule(4.0, 0.0, 4))
    assert follow(falling, np.full(5, 2.5, "f"))[0].tolist() == [False] * 2 + [True] * 3


def test_which_limits_are_in_force():
    """Without a limit it is six sigma of norm and loss; with one, that one alone."""
    default = skip_on_spike(optax.identity()).init(PARAMS)
    assert set(default.history) == {"loss", "norm"}
    for settings in ({"limit": 1.0}, {"multiple": 2.0}, {"limit": np.inf}):
        optimizer = skip_on_spike(optax.identity(), **settings)
        state = optimizer.init(PARAMS)
        assert state.history == {}
        jax.eval_shape(optimizer.update, PARAMS, state)  # needs no loss
    both = skip_on_spike(optax.identity(), limit=1.0, sigma=3.0)
    with pytest.raises(ValueError, match="needs the loss"):
        jax.eval_shape(both.update, PARAMS, both.init(PARAMS))


def leaf_batches(steps):
    """Makes usual gradients of two leaves, the first a hundred times the second."""
    noise = np.exp(0.1 * np.random.default_rng(1).standard_normal((2, steps)))
    return {"a": (100 * noise[0]).astype("f"), "b": {"c": noise[1].astype("f")}}


GROUPS = granularity.group({"a": "large", "b": "small"})


@pytest.mark.parametrize(
    "settings",
    [
        {"multiple": 4.0},
        {"sigma": 6.0, "loss": False},
        {"limit": thresholds.log_mean_plus_std(5.0, minimum_history=8)},
        {"limit": {"a": 1e4, "b": 3.0}},
        {"multiple": 4.0, "granularity": GROUPS},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_the_leaf_that_jumped_is_named(settings):
    """A jump of the small leaf, which the norm of the whole does not show."""
    granular = settings.get("granularity", granularity.leaf())
    settings = {"granularity": granular, "minimum_history": 4} | settings
    optimizer = skip_on_spike(optax.identity(), **settings)
    grads = leaf_batches(20)
    grads["b"]["c"][15] *= 10
    grads["a"][18] = np.nan
    if "limit" not in settings or not isinstance(settings["limit"], dict):
        grads["a"][17] *= 20  # both, the small one by more
        grads["b"]["c"][17] *= 60

    def step(state, grads):
        return optimizer.update(grads, state, PARAMS)[::-1]

    state, _ = jax.lax.scan(step, optimizer.init(PARAMS), jax.tree.map(np.array, grads))
    found = [step[1:] for step in skipped_steps(state, PARAMS, granularity=granular)]
    first, second = ("large", "small") if granular is GROUPS else ("a", "b/c")
    expected = [(15, None, second), (17, None, second), (18, None, first)]
    if isinstance(settings.get("limit"), dict):
        expected.pop(1)
    assert found == expected
    numbers = [each.block for each in skipped_steps(state, granularity=granular)]
    assert numbers == ["0" if block == first else "1" for *_, block in expected]
    # The norm of the whole shows only the others.
    whole = {"multiple": 4.0, "minimum_history": 4}
    optimizer = skip_on_spike(optax.identity(), **whole)
    state, _ = jax.lax.scan(step, optimizer.init(PARAMS), jax.tree.map(np.array, grads))
    alone = skipped_steps(state, PARAMS)
    assert [each.step for each in alone] == [step for step, *_ in expected[1:]]
    assert {each.block for each in alone} == {None}


def test_layers_of_a_stack_have_limits_of_their_own():
    params = {"blocks": jnp.ones((3, 2)), "out": jnp.ones(2)}
    layers = granularity.leaf({"blocks": 1})
    optimizer = skip_on_spike(optax.identity(), limit=5.0, granularity=layers)
    grads = params | {"blocks": jnp.array([[3.0, 4], [0, 5.1], [1, 1]])}
    _, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    (found,) = skipped_steps(state, params, granularity=layers)
    assert found == SkippedStep("skip_on_spike", 0, None, "blocks[1]")


def test_a_layer_that_was_frozen_may_start():
    """Zeros tell no level: they are in no mean, and its first norms are no spikes."""
    norms = np.concatenate([np.zeros(30), 1 + 0.1 * NOISE.random(30), [9.0]])
    for settings in ({"sigma": 6.0, "loss": False}, {"multiple": 3.0}):
        optimizer = skip_on_spike(
            optax.identity(), window=32, minimum_history=4, **settings
        )
        skipped, *_ = follow(optimizer, norms.astype("f"))
        assert np.flatnonzero(skipped).tolist() == [60]


def test_a_new_level_is_learnt_when_told():
    """Zeros in the memories make all statistics start again."""
    settings = {"multiple": 3.0, "sigma": 6.0, "loss": False}
    optimizer = skip_on_spike(optax.identity(), minimum_history=4, **settings)
    skipped, _, state = follow(optimizer, np.float32([1] * 6 + [10] * 3))
    assert np.flatnonzero(skipped).tolist() == [6, 7, 8]
    state = state._replace(
        accepted=jnp.zeros_like(state.accepted),
        limit_memory=jax.tree.map(jnp.zeros_like, state.limit_memory),
    )
    update = jax.jit(optimizer.update)
    for norm, is_spike in ((10.0, False),) * 4 + ((11.0, False), (31.0, True)):
        _, state = update(jnp.float32(norm), state)
        assert bool(state.is_spike) == is_spike


def test_the_latest_skipped_steps_and_their_batches():
    norms = np.ones(12, np.float32)
    norms[[2, 5, 7, 8, 11]] = 9
    ids = np.arange(100, 112)
    optimizer = skip_on_spike(optax.identity(), limit=5.0, record_size=3, name="mine")
    for dtype in (np.int32, np.uint8):
        _, states, state = follow(optimizer, norms, batch_id=ids.astype(dtype))
        expected = [SkippedStep("mine", step, 100 + step, None) for step in (7, 8, 11)]
        assert skipped_steps(state) == expected
    assert state.skip_record.skipped_rows.shape == (3, 3)
    early = jax.tree.map(lambda leaf: leaf[5], states)
    assert [each.step for each in skipped_steps(early)] == [2, 5]
    assert skipped_steps(optimizer.init(norms[0])) == []
    assert skipped_steps(optax.adam(0.1).init(norms[0])) == []
    with pytest.raises(ValueError, match=r"batch of shape \(12,\)"):
        skipped_steps(states)


def test_both_wrappers_record_and_the_inner_counts_what_it_sees():
    inner = skip_on_spike(optax.scale(1.0), limit=5.0)
    optimizer = clipjax.skip_nonfinite(inner, record_size=2)

    @jax.jit
    def step(grads, state, batch_id):
        return optimizer.update(grads, state, PARAMS, batch_id=batch_id)[1]

    state = optimizer.init(PARAMS)
    before = kinds(state)
    for batch_id, size in enumerate((1.0, jnp.nan, 7.0, 1.0, jnp.inf)):
        grads = {"a": jnp.ones(()), "b": {"c": jnp.float32(size)}}
        state = step(grads, state, batch_id)
    assert kinds(state) == before
    assert skipped_steps(state, PARAMS) == [
        SkippedStep("skip_nonfinite", 1, 1, "b/c"),
        SkippedStep("skip_nonfinite", 4, 4, "b/c"),
        SkippedStep("skip_on_spike", 1, 2, None),
    ]
    assert [each.block for each in skipped_steps(state)] == ["1", "1", None]
    with pytest.raises(ValueError, match="params has 1 blocks, and number 1"):
        skipped_steps(state, {"a": jnp.zeros(())})


def test_a_reader_with_another_granularity_is_refused():
    each = granularity.leaf()
    optimizer = skip_on_spike(optax.identity(), limit=0.0, granularity=GROUPS)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    _, state = jax.jit(optimizer.update)(ones, optimizer.init(PARAMS), PARAMS)
    for other in (each, granularity.whole()):
        with pytest.raises(ValueError, match=r"that of skip_on_spike, group\(large"):
            skipped_steps(state, PARAMS, granularity=other)
    leaves = skip_on_spike(optax.identity(), limit=0.0, granularity=each)
    with pytest.raises(ValueError, match="skip_names should be .*leaf.* and is .*grou"):
        leaves.update(ones, state, PARAMS)


@pytest.mark.parametrize(
    ("batch_id", "kind"),
    [(-1, ValueError), (2**31, ValueError), (np.int64(2**40), ValueError)]
    + [(1.0, TypeError), (True, TypeError), (np.arange(2), TypeError)],
)
def test_a_wrong_batch_id(batch_id, kind):
    optimizer = skip_on_spike(optax.identity(), limit=1.0)
    state = optimizer.init(1.0)
    with pytest.raises(kind, match="batch_id must be an integer from 0 to 2147483647"):
        jax.eval_shape(lambda: optimizer.update(1.0, state, batch_id=batch_id))


def test_wrong_limits():
    for settings, kind, message in (
        ({"sigma": -1.0}, ValueError, "sigma must be .* got -1.0"),
        ({"limit": -1.0}, ValueError, "limit must be .* got -1.0"),
        ({"limit": True}, TypeError, "limit must be .* got True"),
        ({"limit": {"a": 1.0}}, TypeError, "has a single block, got a table"),
        ({"multiple": "2"}, TypeError, "multiple must be .* got '2'"),
        ({"multiple": np.nan}, ValueError, "multiple must be .* got nan"),
        ({"granularity": "leaf"}, TypeError, "granularity must be a Granularity"),
        ({"record_size": 0}, ValueError, "record_size must be .* got 0"),
    ):
        with pytest.raises(kind, match=message):
            skip_on_spike(optax.identity(), **settings)
    with pytest.raises(ValueError, match="record_size must be .* got 0"):
        clipjax.skip_nonfinite(optax.identity(), record_size=0)


def test_on_a_mesh_all_devices_decide_and_record_alike():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    grads = {"r": jnp.arange(1.0, 5.0), "s": jnp.ones(8)}
    specs = {"r": PartitionSpec(), "s": PartitionSpec("x")}
    settings = {"multiple": 3.0, "limit": 1e3, "minimum_history": 2}
    settings |= {"sigma": 6.0, "loss": False, "granularity": granularity.leaf()}
    split = skip_on_spike(optax.identity(), axis_name="x", **settings)
    alone = skip_on_spike(optax.identity(), **settings)
    step = jax.jit(
        jax.shard_map(
            lambda g, state, batch: split.update(g, state, batch_id=batch),
            mesh=mesh,
            in_specs=(specs, PartitionSpec(), PartitionSpec()),
            out_specs=(specs, PartitionSpec()),
        )
    )
    spike = grads | {"s": grads["s"].at[5].set(30.0)}
    state, other = split.init(grads), alone.init(grads)
    whole = jax.jit(lambda g, state, batch: alone.update(g, state, batch_id=batch))
    for batch, each in enumerate((grads, grads, spike, grads)):
        _, state = step(each, state, batch)
        _, other = whole(each, other, batch)
        assert_close(state, other, rtol=1e-6)
    assert skipped_steps(state, grads) == [SkippedStep("skip_on_spike", 2, 2, "s")]
