"""What the noise takes, refuses, and how it fits into Optax's chains."""

import functools
import math

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import assert_close, assert_same_bits, eps, kinds

import clipjax
from clipjax import privacy

KEY = jax.random.key(0)
KEYS = {"one": jax.random.key(1), "two": jax.random.key(2)}
UNIT = privacy.gaussian_noise(1.0, 1.0, KEY)
SUMS = {"a": jnp.ones(3), "b": jnp.full((2, 2), 2.0)}


def noisy(sums, params=None, **settings):
    """Takes the first step."""
    settings = {"sensitivity": 1.0, "noise_multiplier": 1.0, "key": KEY} | settings
    rule = privacy.gaussian_noise(**settings)
    return rule.update(sums, rule.init(params), params)[0]


# Leaves


def test_dtypes():
    size = 5000
    sums = {"real": np.zeros(size, "f4"), "complex": np.zeros(size, "c8")}
    updates = noisy(sums, sensitivity=2.0)
    assert kinds(updates) == kinds(jax.tree.map(jnp.asarray, sums))
    parts = [updates["real"], updates["complex"].real, updates["complex"].imag]
    bound = 5 * math.sqrt(2 / size)
    for part in map(np.asarray, parts):
        assert abs(np.mean(part**2) / 4 - 1) < bound
    assert abs(np.mean(np.asarray(parts[1]) * parts[2])) / 4 < 5 / math.sqrt(size)
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn):
        with pytest.raises(TypeError, match=f"x has dtype {jnp.dtype(dtype)}: the sum"):
            noisy({"x": jnp.zeros(3, dtype)})
    with pytest.raises(TypeError, match="the update has dtype bfloat16.*dtype=jnp.fl"):
        noisy(jnp.zeros(3, jnp.bfloat16))


def test_narrow_parameters_get_updates_of_their_dtype():
    params = {"a": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros((2, 2))}
    updates = noisy(SUMS, params)
    wide = noisy(SUMS)
    expected = {"a": wide["a"].astype(jnp.bfloat16), "b": wide["b"]}
    assert_same_bits(updates, expected)


def test_other_leaves_pass():
    others = {
        "integer": jnp.arange(3),
        "flag": jnp.array(True),
        "float0": np.zeros(2, jax.dtypes.float0),
        "key": jax.random.key(7),
        "none": None,
    }
    updates = noisy(others | {"real": jnp.zeros(2)})
    for name, leaf in others.items():
        assert updates[name] is leaf
    assert np.all(updates["real"] != 0)


def test_nothing_to_add_to():
    assert noisy({}) == {}
    assert noisy({"a": jnp.zeros((0, 3))})["a"].shape == (0, 3)
    assert noisy(jnp.zeros(())).shape == ()
    updates = noisy({"empty": jnp.zeros(0), "full": jnp.zeros(2)})
    assert np.all(updates["full"] != 0)


def test_a_sparse_leaf_is_refused():
    from jax.experimental.sparse import BCOO

    with pytest.raises(TypeError, match="x is a BCOO"):
        noisy({"x": BCOO.fromdense(jnp.eye(2))})


# Edge cases


def test_a_batch_without_examples_is_noise_only():
    grad = clipjax.clipped_grad(
        lambda w, x: jnp.sum(x @ w), l2_clip_norm=3.0, normalize_by=4.0
    )
    w, batch = jnp.zeros(3), jnp.ones((4, 3))
    clipped = jax.jit(lambda padding: grad(w, batch, is_padding_example=padding))
    found = {
        padding: noisy(clipped(np.full(4, padding)), sensitivity=grad.sensitivity())
        for padding in (True, False)
    }
    alone = noisy(jnp.zeros(3), sensitivity=3 / 4)
    assert_same_bits(found[True], alone)
    # Of norm √3 each, and so not clipped.
    assert_close(found[False], alone + 1, rtol=1e-3)


@pytest.mark.parametrize("zero", ["sensitivity", "noise_multiplier"])
def test_no_noise(zero):
    assert_same_bits(noisy(SUMS, **{zero: 0}), SUMS)


