"""A recorder keeps every number, and makes no step wait."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import clipjax
from clipjax.monitoring import History, Recorder

OPTIMIZER = optax.chain(clipjax.clip_by_global_norm(1.0), optax.sgd(0.1))
BY_LEAF = clipjax.clip_by_leaf_norm(1.0)
PARAMS = {"a": jnp.zeros(2), "b": {"c": jnp.zeros(2)}}
NORMS = np.array([0.5, 2.0, np.inf, 4.0, 0.25], np.float32)
RATIOS = np.array([1, 0.5, 1, 0.25, 1], np.float32)
SIZE = 1200


@functools.partial(jax.jit, donate_argnums=0)
def donating_step(carry, norm):
    """Gives the next state, and a running sum, which is donated as well."""
    state, total = carry
    _, state = OPTIMIZER.update({"w": norm[None]}, state)
    return state, total + norm


@jax.jit
def leaf_step(state, norms):
    grads = {"a": norms[:1] * jnp.array([0.0, 1.0]), "b": {"c": norms[1:]}}
    return BY_LEAF.update(grads, state)[1]


def leaf_state(*norms):
    params = {"a": jnp.zeros(2), "b": {"c": jnp.zeros(1)}}
    return leaf_step(BY_LEAF.init(params), jnp.array(norms))


class Batches:
    """A writer that keeps what it is handed."""

    def __init__(self):
        self.steps, self.is_closed = [], False

    def write(self, batch):
        self.steps.append(batch.steps.tolist())

    def close(self):
        self.is_closed = True


def test_numbers_survive_donation():
    recorder = Recorder(fetch_every=2)
    carry = (OPTIMIZER.init({"w": jnp.zeros(1)}), jnp.zeros(()))
    for norm in NORMS:
        donated, carry = carry, donating_step(carry, norm)
        info = donated[0][0].clip_info
        assert donated[1].is_deleted() and info.nonfinite_steps.is_deleted()
        recorder.record(carry[0], total=carry[1], rate=0.1)
    history = recorder.history
    np.testing.assert_array_equal(history.steps, np.arange(5))
    np.testing.assert_array_equal(history["clip/grad_norm_raw"], NORMS)
    np.testing.assert_array_equal(history["clip/clip_ratio"][:2], RATIOS[:2])
    np.testing.assert_array_equal(history["clip/nonfinite_count"], [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(history["total"], np.cumsum(NORMS))
    np.testing.assert_array_equal(history["rate"], np.full(5, 0.1))
    expected = {f"clip/{key}" for key in ("threshold", "over_clipping")}
    assert expected < set(history.keys)
    assert set(history.keys) == {*clipjax.metrics(carry[0]), "total", "rate"}


def test_record_does_not_wait():
    """Two slow steps are in flight, while a batch before them is fetched."""

    @jax.jit
    def slow(state, norms):
        matrix = jnp.full((SIZE, SIZE), 1 / SIZE) * norms[0]
        for _ in range(8):
            matrix = matrix @ matrix
        return leaf_step(state, norms + 0 * matrix[0, :2])

    recorder, states = Recorder(fetch_every=2), [leaf_state(0.5, 2.0)] * 2
    compiled = slow.lower(states[0], jnp.ones(2)).compile()
    for state in states:
        recorder.record(state, loss=state.clip_info.norm_after)
    for _ in range(2):
        states.append(compiled(states[-1], jnp.ones(2)))
        recorder.record(states[-1], loss=states[-1].clip_info.norm_after)
    assert not states[-1].clip_steps.is_ready()
    assert not states[-2].clip_steps.is_ready()
    np.testing.assert_array_equal(recorder.fetched.steps, [0, 1])
    expected = np.sqrt(np.float32([4.25, 4.25, 2, 2]))
    found = recorder.history["clip/grad_norm_raw"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_one_fetch_per_batch_and_flat_memory(monkeypatch):
    fetches = []
    device_get = jax.device_get
    counted = lambda tree: fetches.append(1) or device_get(tree)  # noqa: E731
    monkeypatch.setattr(jax, "device_get", counted)
    state, recorder = leaf_state(1.0, 2.0), Recorder(fetch_every=100)
    held = []
    for _ in range(100):
        for _ in range(100):
            recorder.record(state)
        held.append(sum(array.nbytes for array in jax.live_arrays()))
    assert len(fetches) == 99
    assert max(held[2:]) <= held[1]
    assert len(recorder.history) == 10_000
    assert len(fetches) == 100


def test_counts_are_exact():
    state = leaf_state(1.0, 2.0)
    many = jnp.int32(2**24 + 1)
    info = state.clip_info._replace(nonfinite_steps=many)
    recorder = Recorder()
    recorder.record(state._replace(clip_info=info), batches=many)
    for key in ("clip/nonfinite_count", "batches"):
        assert int(recorder.history[key][0]) == 2**24 + 1


def test_batches_logs_and_close():
    lines, writer = [], Batches()
    options = {"log_every": 3, "log": lines.append, "writers": [writer]}
    with pytest.raises(KeyboardInterrupt), Recorder(fetch_every=2, **options) as found:
        for loss in range(7):
            found.record((), loss=loss)
        raise KeyboardInterrupt
    assert writer.steps == [[0, 1], [2, 3], [4, 5, 6]]
    assert writer.is_closed
    assert lines == ["step 2 | no clip", "step 5 | no clip"]


def test_steps_that_run_again_replace_the_lost():
    before = History({"step": [0, 1, 2, 3], "loss": [9.0, 8.0, 7.0, 6.0]})
    recorder = Recorder(history=before)
    recorder.record((), loss=5.0)
    recorder.record((), step=np.int64(3), loss=5.5)
    recorder.record((), loss=5.25)
    np.testing.assert_array_equal(recorder.history.steps, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(recorder.history["loss"], [9, 8, 7, 5.5, 5.25])


def test_blocks():
    states = [leaf_state(3.0, 2.0), leaf_state(0.5, jnp.inf), leaf_state(4.0, 5.0)]
    columns = {"a": [3, 0.5, 4], "b/c": [2, np.inf, 5]}
    missing = np.nan
    for blocks, expected in (
        (False, {}),
        (True, columns),
        (1, {"a": [3, missing, missing], "b/c": [missing, np.inf, 5]}),
        (2, columns),
        ("b", {"b/c": columns["b/c"]}),
        ("*", columns),
    ):
        recorder = Recorder(PARAMS, blocks=blocks)
        for state in states:
            recorder.record(state)
        history, prefix = recorder.history, "clip/grad_norm_raw/"
        found = {
            key.removeprefix(prefix): history[key].tolist()
            for key in history.keys
            if key.startswith(prefix)
        }
        assert str(found) == str({k: list(map(float, expected[k])) for k in expected})
        for block in expected:
            ratio = history[f"clip/clip_ratio/{block}"]
            shown = np.isfinite(history[prefix + block])
            clipped = np.minimum(1, 1 / history[prefix + block])
            np.testing.assert_allclose(ratio[shown], clipped[shown], rtol=1e-6)
        assert (history["clip/threshold"] == 1).all()


def test_names_of_blocks():
    state = leaf_state(3.0, 2.0)
    named = Recorder(blocks=True, block_names={"clip": ["x", "y"]})
    numbered = Recorder(blocks=True)
    for recorder, names in ((named, "xy"), (numbered, "01")):
        recorder.record(state)
        for name in names:
            assert f"clip/threshold/{name}" in recorder.history


def test_inside_scan():
    recorder = Recorder(fetch_every=4)

    @jax.jit
    def chunk(state, norms):
        def body(state, norm):
            _, state = OPTIMIZER.update({"w": norm[None]}, state)
            return state, clipjax.metrics(state, blocks=False) | {"loss": 2 * norm}

        return jax.lax.scan(body, state, norms)

    state = OPTIMIZER.init({"w": jnp.zeros(1)})
    for _ in range(2):
        state, stacked = chunk(state, NORMS)
        recorder.extend(stacked)
    np.testing.assert_array_equal(recorder.fetched["loss"], 2 * NORMS)
    history = recorder.history
    np.testing.assert_array_equal(history.steps, np.arange(10))
    np.testing.assert_array_equal(history["clip/grad_norm_raw"], np.tile(NORMS, 2))
    np.testing.assert_array_equal(history["clip/nonfinite_count"][[1, 2, 9]], [0, 1, 2])
    recorder.extend({"loss": [1.0, 2.0]}, first_step=8)
    np.testing.assert_array_equal(recorder.history["loss"][7:], [np.inf, 1, 2])


def test_objects_with_a_state():
    grads = {"w": jnp.array([3.0, 4.0])}
    params = jax.tree.map(jnp.zeros_like, grads)
    states = []

    model = nnx.Param(params["w"])
    optimizer = nnx.Optimizer({"w": model}, BY_LEAF, wrt=nnx.Param)
    optimizer.update({"w": model}, {"w": nnx.Param(grads["w"])})
    states.append(optimizer)

    state = TrainState.create(apply_fn=None, params=params, tx=BY_LEAF)
    states.append(state.apply_gradients(grads=grads))

    linear = eqx.nn.Linear(2, 1, use_bias=False, key=jax.random.key(0))
    array_grads = eqx.tree_at(lambda m: m.weight, linear, grads["w"][None])
    init = BY_LEAF.init(eqx.filter(linear, eqx.is_array))
    states.append(BY_LEAF.update(array_grads, init)[1])

    for state in states:
        recorder = Recorder(blocks=True)
        recorder.record(state)
        assert recorder.history["clip/grad_norm_raw"] == 5
        name = "w" if isinstance(state, TrainState) else "0"
        assert recorder.history[f"clip/grad_norm_raw/{name}"] == 5


def test_states_of_two_optimizers():
    """And scalars that only some steps have."""
    recorder, whole = Recorder(), OPTIMIZER.init({"w": jnp.zeros(1)})
    recorder.record(leaf_state(3.0, 4.0))
    recorder.record((whole, leaf_state(6.0, 8.0)), accuracy=0.5)
    recorder.record(leaf_state(0.3, 0.4), accuracy=jnp.float32(0.75))
    history, missing = recorder.history, np.nan
    np.testing.assert_allclose(history["clip/grad_norm_raw"], [5, 0, 0.5])
    np.testing.assert_array_equal(
        history["clip_2/grad_norm_raw"], [missing, 10, missing]
    )
    np.testing.assert_array_equal(history["accuracy"], [missing, 0.5, 0.75])


def test_skips_are_recorded():
    wrapper = clipjax.skip_nonfinite(OPTIMIZER)
    state = wrapper.init({"w": jnp.zeros(1)})
    recorder = Recorder()
    recorder.record(wrapper.update({"w": jnp.array([jnp.nan])}, state)[1])
    history = recorder.history
    assert history["skip_nonfinite/skipped_count"] == 1
    assert history["skip_nonfinite/alarm"] == 0
    assert "clip/threshold" in history


def test_wrong_arguments():
    state = leaf_state(1.0, 2.0)
    recorder = Recorder(PARAMS)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    for error, message, arguments, scalars in (
        (TypeError, "opt_state must be", (None,), {}),
        (TypeError, "step must be a Python integer, got an", (state, jnp.int32(1)), {}),
        (TypeError, "step must be an integer of at least 0, got 1.0", (state, 1.0), {}),
        (ValueError, "step must be an integer of at least 0, got -1", (state, -1), {}),
        (ValueError, r"shape \(\), got \(2,\)", (state,), {"loss": jnp.zeros(2)}),
        (TypeError, "loss must be real", (state,), {"loss": jnp.complex64(1)}),
        (TypeError, "loss must be a real number", (state,), {"loss": "low"}),
        (ValueError, "holds no clip", ((),), {}),
        (ValueError, r"is a batch of shape \(2,\)", (batch,), {}),
    ):
        with pytest.raises(error, match=message):
            recorder.record(*arguments, **scalars)
    with pytest.raises(TypeError, match="outside of jit"):
        jax.eval_shape(recorder.record, state)
    with pytest.raises(ValueError, match="matches no block; the blocks are a, b/c"):
        Recorder(PARAMS, blocks="layers/*").record(state)
    with pytest.raises(ValueError, match="no block; the blocks are none"):
        Recorder(PARAMS, blocks="*").record(OPTIMIZER.init(PARAMS))
    for stacked in ({}, {"a": jnp.zeros(())}, {"a": np.zeros(2), "b": np.zeros(3)}):
        with pytest.raises(ValueError, match=r"stacked must have|\(steps,\)"):
            recorder.extend(stacked)
    for options in ({"blocks": 1.0}, {"fetch_every": None}, {"log_every": True}):
        with pytest.raises(TypeError, match=f"{next(iter(options))} must be"):
            Recorder(**options)
    assert len(recorder.history) == 0
