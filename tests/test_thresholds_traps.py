"""The traps of thresholds that learn: bad steps, spikes, drift and collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learnt_clips import (
    CLIPS,
    EVERY_CLIP,
    SOURCES,
    compiled,
    gradients,
    memory,
    normal,
    play,
    player,
)
from oracle import assert_same_bits

import clipjax
from clipjax import thresholds
from clipjax.thresholds.averages import Average


@pytest.mark.parametrize("name", CLIPS)
def test_a_bad_step_teaches_nothing(name):
    _, state = play(name, [2.0])
    for bad in (np.nan, np.inf, -np.inf, 0.0):
        if name == "acclip" and bad == 0:
            continue  # averages of single entries, where zero is a value like others
        _, after = play(name, [bad], state)
        assert_same_bits(memory(after), memory(state))
    # Nor does what is finite beside it: a step counts for all blocks or for none.
    half_bad = gradients([7.0]) | {"scale": np.float32([np.nan])}
    _, after = compiled(name)(half_bad, state)
    assert_same_bits(memory(after), memory(state))


def spiked():
    sizes = normal(100)
    sizes[[3, -1]] = 1e4, 5000
    return sizes


# A spike while they warm up lifts these, so that only a cap keeps them armed: sums of
# raw norms, and the largest. The cap of zclip is max_grad_norm.
NEED_A_CAP = (
    *("ema-late", "maximum", "warmup-maximum", "zclip", "zclip-skip"),
    "clip_update_by_history",
)


@pytest.mark.parametrize("name", sorted(EVERY_CLIP.keys() - set(NEED_A_CAP)))
def test_a_spike_in_the_warm_up_disarms_nothing(name):
    lengths, _ = play(name, spiked())
    if name == "acclip":  # lets a share of 1 - b2 of each raw norm into tau
        assert 10 < lengths[-1] < 0.01 * (1e4 + 5000)
    else:
        assert 0 < lengths[-1] < 4


CAPPED = {
    "zclip": lambda: clipjax.zclip(max_grad_norm=3.0),
    "clip_update_by_history": lambda: optax.chain(
        clipjax.clip_update_by_history(), clipjax.clip_by_global_norm(3.0)
    ),
    "maximum": lambda: clipjax.clip_by(SOURCES["maximum"](cap=3.0)),
}


@pytest.mark.parametrize("name", NEED_A_CAP)
def test_a_cap_keeps_the_others_armed(name):
    lengths, _ = play(name, spiked())
    assert lengths[-1] > 30
    if name in CAPPED:
        lengths, _ = play(player(CAPPED[name]()), spiked())
        assert lengths.max() < 3.0001
        np.testing.assert_allclose(lengths[4:99], spiked()[4:99], rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        *("zclip", "gradient_stabilizer", "stable_spam_clip", "maximum", "aggc"),
        *("clip_update_by_history", "ema-late"),
    ],
)
def test_a_spike_whose_square_overflows_passes(name):
    _, state = play(name, [*np.ones(10), 1e25])
    # An average of squares forgets such a spike by a factor a step: 0.9 for some.
    lengths, state = play(name, np.ones(1200), state)
    assert np.isfinite(lengths).all() and lengths[-1] > 0.1
    for leaf in jax.tree.leaves(memory(state)):
        assert np.isfinite(leaf).all()


# These clip by rank, or all that is above an average: the largest norm of a history is
# clipped however little it sticks out. Others set the length, whatever the norm.
BY_RANK = ("streaming_quantile", "autoclip", "quantile_clip")
AT_THE_AVERAGE = ("acclip", "stable_update_clip")
SETS_THE_LENGTH = ("gradient_stabilizer", "stable_spam_clip", "spam_clip")
LEFT_OUT = {*BY_RANK, *AT_THE_AVERAGE, *SETS_THE_LENGTH}


@pytest.mark.parametrize("name", sorted(EVERY_CLIP.keys() - LEFT_OUT))
def test_a_constant_history_and_a_thousandth_is_not_clipped(name):
    lengths, _ = play(name, np.append(np.ones(99), 1.001))
    np.testing.assert_allclose(lengths, np.append(np.ones(99), 1.001), rtol=1e-6)


def test_feedback_of_clipped_norms():
    """Erratum C33: with clipped norms, a multiplier of at most 1 collapses."""
    sizes = normal(3000, spread=0.35)
    assert sizes.mean() == pytest.approx(1.06, rel=0.02)
    collapsing = {
        k: thresholds.Learnt(Average(0.99, k), "ema", remember="clipped")
        for k in (0.5, 0.9, 1.0, 1.5)
    }
    safe = {k: thresholds.ema(k, remember="raw") for k in collapsing}
    floored = {
        k: thresholds.ema(k, remember="clipped", floor=0.7) for k in (0.5, 0.9, 1.0)
    }
    clips = jax.tree.map(
        clipjax.clip_by,
        [collapsing, safe, floored],
        is_leaf=lambda node: isinstance(node, thresholds.Threshold),
    )

    @jax.jit
    def ends(sizes):
        is_clip = lambda node: isinstance(node, clipjax.Clip)  # noqa: E731

        def step(states, size):
            update = lambda clip, state: clip.update(size, state)[1]  # noqa: E731
            return jax.tree.map(update, clips, states, is_leaf=is_clip), ()

        start = lambda clip: clip.init(jnp.zeros(()))  # noqa: E731
        states = jax.tree.map(start, clips, is_leaf=is_clip)
        last, _ = jax.lax.scan(step, states, sizes)
        is_state = lambda node: isinstance(node, clipjax.ClipState)  # noqa: E731
        kept = lambda state: state.clip_memory["ema"].norms_kept[0]  # noqa: E731
        return jax.tree.map(kept, last, is_leaf=is_state)

    ends = ends(jnp.asarray(sizes, jnp.float32))
    for k, published in {0.5: 3e-7, 0.9: 0.046, 1.0: 0.60, 1.5: 1.07}.items():
        plain = sizes[0]
        for size in sizes[1:]:
            plain += 0.01 * (min(size, k * plain) - plain)
        assert plain == pytest.approx(published, rel=0.3)
        # Without a bias towards its start, the average sinks even faster.
        assert ends[0][k] < 1.05 * plain
        assert ends[1][k] == pytest.approx(1.06, rel=0.1)
    assert ends[0][1.5] == pytest.approx(1.07, rel=0.1)
    for k in (0.5, 0.9, 1.0):
        for remember in ("clipped", "target"):
            with pytest.raises(ValueError, match="each clip would lower the next"):
                thresholds.ema(k, remember=remember)
        assert ends[2][k] > 0.6
        assert thresholds.ema(k).remember == "raw"
    assert thresholds.ema(1.5).remember == "clipped"


# Documented not to follow: a frozen and a smallest norm, and averages that may grow by
# a fixed ratio only.
FROZEN = ("warmup-maximum", "warmup-quantile", "minimum")
THROTTLED = {
    "adagc-raw": 0.98 + 0.02 * 1.05,
    "adagc-clipped": 0.98 + 0.02 * 1.05,
    "aggc": 0.98 + 0.02 * 1.2,
}


@pytest.mark.parametrize("name", sorted(CLIPS.keys() - set(FROZEN)))
def test_growth_of_a_percent_a_step(name):
    sizes = 1e-3 * 1.01 ** np.arange(1200)
    lengths, state = play(name, sizes)
    if name in THROTTLED:
        growth = lengths[-1] / lengths[-601]
        assert growth == pytest.approx(THROTTLED[name] ** 600, rel=1e-3)
        return
    # Two leaves of about 1 each, whatever the norm, or the norm itself.
    allowed = np.full(1200, 2**0.5) if name in SETS_THE_LENGTH else sizes
    ratios = lengths[800:] / allowed[800:]
    assert 0.5 <= ratios.min() <= ratios.max() < 1.1
    spike, _ = play(name, [100 * sizes[-1]], state)
    assert spike[0] < 3 * allowed[-1]


@pytest.mark.parametrize("minimum_of", ["raw", "clipped"])
def test_adagc_does_not_freeze_what_was_zero_in_the_warm_up(minimum_of):
    sizes = np.float32(np.arange(40) >= 10)
    grads = {"scale": sizes, "w": np.full((40, 3), 0.1, "f4")}
    updates, _ = compiled(f"adagc-{minimum_of}")(grads)
    assert np.all(np.abs(updates["scale"]) >= 0.95 * sizes)


def test_the_band_below_the_average_sinks_without_a_least_factor():
    norms = jnp.exp(0.2 * jax.random.normal(jax.random.key(0), (1000,)))

    def last(clip):
        def step(state, norm):
            length, state = clip.update(norm, state)
            return state, length

        return jax.lax.scan(step, clip.init(norms[0]), norms)[1][-1]

    clips = {
        least: clipjax.aggc(alpha_high=0.7, max_down_scale=least)
        for least in (None, 0.9)
    }
    lengths = jax.jit(
        lambda: {str(least): last(clip) for least, clip in clips.items()}
    )()
    assert lengths["None"] < 0.01 < 0.4 < lengths["0.9"]
