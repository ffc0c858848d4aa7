"""Thresholds that learn, over many steps, from checkpoints, and inside of wrappers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from learnt_clips import (
    CLIPS,
    EVERY_CLIP,
    PARAMS,
    gradient,
    gradients,
    lenient,
    memory,
    normal,
    play,
    player,
)
from oracle import assert_close, assert_same_bits, kinds

import clipjax
from clipjax import thresholds


def test_skip_nonfinite_leaves_everything_as_it_was():
    """Adam's memory too, which spam_clip does not protect."""
    optimizer = player(clipjax.skip_nonfinite(EVERY_CLIP["spam_clip"]()))
    _, state = play(optimizer, [1.0, 2.0, 1.5])
    _, after = play(optimizer, [np.nan], state)
    assert_same_bits(after.inner_state, state.inner_state)


# What they are at the end of a long run, of all norms that are not zero, and without
# today's, which does not count for most.
LONG = {
    "autoclip": (0, lambda norms: np.quantile(norms[-50:], 0.1)),
    "clip_update_by_history": (
        1,
        lambda norms: norms[-128:].mean() + 3 * norms[-128:].std(),
    ),
    "ema": (1, lambda norms: 2 * weighted(np.minimum(norms, 1e9))),
    "maximum": (1, lambda norms: 1.5 * norms.max()),
    "warmup-quantile": (1, lambda norms: 1.5 * np.quantile(norms[:20], 0.9)),
}


def weighted(norms):
    weights = 0.99 ** np.arange(3000)[::-1]
    return np.sum(weights * norms[-3000:]) / weights.sum()


def test_a_hundred_thousand_steps():
    clips = {name: CLIPS[name]() for name in LONG}
    clips["ema"] = clipjax.clip_by(thresholds.ema(2.0, remember="raw"))
    sizes = np.asarray(normal(100_000, spread=0.3), np.float32)
    sizes[::1000] = 0

    def step(states, size):
        return {n: clip.update(size, states[n])[1] for n, clip in clips.items()}, ()

    first = {name: clip.init(jnp.zeros(())) for name, clip in clips.items()}
    last, _ = jax.jit(lambda *args: jax.lax.scan(step, *args))(first, sizes)
    assert kinds(last) == kinds(first)
    norms = sizes[sizes > 0].astype("f8")
    for name, (today, expected) in LONG.items():
        (learnt,) = last[name].clip_memory.values()
        assert int(learnt.norms_seen[0]) == (20 if name.startswith("warmup") else 99900)
        found = float(last[name].clip_info.clip_threshold)
        known = norms[: len(norms) - today]
        assert found == pytest.approx(expected(known), rel=1e-4), name
        assert int(last[name].clip_steps) == 100_000


# One of each kind of memory: a window, averages, a largest norm, a frozen one, averages
# of blocks and of entries, and Adam's.
MEMORIES = (
    *("autoclip", "zclip", "maximum", "warmup-quantile", "adagc-raw", "acclip"),
    "spam_clip",
)


def test_resuming_from_a_checkpoint_is_bit_identical(tmp_path):
    sizes = normal(20, spread=1.0)
    states = {name: clip().init(PARAMS) for name, clip in EVERY_CLIP.items()}
    states |= {name: play(name, sizes[:10])[1] for name in MEMORIES}
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "clips", states)
        checkpointer.wait_until_finished()
        abstract = {n: jax.eval_shape(EVERY_CLIP[n]().init, PARAMS) for n in EVERY_CLIP}
        restored = checkpointer.restore(tmp_path / "clips", abstract)
    assert_same_bits(restored, states)
    _, *others = MEMORIES
    # Arrays that lie on a certain device take another program, here of one clip only.
    restored |= jax.tree.map(np.asarray, {name: restored[name] for name in others})
    for name in MEMORIES:
        expected = play(name, sizes[10:], states[name])
        assert_same_bits(play(name, sizes[10:], restored[name]), expected)


@pytest.mark.parametrize("name", ["zclip", "acclip"])
def test_vmap_over_seeds_keeps_them_apart(name):
    clip = EVERY_CLIP[name]()
    sizes = [normal(30, seed, 0.5) * 10.0**seed for seed in range(3)]
    batches = jax.tree.map(lambda *seeds: np.stack(seeds), *map(gradients, sizes))

    @jax.jit
    @jax.vmap
    def together(batches):
        step = lambda state, grads: clip.update(grads, state)[::-1]  # noqa: E731
        return jax.lax.scan(step, clip.init(PARAMS), batches)[0]

    states = together(batches)
    for seed in range(3):
        mine = jax.tree.map(lambda leaf, seed=seed: leaf[seed], states)
        assert_close(mine, play(name, sizes[seed])[1], rtol=1e-4, atol=1e-6)


def test_accumulation_counts_real_steps_only():
    name = "zclip"
    optimizer = optax.MultiSteps(EVERY_CLIP[name](), every_k_schedule=3)
    sizes = normal(6, spread=1.0)
    _, state = play(player(lenient(optimizer)), sizes)
    _, expected = play(name, sizes.reshape(2, 3).mean(1))
    mine, theirs = memory(state.inner_opt_state), memory(expected)
    assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "arguments", "changed"),
    [
        (clipjax.zclip, {"max_grad_norm": 2.0, "warmup_steps": 5}, "max_grad_norm"),
        (clipjax.adagc, {"lambda_abs": 0.5, "warmup_steps": 90}, "lambda_abs"),
    ],
)
def test_inject_hyperparams(make, arguments, changed):
    sizes = normal(30, spread=0.5)
    injected = optax.inject_hyperparams(make)(**arguments)
    update, state = jax.jit(injected.update), injected.init(PARAMS)
    plain = make(**arguments)
    plain_update, plain_state = jax.jit(plain.update), plain.init(PARAMS)
    for size in sizes:
        updates, state = update(gradient(size), state)
        expected, plain_state = plain_update(gradient(size), plain_state)
        assert_close(updates, expected, rtol=1e-5)
    for argument, value in arguments.items():
        assert float(state.hyperparams[argument]) == pytest.approx(value)
    state.hyperparams[changed] = jnp.float32(0.01)
    updates, _ = update(gradient(1.0), state)
    length = np.linalg.norm([updates["scale"], *updates["w"]])
    assert length == pytest.approx(0.01, rel=1e-5)
    assert update._cache_size() == 1


def test_a_window_cannot_be_injected():
    for make in (
        clipjax.autoclip,
        clipjax.quantile_clip,
        clipjax.clip_update_by_history,
    ):
        with pytest.raises(TypeError, match="window must be an integer.*static_args"):
            optax.inject_hyperparams(make)(window=9).init(PARAMS)
        static = optax.inject_hyperparams(make, static_args=("window",))(window=9)
        state = jax.eval_shape(static.init, PARAMS).inner_state
        (learnt,) = state.clip_memory.values()
        assert learnt.norms_kept.shape == (9, 1)


def test_two_clips_that_learn_have_each_a_memory_of_its_own():
    source = functools.partial(thresholds.warmup_statistic, 1)
    both = optax.chain(clipjax.clip_by(source(2.0)), clipjax.clip_by(source(0.5)))
    both = player(both)
    _, state = play(both, [1.0])
    lengths, state = play(both, [9.0], state)
    np.testing.assert_allclose(lengths, 0.5, rtol=1e-6)
    assert float(state[0].clip_info.norm_after) == pytest.approx(2, rel=1e-6)
