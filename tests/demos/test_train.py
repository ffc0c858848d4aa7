"""The compiled loop does what a plain loop of steps does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import clipjax
from clipjax.demos import train
from clipjax.demos.models.rnn import RNN
from clipjax.demos.tasks.text import text_task

CLIPS = {
    "none": lambda: clipjax.clip_by_global_norm(float("inf")),
    "hard": lambda: clipjax.clip_by_global_norm(0.1),
    "agc": lambda: clipjax.adaptive_grad_clip(0.01),
}


@pytest.fixture(scope="module", autouse=True)
def quick_generator():
    """The generator of random numbers that compiles fastest."""
    with jax.default_prng_impl("unsafe_rbg"):
        yield


@functools.partial(jax.jit, static_argnums=0)
def rnn(vocabulary, key):
    return RNN(vocabulary, hidden=8, rngs=nnx.Rngs(params=key))


@functools.cache
def built_in_task():
    return text_task(rnn, batch=4, length=10)


@pytest.fixture
def task():
    return built_in_task()


def make_loop(task, clip, *, steps=7, interval=3):
    def build(learning_rate):
        return optax.chain(CLIPS[clip](), optax.sgd(learning_rate))

    return train.Loop(task, build, steps=steps, interval=interval)


def run(loop, seed, report=None):
    return loop.run(seed, report, learning_rate=0.5)


@functools.cache
def loop_of(clip, interval=3):
    """Compiling is what takes the time here: each loop once for all tests."""
    return make_loop(built_in_task(), clip, interval=interval)


def test_scan_equals_a_plain_loop(task):
    # By the clip that reads the parameters as well.
    history = run(loop_of("agc"), 3)
    optimizer = optax.chain(CLIPS["agc"](), optax.sgd(0.5))
    static, params, batches = train.begin(task, seed=3)
    step = jax.jit(train.make_step(task, optimizer, static, learning_rate=0.5))
    carry = (params, optimizer.init(params))
    for index in range(7):
        carry, log = step(carry, task.train, batches, index)
        for name, value in log.items():
            assert history.log[name][index] == pytest.approx(float(value), rel=1e-5)
    assert all(len(row) == 7 for row in history.log.values())
    for one, other in zip(
        jax.tree.leaves(history.params), jax.tree.leaves(carry[0]), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_log_agrees_with_the_clip():
    log = run(loop_of("hard"), 0).log
    assert (log["grad_norm_raw"] > 0.1).all()  # or the clip would have nothing to do
    np.testing.assert_allclose(log["grad_norm_clipped"], 0.1, rtol=1e-5)
    np.testing.assert_allclose(log["clip_ratio"], 0.1 / log["grad_norm_raw"], rtol=1e-5)
    np.testing.assert_array_equal(log["clipped_fraction"], 1)
    free = run(loop_of("none"), 0).log
    np.testing.assert_array_equal(free["grad_norm_clipped"], free["grad_norm_raw"])
    assert np.isposinf(free["threshold"]).all()
    assert not free["clipped_fraction"].any()


def test_arms_begin_alike_and_seeds_do_not():
    first = {
        (clip, seed): run(loop_of(clip), seed).log["loss"][0]
        for clip in CLIPS
        for seed in (0, 1)
    }
    for seed in (0, 1):
        assert len({first[clip, seed] for clip in CLIPS}) == 1
    assert first["none", 0] != first["none", 1]


def test_a_run_repeats_exactly():
    loop = loop_of("hard")
    one, other = run(loop, 2), run(loop, 2)
    np.testing.assert_array_equal(one.log["loss"], other.log["loss"])
    assert one.held_out == other.held_out


def test_loop_is_traced_once_for_all_seeds_and_intervals(task):
    traces = []

    def counting(model, batch):
        traces.append(None)
        return task.loss(model, batch)

    counted = dataclasses.replace(task, loss=counting)
    loop = make_loop(counted, "hard")
    for seed in range(3):
        loop.run(seed, learning_rate=0.1 * (seed + 1))
    assert len(traces) == 1


def test_the_learning_rate_is_an_argument_of_the_compiled_loop():
    loop = loop_of("none")
    still = loop.run(0, learning_rate=1e-9).log["loss"]
    moved = run(loop, 0).log["loss"]
    assert still[0] == moved[0] and abs(still[1:] - moved[1:]).min() > 1e-3


def test_what_does_not_fit_into_memory_is_refused_unallocated(task, monkeypatch):
    def build(learning_rate):
        clip = clipjax.autoclip(50, window=10**9)
        return optax.chain(clip, optax.sgd(learning_rate))

    monkeypatch.setattr(train.os, "sysconf", lambda name: 2**15)  # 1 GiB
    with pytest.raises(ValueError, match=r"needs .* GiB of memory, .* 1.0 GiB"):
        train.Loop(task, build, steps=2, interval=2)


def test_interval_does_not_change_the_run_and_is_clamped():
    runs = [run(loop_of("hard", size), 0) for size in (3, 100)]
    np.testing.assert_allclose(runs[0].log["loss"], runs[1].log["loss"], rtol=1e-5)


def test_report_is_called_after_each_interval():
    seen = []
    run(loop_of("hard"), 0, lambda step, log: seen.append((step, set(log))))
    assert [step for step, _ in seen] == [3, 6, 7]
    assert seen[0][1] == {"loss", *train.METRICS}


def test_divergence_is_recorded_as_it_is(task):
    def exploding(model, batch):
        return task.loss(model, batch) * jnp.float32(1e30)

    loop = make_loop(dataclasses.replace(task, loss=exploding), "none")
    log = run(loop, 0).log
    assert np.isfinite(log["loss"][0])
    assert not np.isfinite(log["loss"][-1])
    # A gradient that is not finite has a norm of inf, and no ratio to average.
    assert np.isposinf(log["grad_norm_raw"][-1]) and np.isnan(log["clip_ratio"][-1])