def test_after_the_planned_steps_nothing_is_released():
    settings = {"sensitivity": 1.0, "noise_multiplier": 1.0, "key": KEY, "steps": 2}
    rule = privacy.gaussian_noise(**settings)
    step, state = jax.jit(rule.update), rule.init(SUMS)
    for number in range(4):
        updates, state = step(SUMS, state)
        zero = [not np.any(leaf) for leaf in updates.values()]
        assert zero == [number >= 2] * 2
    assert int(state.noise_steps) == 4
    # NaN, which zeros times a flag would keep.
    updates, _ = step({"a": jnp.full(3, jnp.nan), "b": SUMS["b"]}, state)
    assert not np.any(updates["a"])


def test_after_the_planned_steps_memories_go_on():
    settings = {"sensitivity": 1.0, "noise_multiplier": 1.0, "key": KEY, "steps": 2}
    params = {"w": jnp.zeros(3)}
    optimizers = {
        "momentum": privacy.dp_sgd(0.1, momentum=0.9, **settings),
        "adam": privacy.dp_adam(0.1, **settings),
        "adamw": privacy.dp_adam(0.1, weight_decay=0.1, **settings),
    }
    for name, optimizer in optimizers.items():
        state = optimizer.init(params)
        with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes
            for size in (1.0, 1.0, 1e9, -1e9):
                sums = {"w": jnp.full(3, size)}
                before, (updates, state) = (
                    state,
                    optimizer.update(sums, state, params),
                )
        if name == "momentum":
            expected = -0.1 * 0.9 * before[1][0].trace["w"]
            assert_close(updates["w"], expected, rtol=4 * eps("f4"))
        # The sums of 1e9 are seen nowhere.
        assert 0 < np.abs(updates["w"]).max() < 1


def test_laplace_noise_is_refused():
    with pytest.raises(ValueError, match="L1 sensitivity.*use privacy.gaussian_noise"):
        privacy.laplace_noise(1.0, 1.0, key=KEY)


# Wrong arguments

