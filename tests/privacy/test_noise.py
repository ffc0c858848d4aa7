"""The law of the noise, and that none of it is used twice."""

import io
import math
import pickle

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from catalogue import about
from oracle import assert_close, assert_same_bits, eps

from clipjax import privacy

KEY = jax.random.key(0)
SHAPES = {"bias": (500,), "kernel": (200, 100)}
ZEROS = {name: np.zeros(shape, "f4") for name, shape in SHAPES.items()}
# An estimate falls beyond five of its standard deviations once in 1.7 million.
FAR = 5.0


@jax.jit
def updated(sums, state, deviations):
    """Takes one compiled step; its key is that of the state."""
    return privacy.gaussian_noise(*deviations, KEY).update(sums, state)


def state_of(key=KEY, step=0):
    state = privacy.gaussian_noise(1.0, 1.0, key).init(None)
    return state._replace(noise_steps=jnp.int32(step))


def noise(key=KEY, step=0, sensitivity=1.0, noise_multiplier=1.0):
    """Gives the noise of one step."""
    deviations = (jnp.float32(sensitivity), jnp.float32(noise_multiplier))
    return updated(ZEROS, state_of(key, step), deviations)[0]


def entries(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_the_law_is_normal():
    drawn = np.concatenate([entries(noise(step=step)) for step in range(12)])
    drawn = drawn.astype("f8")
    count = drawn.size
    # Moments, each with the variance of its estimate under the normal law.
    for power, expected, variance in [
        (1, 0, 1),
        (2, 1, 2),
        (3, 0, 15),
        (4, 3, 96),
        (6, 15, 10395 - 225),
    ]:
        off = abs(np.mean(drawn**power) - expected)
        assert off < FAR * math.sqrt(variance / count), power
    for border in (0.5, 1, 2, 3, 4):
        for side in (drawn, -drawn):
            share = math.erfc(border / math.sqrt(2)) / 2
            off = abs(np.mean(side > border) - share)
            assert off < FAR * math.sqrt(share * (1 - share) / count), border
    # The largest distance of distribution functions, by Kolmogorov's law: beyond 2.6
    # once in 370,000.
    normal = np.vectorize(math.erf)(np.sort(drawn)[::10] / math.sqrt(2)) / 2 + 0.5
    distance = np.abs(normal - np.arange(0, count, 10) / count).max()
    assert distance < 2.6 / math.sqrt(count) + 1 / count
    # Float32 uniform numbers end the tails there.
    assert np.abs(drawn).max() < 5.5


def test_its_deviation_is_sensitivity_times_multiplier():
    unit = noise()
    for sensitivity, noise_multiplier in [(0.01, 1.3), (3.0, 0.5), (1e-6, 1e4)]:
        deviation = sensitivity * noise_multiplier
        expected = jax.tree.map(lambda leaf, d=deviation: leaf * np.float32(d), unit)
        found = {"traced": noise(KEY, 0, sensitivity, noise_multiplier)}
        for kind, cast in {
            "number": float,
            "NumPy": np.float64,
            "0-d NumPy": np.array,
            "array": jnp.float32,
        }.items():
            # An array beside a number, too.
            rule = privacy.gaussian_noise(cast(sensitivity), noise_multiplier, KEY)
            found[kind] = rule.update(ZEROS, rule.init(ZEROS))[0]
        for kind, drawn in found.items():
            with about(kind):
                assert_close(drawn, expected, rtol=4 * eps("f4"))
    integers = privacy.gaussian_noise(jnp.int32(3), jnp.float32(0.5), KEY)
    drawn, _ = integers.update(ZEROS, integers.init(ZEROS))
    assert_close(drawn, jax.tree.map(lambda leaf: leaf * np.float32(1.5), unit))


def streams():
    """Gives numbers that should have nothing to do with each other, 500 of each."""
    found = {}
    for seed in range(3):
        key = jax.random.key(seed)
        for step in (0, 1, 2, 3, 2**16, 2**31 - 2):
            for name, leaf in noise(key, step).items():
                found[seed, step, name] = leaf.reshape(-1)[:500]
                found[seed, step, name, "end"] = leaf.reshape(-1)[-500:]
                if name == "bias":  # of which that would be the same
                    del found[seed, step, name, "end"]
        # The same key in other hands.
        others = [key, *jax.random.split(key, 3)]
        # Of split, the first three are what fold_in gives for 0, 1 and 2.
        others += [jax.random.fold_in(key, i) for i in (3, 0x6E6F6973)]
        for position, other in enumerate(others):
            found[seed, "other", position] = jax.random.normal(other, 500)
    return found


def test_nothing_is_correlated():
    found = streams()
    drawn = np.stack(list(found.values())).astype("f8")
    correlations = np.corrcoef(drawn) * math.sqrt(500)
    np.fill_diagonal(correlations, 0)
    # 2,556 pairs: one in 36 billion is beyond 6.5, so that all are within once in 1e7.
    assert len(found) == 72
    assert np.abs(correlations).max() < 6.5
    # Nor are neighbours within a leaf.
    kernel = np.asarray(noise()["kernel"], "f8")
    for one, other in [(kernel[1:], kernel[:-1]), (kernel[:, 1:], kernel[:, :-1])]:
        assert abs(np.mean(one * other)) < FAR / math.sqrt(one.size)


def test_it_depends_on_key_step_position_and_name_only():
    generator = np.random.default_rng(0)
    sums = jax.tree.map(
        lambda leaf: generator.normal(size=leaf.shape).astype("f4"), ZEROS
    )
    unit = (jnp.float32(1), jnp.float32(1))
    updates, state = updated(sums, state_of(step=7), unit)
    expected = jax.tree.map(lambda leaf, z: leaf + np.asarray(z), sums, noise(step=7))
    assert_close(updates, expected, rtol=eps("f4"), atol=eps("f4"))
    assert int(state.noise_steps) == 8
    # The same first leaf in other company: shapes, leaves that are no gradient.
    rule = privacy.gaussian_noise(1.0, 1.0, KEY)
    one, _ = rule.update({"a": np.zeros(5, "f4"), "b": np.zeros(3, "f4")}, state_of())
    other, _ = rule.update(
        {"0": jnp.arange(4), "a": np.zeros(5, "f4"), "d": np.zeros((2, 2), "f4")},
        state_of(),
    )
    assert_same_bits(one["a"], other["a"])


# Restarts


def stored_by_orbax(state, folder):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", jax.eval_shape(lambda: state))


def stored_as_arrays(state, _):
    file = io.BytesIO()
    np.savez(file, *jax.tree.leaves(state))
    file.seek(0)
    return jax.tree.unflatten(jax.tree.structure(state), np.load(file).values())


STORES = {
    "pickle": lambda state, _: pickle.loads(pickle.dumps(state)),
    "msgpack": lambda state, _: flax.serialization.from_bytes(
        state, flax.serialization.to_bytes(state)
    ),
    "orbax": stored_by_orbax,
    "numpy": stored_as_arrays,
}


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    optimizer = privacy.dp_sgd(
        0.1, sensitivity=0.5, noise_multiplier=2.0, key=KEY, momentum=0.9
    )
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    sums = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    step = jax.jit(optimizer.update)
    state, expected, states = optimizer.init(params), [], []
    for _ in range(20):
        states.append(state)
        updates, state = step(sums, state, params)
        expected.append(updates)
    for name, stored in STORES.items():
        # As a new process does: another optimizer, whose own state is not used.
        state = stored(states[3], tmp_path)
        for number in range(3, 6):
            updates, state = step(sums, state, params)
            with about(name):
                assert_same_bits(updates, expected[number])
            state = stored(state, tmp_path / f"{number}")


def test_no_noise_is_used_twice_over_restarts():
    rule = privacy.gaussian_noise(1.0, 1.0, KEY)
    state, seen = rule.init(None), []
    unit = (jnp.float32(1), jnp.float32(1))
    for number in range(20):
        if number in (4, 9, 15):
            state = pickle.loads(pickle.dumps(state))
        updates, state = updated(ZEROS, state, unit)
        seen.append(entries(updates)[:1000])
    drawn = np.stack(seen)
    # Of 20,000 float32 numbers some are alike by chance; no two steps share many.
    for number, row in enumerate(drawn):
        others = np.delete(drawn, number, axis=0)
        assert np.mean(np.isin(row, others)) < 0.1
    assert int(state.noise_steps) == 20
    # Nor where the count ends, and would stand still.
    last, end = (entries(noise(step=2**31 - i)) for i in (2, 1))
    assert np.any(last) and not np.any(end)


# Generators


def test_words_of_an_old_key_are_a_key():
    old = jax.random.PRNGKey(3)
    assert_same_bits(noise(old), noise(jax.random.key(3)))


def test_another_generator():
    key = jax.random.key(1, impl="rbg")
    rule = privacy.gaussian_noise(1.0, 2.0, key)
    step = jax.jit(rule.update)
    state = rule.init(None)
    assert state.noise_key.shape == (4,)
    first, state = step(ZEROS, state)
    second, _ = step(ZEROS, state)
    for drawn in (entries(first), entries(second)):
        count = drawn.size
        assert abs(np.mean(drawn)) < FAR * 2 / math.sqrt(count)
        assert abs(np.mean(drawn**2) - 4) < FAR * 4 * math.sqrt(2 / count)
    product = np.mean(entries(first).astype("f8") * entries(second)) / 4
    assert abs(product) < FAR / math.sqrt(count)
    # A checkpoint of another generator is refused.
    with pytest.raises(ValueError, match="noise_key should have shape"):
        rule.update(ZEROS, state_of())


def test_a_traced_key_and_several_seeds():
    sums = {"a": jnp.zeros(6)}

    def run(key):
        rule = privacy.gaussian_noise(1.0, 1.0, key)
        updates, state = rule.update(sums, rule.init(sums))
        return rule.update(updates, state)

    keys = jax.random.split(KEY, 3)
    many, states = jax.jit(jax.vmap(run))(keys)
    assert states.noise_key.shape == (3, 2)
    for number in range(3):
        one, state = run(keys[number])
        assert_close(many["a"][number], one["a"], rtol=4 * eps("f4"))
        assert_same_bits(states.noise_key[number], state.noise_key)
    assert len(np.unique(many["a"])) == 18


def test_double_precision():
    with jax.enable_x64(True):
        rule = privacy.gaussian_noise(3.0, 0.5, jax.random.key(0))
        sums = {"a": np.zeros(4000), "b": np.zeros(4000, "f4")}
        updates, _ = rule.update(sums, rule.init(None))
        assert updates["a"].dtype == "f8" and updates["b"].dtype == "f4"
        for leaf in map(np.asarray, updates.values()):
            assert abs(np.mean(leaf**2) / 1.5**2 - 1) < FAR * math.sqrt(2 / 4000)
        # Not float32 numbers that were cast.
        wide = np.asarray(updates["a"])
        assert np.all(wide != wide.astype("f4"))
        assert optax.tree.get(rule.init(None), "noise_steps").dtype == "i4"
