"""Thresholds from recorded norms, and the alarm for those that clip too much."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clipjax
from clipjax import rules
from clipjax.diagnostics import over_clipping, suggest_thresholds
from clipjax.diagnostics.alarms import SCALE_INVARIANT, SCALE_SENSITIVE

NORMS = np.exp(0.2 * np.random.default_rng(0).standard_normal(1000))
ROBUST = "log-median + 4 MAD"


def rows(table):
    return {row.strategy: row for row in table.rows}


def test_each_strategy():
    norms = np.append(NORMS, [40.0, 90.0])
    logs = np.log(norms)
    deviation = np.median(np.abs(logs - np.median(logs))) * 1.4826
    expected = {
        "quantile 0.5": np.quantile(norms, 0.5),
        "quantile 0.9": np.quantile(norms, 0.9),
        "quantile 0.95": np.quantile(norms, 0.95),
        "quantile 0.99": np.quantile(norms, 0.99),
        "g99 / 2": np.quantile(norms, 0.99) / 2,
        "maximum": 90,
        "1.5 maximum": 135,
        "mean + 2 std": norms.mean() + 2 * norms.std(),
        "log-mean + 2 std": np.exp(logs.mean() + 2 * logs.std()),
        ROBUST: np.exp(np.median(logs) + 4 * deviation),
        "smoothness L0 / L1": 0.25,
    }
    found = rows(suggest_thresholds(norms, deviations=2.0, l0=1.0, l1=4.0))
    assert list(found) == list(expected)
    for strategy, row in found.items():
        assert row.threshold == pytest.approx(expected[strategy])
        assert row.clipped_fraction == np.mean(norms > row.threshold)
    assert found["maximum"].clipped_fraction == 0


def test_what_is_recommended():
    calm = suggest_thresholds(NORMS)
    assert calm.recommended == rows(calm)[ROBUST]
    assert calm.recommended.clipped_fraction == 0 and calm.cautions == []
    assert calm.reason.startswith("No step is a spike")

    rare = suggest_thresholds(np.append(NORMS, [1e8] * 3))
    assert rare.recommended.strategy == ROBUST
    assert rare.recommended.clipped_fraction == 3 / 1003
    assert rare.reason.startswith("3 of 1003 steps are spikes")
    # Three spikes hardly move it: a mean with deviations is at 1e7.
    change = rare.recommended.threshold / calm.recommended.threshold
    assert change == pytest.approx(1, abs=0.02)

    two_levels = np.tile(np.append(NORMS[:90], NORMS[90:100] * 30), 5)
    often = suggest_thresholds(two_levels)
    assert often.recommended.strategy == "quantile 0.95"
    assert often.reason.startswith("10.0% of the steps lie far above the median")

    constant = suggest_thresholds(np.full(100, 3.0))
    assert constant.recommended.threshold == pytest.approx(3 * np.exp(0.2))


def test_cautions():
    falling = suggest_thresholds(NORMS * 0.995 ** np.arange(1000))
    assert "a factor of 0.02" in falling.cautions[0] and len(falling.cautions) == 1
    clipped = suggest_thresholds(np.minimum(NORMS, 1.0))
    assert "47% of the norms equal the largest" in clipped.cautions[0]
    assert "nearly the maximum" in suggest_thresholds(NORMS[:99]).cautions[0]


def test_norms_that_do_not_count():
    odd = [0.0, 0.0, np.inf, np.nan, -np.inf]
    table = suggest_thresholds(jnp.asarray(np.append(NORMS, odd[:4]), jnp.float32))
    assert (table.count, table.zero_count, table.nonfinite_count) == (1000, 2, 2)
    for one, other in zip(table.rows, suggest_thresholds(NORMS).rows, strict=True):
        assert one.threshold == pytest.approx(other.threshold, rel=1e-6)
        assert one.clipped_fraction == pytest.approx(other.clipped_fraction, abs=2e-3)


def test_the_table_is_aligned():
    norms = np.append(NORMS, [1e8, 0.0])
    lines = str(suggest_thresholds(norms)).split("\n")
    assert len({len(line) for line in lines[:11]}) == 1
    assert [line for line in lines[:11] if line[0] == "*"] == [
        "* log-median + 4 MAD       2.109     0.10%"
    ]
    assert lines[11:13] == ["", "1001 steps; left out: 0 not finite, 1 zero."]
    assert lines[13].startswith("* 1 of 1001 steps are spikes")


@pytest.mark.parametrize(
    ("norms", "options", "message"),
    [
        (
            [1.0, 0.0, np.inf],
            {},
            r"at least 20 positive, finite entries, got 1 of 3 \(1 not finite, 1 zero",
        ),
        ([[1.0] * 50], {}, r"norms must have shape \(steps,\), got \(1, 50\)"),
        ([-1.0] * 50, {}, "norms must be at least 0, got -1"),
        ([True] * 50, {}, "norms must be real numbers, got dtype bool"),
        ([1.0] * 50, {"l0": 1.0}, "l0 and l1 must be given together"),
        ([1.0] * 50, {"l0": 1.0, "l1": -1.0}, "l1 must be .* got -1"),
        ([1.0] * 50, {"deviations": -1.0}, "deviations must be .* got -1"),
    ],
)
def test_suggestions_refuse(norms, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        suggest_thresholds(norms, **options)


def test_over_clipping_before_sgd():
    clip = clipjax.clip_by_global_norm(1.0)
    low = over_clipping(clip, [0.1, 0.5, 0.6, 1.0, np.nan, np.inf, 0.2])
    assert low.is_over_clipping and "sets the length of the steps" in low.reason
    assert low.average_ratio == pytest.approx(0.48)
    assert low.clipped_fraction == 0.8
    assert not over_clipping(clip, [0.4, 0.6]).is_over_clipping
    nothing = over_clipping(clip, [])
    assert nothing[:3] == (False, 1.0, 0.0)
    for rule in (rules.hard, rules.floored(0.1)):
        assert over_clipping(rule, 0.49).is_over_clipping


def test_over_clipping_agrees_with_the_metric_under_a_hard_clip():
    for threshold in (1.0, 4.0):
        clip = clipjax.clip_by_global_norm(threshold)
        grads = jnp.array([3.0, 4.0])
        numbers = clipjax.metrics(clip.update(grads, clip.init(grads))[1])
        alarm = over_clipping(clip, numbers["clip/average_clip_ratio"])
        assert alarm.is_over_clipping == bool(numbers["clip/over_clipping"])


def test_over_clipping_is_silent_where_ratios_mean_something_else():
    soft = (rules.soft, rules.tanh, rules.sqrt)
    private = (rules.automatic(), rules.psac(), rules.global_adapt(50.0))
    for rule in (*soft, *private, rules.normalise, rules.band(), rules.skip):
        for clip in (rule, clipjax.clip_by(1.0, rule=rule)):
            alarm = over_clipping(clip, 0.01)
            assert not alarm.is_over_clipping and repr(rule) in alarm.reason
    assert not over_clipping(rules.hard, 0.01, optimizer="adam").is_over_clipping
    assert not over_clipping(rules.hard, 0.01, scale_invariant=True).is_over_clipping
    assert over_clipping(
        rules.hard, 0.01, optimizer="adam", scale_invariant=False
    ).is_over_clipping


def test_over_clipping_refuses():
    with pytest.raises(ValueError, match="optimizer must be one of .* got 'adm'"):
        over_clipping(rules.hard, 0.5, optimizer="adm")
    with pytest.raises(TypeError, match="clip must be a Clip or a Rule, got 1.0"):
        over_clipping(1.0, 0.5)
    with pytest.raises(TypeError, match="scale_invariant must be True or False"):
        over_clipping(rules.hard, 0.5, scale_invariant="adam")


def test_which_optimizers_cancel_a_common_factor():
    """The table of names is what Optax does."""
    random = np.random.default_rng(0)
    grads = random.standard_normal((30, 4, 3)) * random.lognormal(0, 0.5, (30, 1, 1))

    def updates(name):
        make = getattr(optax, name, None) or getattr(optax.contrib, name)
        has_rate = "learning_rate" in inspect.signature(make).parameters
        optimizer = make(learning_rate=0.01) if has_rate else make()

        def step(carry, grad):
            params, state = carry
            update, state = optimizer.update(grad, state, params)
            return (optax.apply_updates(params, update), state), update

        @jax.vmap
        def scaled(scale):
            params = jnp.ones((4, 3))
            first = (params, optimizer.init(params))
            return jax.lax.scan(step, first, scale * jnp.asarray(grads, jnp.float32))[1]

        return scaled(jnp.array([1.0, 0.01]))[:, 10:]

    names = [name for name in SCALE_INVARIANT + SCALE_SENSITIVE if name != "noisy_sgd"]
    with jax.numpy_dtype_promotion("standard"):  # Optax needs it
        every = jax.jit(lambda: {name: updates(name) for name in names})()
    for name, (one, other) in every.items():
        change = np.linalg.norm(one - other) / np.linalg.norm(one)
        assert change < 0.01 if name in SCALE_INVARIANT else change > 0.1, name