WRONG = [
    ({"sensitivity": -1.0}, ValueError, "sensitivity must be a number of at least 0"),
    ({"sensitivity": math.inf}, ValueError, "sensitivity .*finite, got inf"),
    ({"sensitivity": math.nan}, ValueError, "sensitivity .*got nan"),
    ({"sensitivity": "1"}, TypeError, "sensitivity .*got '1'"),
    ({"sensitivity": np.ones(3)}, ValueError, r"sensitivity must be a single .*\(3,\)"),
    ({"sensitivity": jnp.array(True)}, TypeError, "sensitivity .*got dtype bool"),
    ({"noise_multiplier": -0.1}, ValueError, "noise_multiplier .*got -0.1"),
    ({"noise_multiplier": True}, TypeError, "noise_multiplier .*got True"),
    ({"noise_multiplier": None}, TypeError, "noise_multiplier .*got None"),
    ({"noise_multiplier": optax.constant_schedule(1.0)}, TypeError, "got <function"),
    ({"noise_multiplier": jnp.ones(2)}, ValueError, "noise_multiplier must be a sing"),
    ({"noise_multiplier": jnp.bfloat16(1)}, TypeError, "32 bits wide, got bfloat16"),
    ({"noise_multiplier": 1e-39}, ValueError, "1e-39 is out of the range of float32"),
    ({"noise_multiplier": 1e39}, ValueError, "1e.39 is out of the range of float32"),
    (
        {"noise_multiplier": 1e-200, "sensitivity": 1e-200},
        ValueError,
        "0 is out of the range of float32, so that the noise would be lost",
    ),
    ({"key": 0}, TypeError, "key must be a key such as jax.random.key.0., got 0: a se"),
    ({"key": None}, TypeError, "key must be a key"),
    ({"key": jnp.zeros(2)}, TypeError, r"key must be .*got float32 of shape \(2,\)"),
    ({"key": jnp.zeros(3, jnp.uint32)}, TypeError, r"got uint32 of shape \(3,\)"),
    ({"key": jax.random.split(KEY)}, ValueError, r"a single key.*shape \(2,\)"),
    ({"key": jax.random.key(0, impl="unsafe_rbg")}, ValueError, "got unsafe_rbg"),
    ({"steps": 0}, ValueError, "steps must be an integer of at least 1, got 0"),
    ({"steps": 2.0}, TypeError, "steps must be an integer of at least 1, got 2.0"),
    ({"steps": True}, TypeError, "steps must be"),
    ({"axis_name": 3}, TypeError, "axis_name must be the name of a mesh axis"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
def test_wrong_arguments(wrong, error, message):
    settings = {"sensitivity": 1.0, "noise_multiplier": 1.0, "key": KEY} | wrong
    makers = [privacy.gaussian_noise]
    makers += [
        lambda optimizer=optimizer, **settings: optimizer(0.1, **settings)
        for optimizer in (privacy.dp_sgd, privacy.dp_adam)
    ]
    for make in makers:
        with pytest.raises(error, match=message):
            make(**settings)


def test_a_state_of_something_else_is_refused():
    own = UNIT.init(SUMS)
    for state, message in [
        (None, "has a memory, .*got None"),
        ((), "has a memory"),
        (
            own._asdict(),
            "expected a NoiseState, got a dictionary with the key",
        ),
        (tuple(own), "got a tuple of 2"),
        (optax.scale_by_adam().init(SUMS), "got a ScaleByAdamState"),
        (SUMS, "got a dictionary"),  # in the place of the updates
    ]:
        for update in (UNIT.update, jax.jit(UNIT.update)):
            with pytest.raises(ValueError, match=f"gaussian_noise.*{message}"):
                update(own if state is SUMS else SUMS, state)


def test_parameters_of_another_tree_are_refused():
    with pytest.raises(ValueError, match="params have no leaf b"):
        noisy(SUMS, {"a": jnp.zeros(3)})


# Tools


def test_a_scan_of_updates_equals_a_loop_and_the_state_can_be_donated():
    state, expected = UNIT.init(SUMS), []
    step = jax.jit(UNIT.update, donate_argnums=1)
    for _ in range(3):
        updates, new = step(SUMS, state)
        assert state.noise_key.is_deleted()
        assert kinds(new) == kinds(UNIT.init(SUMS))
        state = new
        expected.append(updates)
    # Donating one state leaves the key to the next.
    again, _ = step(SUMS, UNIT.init(SUMS))
    assert_same_bits(again, expected[0])

    def body(state, _):
        updates, state = UNIT.update(SUMS, state)
        return state, updates

    last, many = jax.jit(lambda s: jax.lax.scan(body, s, length=3))(UNIT.init(SUMS))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected)
    assert_close(many, stacked, rtol=8 * eps("f4"), atol=eps("f4"))
    assert_same_bits(last, state)


def test_optax_reaches_into_the_state():
    optimizer = privacy.dp_adam(0.1, sensitivity=1.0, noise_multiplier=1.0, key=KEY)
    state = optimizer.init(SUMS)
    assert int(optax.tree.get(state, "noise_steps")) == 0
    assert optax.tree.get(state, "count") is state[1][0].count
    edited = optax.tree.set(state, noise_steps=jnp.int32(5))
    assert int(edited[0].noise_steps) == 5
    marked = optax.tree_map_params(
        optimizer,
        lambda leaf: np.full(np.shape(leaf), 7),
        state,
        transform_non_params=lambda leaf: np.full(np.shape(leaf), 8),
    )
    assert all(np.all(leaf == 8) for leaf in jax.tree.leaves(marked[0]))
    assert np.all(marked[1][0].mu["a"] == 7)


def test_inject_hyperparams():
    settings = {"sensitivity": 1.0, "key": KEY, "steps": 3}
    optimizer = optax.inject_hyperparams(
        privacy.gaussian_noise, static_args=("key", "steps")
    )(noise_multiplier=lambda count: 2 - count.astype("f4"), **settings)
    state = optimizer.init(SUMS)
    step = jax.jit(optimizer.update)
    plain, other = UNIT.init(SUMS), jax.tree.map(jnp.zeros_like, SUMS)
    for expected in (2.0, 1.0, 0.0):
        updates, state = step(other, state)
        unit, plain = UNIT.update(other, plain)
        unit = jax.tree.map(lambda leaf, e=expected: leaf * np.float32(e), unit)
        assert_close(updates, unit, rtol=8 * eps("f4"))
    with pytest.raises(TypeError, match="inject_hyperparams, name it in static_args"):
        optax.inject_hyperparams(privacy.gaussian_noise, static_args=("key",))(
            noise_multiplier=1.0, **settings
        ).init(SUMS)


def test_inject_hyperparams_of_narrow_parameters():
    """Optax rounds to their dtype, in which 1e-8 is 0: there would be no noise."""
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float16), SUMS)
    inject = functools.partial(
        optax.inject_hyperparams, privacy.gaussian_noise, static_args=("key", "steps")
    )
    settings = {"sensitivity": 1e-8, "noise_multiplier": 1.0, "key": KEY}
    with pytest.raises(TypeError, match="sensitivity must .*hyperparam_dtype=jnp.floa"):
        inject()(**settings).init(narrow)
    wide = inject(hyperparam_dtype=jnp.float32)(**settings)
    zeros = jax.tree.map(jnp.zeros_like, SUMS)
    updates, _ = wide.update(zeros, wide.init(narrow))
    assert all(np.any(leaf) for leaf in updates.values())


