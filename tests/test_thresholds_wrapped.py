"""Learnt thresholds in scans, checkpoints and wrappers, and what sources refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from oracle import assert_close, assert_same_bits, kinds
from test_thresholds_traps import (
    CLIPS,
    EVERY_CLIP,
    PARAMS,
    RECIPES,
    WITH_ADAM,
    compiled,
    gradients,
    lenient,
    memory,
    normal,
    play,
)

import clipjax
from clipjax import thresholds


@pytest.mark.parametrize("name", ["zclip", "adagc-raw", "acclip", *WITH_ADAM])
def test_skip_nonfinite_leaves_everything_as_it_was(name):
    optimizer = clipjax.skip_nonfinite(EVERY_CLIP[name]())
    _, state = play(optimizer, [1.0, 2.0, 1.5])
    _, after = play(optimizer, [np.nan], state)
    assert_same_bits(after.inner_state, state.inner_state)
    assert int(after.skipped_count) == 1


def test_a_hundred_thousand_steps():
    left_out = ("adagc-clipped", "ema-late", "norm_growth_limiter", "zscore")
    names = [n for n in CLIPS if n not in left_out and "zclip" not in n]
    clips = {name: CLIPS[name]() for name in names}
    sizes = np.asarray(normal(100_000, spread=0.3), np.float32)
    sizes[::1000] = 0

    def step(states, size):
        grads = gradients(size)
        return {n: c.update(grads, states[n])[1] for n, c in clips.items()}, ()

    first = {name: clip.init(PARAMS) for name, clip in clips.items()}
    last, _ = jax.jit(lambda *args: jax.lax.scan(step, *args))(first, sizes)
    assert kinds(last) == kinds(first)
    for name, state in last.items():
        for learnt in memory(state)[0]:
            for seen in jax.tree.leaves(getattr(learnt, "seen", ())):
                expected = 20 if name.startswith("warmup") else 99_900
                assert np.all(np.asarray(seen) == expected), name
    norms = sizes[sizes > 0].astype("f8")
    known = norms[:-1]  # today's norm does not count for most
    mean_plus_std = known[-128:].mean() + 3 * known[-128:].std()
    weights = 0.99 ** np.arange(3000)[::-1]
    for name, expected in {
        "quantile": np.quantile(known[-50:], 0.9),
        "autoclip": np.quantile(norms[-50:], 0.1),
        "quantile_clip": np.quantile(known[-50:], 0.95),
        "mean_plus_std": mean_plus_std,
        "clip_update_by_history": mean_plus_std,
        "ema-raw": 2 * np.sum(weights * known[-3000:]) / weights.sum(),
        "maximum": 1.5 * known.max(),
        "minimum": 3 * known.min(),
        "warmup-maximum": 1.5 * norms[:20].max(),
        "warmup-quantile": 1.5 * np.quantile(norms[:20], 0.9),
    }.items():
        found = float(last[name].info.threshold)
        assert found == pytest.approx(expected, rel=1e-4), name


def test_resuming_from_a_checkpoint_is_bit_identical(tmp_path):
    sizes = normal(200, spread=1.0)
    halfway = {name: play(name, sizes[:100])[1] for name in EVERY_CLIP}
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "clips", halfway)
        checkpointer.wait_until_finished()
        abstract = {n: jax.eval_shape(EVERY_CLIP[n]().init, PARAMS) for n in EVERY_CLIP}
        restored = checkpointer.restore(tmp_path / "clips", abstract)
    for name in EVERY_CLIP:
        expected = play(name, sizes[100:], halfway[name])
        assert_same_bits(play(name, sizes[100:], restored[name]), expected)


@pytest.mark.parametrize("name", [*RECIPES, *WITH_ADAM, "ema", "streaming_quantile"])
def test_vmap_over_seeds_keeps_them_apart(name):
    first, run = compiled(name)
    sizes = np.stack([normal(100, seed, 0.5) * 10.0**seed for seed in range(3)])
    together = jax.vmap(functools.partial(run, first))(gradients(sizes))
    for seed in range(3):
        mine = jax.tree.map(lambda leaf, seed=seed: leaf[seed], together)
        assert_close(mine, run(first, gradients(sizes[seed])), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["zclip", "adagc-raw", "warmup-quantile", "acclip"])
def test_accumulation_counts_real_steps_only(name):
    optimizer = optax.MultiSteps(EVERY_CLIP[name](), every_k_schedule=3)
    sizes = normal(6, spread=1.0)
    _, state = play(lenient(optimizer), sizes)
    _, expected = play(name, sizes.reshape(2, 3).mean(1))
    mine, theirs = memory(state.inner_opt_state), memory(expected)
    assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def by_ema(multiplier, decay, cap):
    return clipjax.clip_by(thresholds.ema(multiplier, decay=decay, cap=cap))


@pytest.mark.parametrize(
    ("make", "arguments", "changed"),
    [
        (clipjax.zclip, {"max_grad_norm": 2.0, "warmup_steps": 5}, "max_grad_norm"),
        (clipjax.adagc, {"lambda_abs": 0.5, "warmup_steps": 90}, "lambda_abs"),
        (by_ema, {"multiplier": 2.0, "decay": 0.9, "cap": 5.0}, "cap"),
    ],
)
def test_inject_hyperparams(make, arguments, changed):
    sizes = normal(30, spread=0.5)
    injected = optax.inject_hyperparams(make)(**arguments)
    lengths, state = play(injected, sizes)
    np.testing.assert_allclose(lengths, play(make(**arguments), sizes)[0], rtol=1e-5)
    state.hyperparams[changed] = jnp.float32(0.01)
    assert play(injected, [1.0], state)[0] == pytest.approx(0.01, rel=1e-5)


def test_aggc_can_be_injected_without_labels():
    sizes = normal(30, spread=0.5)
    lengths, state = play(optax.inject_hyperparams(clipjax.aggc)(beta=0.9), sizes)
    np.testing.assert_allclose(
        lengths, play(clipjax.aggc(beta=0.9), sizes)[0], rtol=1e-5
    )
    assert float(state.hyperparams["beta"]) == pytest.approx(0.9)


def test_a_window_cannot_be_injected():
    for make in (
        clipjax.autoclip,
        clipjax.quantile_clip,
        clipjax.clip_update_by_history,
    ):
        with pytest.raises(TypeError, match="window must be an integer.*static_args"):
            optax.inject_hyperparams(make)(window=9).init(PARAMS)
    injected = optax.inject_hyperparams(clipjax.autoclip, static_args=("window",))
    sizes = normal(30, spread=0.5)
    lengths, _ = play(injected(window=9), sizes)
    expected, _ = play(clipjax.autoclip(window=9), sizes)
    np.testing.assert_allclose(lengths, expected, rtol=1e-6)


LEARNT = (
    thresholds.quantile,
    thresholds.ema,
    thresholds.mean_plus_std,
    thresholds.running_extremum,
)
WRONG = [
    (make, {argument: value}, argument)
    for make in LEARNT
    for argument, value in [
        ("include_current", 1),
        ("remember", "all"),
        ("minimum_history", -1),
        ("minimum_history", "1"),
        ("floor", -0.1),
        ("floor", np.inf),
        ("cap", np.nan),
        ("cap", True),
    ]
] + [
    (make, {argument: value}, argument)
    for make, arguments in {
        thresholds.quantile: {"q": 1.1, "window": 2.0, "factor": -1},
        thresholds.ema: {"multiplier": np.inf, "decay": 1.01},
        thresholds.streaming_quantile: {"q": -0.1, "rate": "fast", "cap": -1},
        thresholds.zscore: {"z": -1, "decay": 2, "warmup": 0, "mode": "median"},
        thresholds.moment_ratio: {"mean_decay": 2, "square_decay": None, "epsilon": -1},
        thresholds.mean_plus_std: {"window": 0, "k": -1},
        thresholds.running_extremum: {"largest": 1, "factor": np.nan},
        thresholds.warmup_statistic: {"steps": 0, "factor": -1, "quantile": 2},
        thresholds.relative_to_previous: {"growth": 0.99, "slowest_decay": 1.1},
        thresholds.from_loss: {
            "threshold": -1,
            "relaxation": -1,
            "tolerance": 0,
            "fast_decay": 1.5,
            "slow_decay": "0.9",
            "cap": -1,
        },
        thresholds.polyak_cap: {"learning_rate": -1, "lower_bound": np.nan},
        thresholds.from_smoothness: {"l0": 0, "l1": None},
        thresholds.estimated_smoothness: {
            "decay": 2,
            "minimum_history": 1,
            "floor": -1,
            "cap": np.nan,
            "initial_step": -1,
        },
        thresholds.relative_to_learning_rate: {
            "step": "1",
            "learning_rate": -1,
            "proportional": 0,
        },
    }.items()
    for argument, value in arguments.items()
]
NEEDED = {
    thresholds.quantile: {"q": 0.5},
    thresholds.ema: {"multiplier": 2.0},
    thresholds.streaming_quantile: {"q": 0.5},
    thresholds.warmup_statistic: {"steps": 2},
    thresholds.from_loss: {"threshold": 1.0},
    thresholds.polyak_cap: {"learning_rate": 1.0},
    thresholds.from_smoothness: {"l0": 1.0, "l1": 1.0},
    thresholds.relative_to_learning_rate: {"step": 1.0},
}


@pytest.mark.parametrize(("make", "wrong", "argument"), WRONG)
def test_what_sources_refuse(make, wrong, argument):
    shown = "threshold" if argument == "step" else argument
    with pytest.raises(
        (TypeError, ValueError), match=rf"{shown} must .*, got "
    ) as error:
        make(**(NEEDED.get(make, {}) | wrong))
    (value,) = wrong.values()
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("make", LEARNT)
def test_a_cap_below_the_floor_is_refused(make):
    with pytest.raises(ValueError, match="cap must be a number of at least 2"):
        make(**NEEDED.get(make, {}), floor=2.0, cap=1.0)