def test_in_parts_of_a_tree():
    """A mask would release the rest without noise; noise before a mask is allowed."""
    groups = {"a": "one", "b": "two"}
    for inside in (
        optax.masked(UNIT, {"a": True, "b": False}),
        optax.partition({"one": UNIT, "two": UNIT}, groups),
        privacy.virtual_batches(optax.masked(UNIT, {"a": False, "b": True})),
    ):
        with pytest.raises(ValueError, match=r"Put it first: optax.chain"):
            inside.update(SUMS, inside.init(SUMS), SUMS, is_last=True)
    rest = optax.partition({"one": optax.sgd(1.0), "two": optax.set_to_zero()}, groups)
    optimizer = optax.chain(UNIT, rest)
    updates, _ = optimizer.update(SUMS, optimizer.init(SUMS), SUMS)
    noisy, _ = UNIT.update(SUMS, UNIT.init(SUMS))
    assert_same_bits(updates["a"], -noisy["a"])
    assert not np.any(updates["b"])


def test_parts_of_a_tree_with_one_key_get_noise_of_their_own():
    """Else the difference of two leaves would be released without noise."""
    zeros = jnp.zeros(500)
    parts = {"a": zeros, "b": None}, {"a": None, "b": zeros}
    one, two = (UNIT.update(part, UNIT.init(part))[0] for part in parts)
    assert abs(np.corrcoef(one["a"], two["b"])[0, 1]) < 5 / 500**0.5


def test_micro_steps_take_one_noise():
    steps = optax.MultiSteps(UNIT, every_k_schedule=2)
    state = steps.init(SUMS)
    with jax.numpy_dtype_promotion("standard"):  # Optax itself mixes dtypes here
        for _ in range(2):
            updates, state = steps.update(SUMS, state, SUMS)
    assert int(optax.tree.get(state, "noise_steps")) == 1
    assert_close(updates, noisy(SUMS), rtol=4 * eps("f4"), atol=eps("f4"))


def test_a_discarded_step_keeps_its_noise():
    rule = clipjax.skip_nonfinite(UNIT)
    state = rule.init(SUMS)
    updates, state = rule.update({"a": jnp.full(3, jnp.nan), "b": SUMS["b"]}, state)
    assert not any(np.any(leaf) for leaf in updates.values())
    updates, state = rule.update(SUMS, state)
    assert_same_bits(updates, noisy(SUMS))


def test_nnx_optimizer():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model,
        privacy.dp_sgd(1.0, sensitivity=1.0, noise_multiplier=1.0, key=KEY),
        wrt=nnx.Param,
    )
    before = jax.tree.map(jnp.array, nnx.state(model, nnx.Param))
    sums = jax.tree.map(jnp.zeros_like, before)
    optimizer.update(model, sums)
    moved = jax.tree.map(
        lambda new, old: old - new, nnx.state(model, nnx.Param), before
    )
    assert_close(moved, noisy(sums), rtol=1e-5, atol=1e-6)


def test_debuggers_find_nothing():
    from jax.experimental import checkify

    with jax.debug_nans(True):
        UNIT.update(SUMS, UNIT.init(SUMS))
    checked = checkify.checkify(UNIT.update, checkify.float_checks)
    error, _ = jax.jit(checked)(SUMS, UNIT.init(SUMS))
    assert error.get() is None


def test_an_exported_step_runs():
    exported = jax.export.export(jax.jit(UNIT.update))(SUMS, UNIT.init(SUMS))
    updates, _ = exported.call(SUMS, UNIT.init(SUMS))
    assert_close(updates, noisy(SUMS), rtol=4 * eps("f4"), atol=eps("f4"))
