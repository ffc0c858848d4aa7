"""Thresholds that learn, against plain NumPy that keeps every norm it has seen."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax import granularity, thresholds
from clipjax.thresholds.base import Threshold, fill

STEPS, WINDOW = 60, 16
ALL = {"bias": (2,), "kernel": (3, 2), "scale": ()}


@dataclasses.dataclass(frozen=True)
class Recorded(Threshold):
    """Keeps this step's norms and thresholds, block by block."""

    source: Threshold
    kind = "recorded"
    remembers = True

    def init(self, context):
        return self.source.init(context), context.zeros(), context.zeros()

    def update(self, norms, state, context):
        found, memory = self.source.update(norms, state[0], context)
        found = fill(found, norms)
        return found, (memory, norms, found)


def sequence(dtype):
    """Makes log-normal entries with signs, spikes, and zeros of three kinds."""
    generator = np.random.default_rng(0)
    spikes = {"bias": 11, "kernel": 30, "scale": 44}
    grads = {}
    for name, shape in ALL.items():
        entries = np.exp(0.4 * generator.standard_normal((STEPS, *shape)))
        entries *= generator.choice([-1, 1], entries.shape)
        entries *= generator.random(entries.shape) > 0.05
        entries[[spikes[name], spikes[name] + 3]] *= 50
        entries[[0, 20]] = 0
        entries[spikes[name] - 2] = 0
        grads[name] = jnp.asarray(entries, dtype)
    return grads


def run(source, blocks, grads):
    """Runs a clip in a scan; gives its norms, its thresholds and its last memory."""
    clip = clipjax.clip_by(Recorded(source), granularity=blocks)

    @jax.jit
    def scan(grads):
        def step(state, grads):
            _, state = clip.update(grads, state)
            return state, state.threshold[1:]

        first = clip.init(jax.tree.map(lambda leaf: leaf[0], grads))
        return jax.lax.scan(step, first, grads)

    last, found = scan(grads)
    flat = [
        np.concatenate([np.asarray(a, "f8").reshape(STEPS, -1) for a in leaves], axis=1)
        for leaves in map(jax.tree.leaves, found)
    ]
    return *flat, last.threshold[0]


def measured(kind, grads):
    """Gives the norms that there are, per step and block, in float64."""
    leaves = [np.asarray(grads[name], "f8") for name in sorted(grads)]
    if kind == "whole":
        flat = np.concatenate([leaf.reshape(STEPS, -1) for leaf in leaves], axis=1)
        return np.linalg.norm(flat, axis=1)[:, None]
    reduced = {
        "leaf": [tuple(range(1, leaf.ndim)) for leaf in leaves],
        "unit": [(1,), (1,), ()],
        "element": [()] * len(leaves),
    }[kind]
    pairs = zip(leaves, reduced, strict=True)
    parts = [np.sqrt(np.sum(leaf**2, axis=axes)) for leaf, axes in pairs]
    return np.concatenate([part.reshape(STEPS, -1) for part in parts], axis=1)


# What a threshold is, given all the norms let in so far and today's norm.


def quantile(q, factor=1.0, window=WINDOW):
    return lambda history, norm: factor * np.quantile(history[-window:], q)


def weighted(history, decay):
    weights = decay ** np.arange(len(history))[::-1]
    return np.sum(weights * history) / np.sum(weights)


def ema(multiplier, decay):
    return lambda history, norm: multiplier * weighted(history, decay)


def moment_ratio(mean_decay, square_decay):
    return lambda history, norm: (
        weighted(history, mean_decay)
        / (np.sqrt(weighted(history**2, square_decay)) + 1e-8)
    )


def mean_plus_std(k):
    def threshold(history, norm):
        latest = history[-WINDOW:]
        return latest.mean() + k * max(latest.std(), 1e-3 * latest.mean())

    return threshold


def zscore(z, decay, warmup, mode, factor):
    def threshold(history, norm):
        mean, variance = history[:warmup].mean(), history[:warmup].var()
        for later in history[warmup:]:
            mean = decay * mean + (1 - decay) * later
            variance = decay * variance + (1 - decay) * (later - mean) ** 2
        deviation = max(np.sqrt(variance), 1e-3 * mean)
        score = (norm - mean) / (deviation + 1e-6)
        if mode == "percentile":
            target = mean + z * deviation
            return factor * target if norm > target else np.inf
        target = mean if mode == "mean" else mean + z**2 * deviation / max(score, z)
        return factor * target if score > z else np.inf

    return threshold


def streaming_quantile(q, rate):
    def threshold(history, norm):
        estimate = history[0]
        for later in history[1:]:
            estimate *= np.exp(rate * q if later > estimate else rate * (q - 1))
        return estimate

    return threshold


def relative_to_previous(growth, slowest):
    return lambda history, norm: (
        growth * np.max(history * slowest ** np.arange(len(history))[::-1])
    )


def replay(
    statistic,
    norms,
    include_current=False,
    remember="raw",
    minimum_history=1,
    learning_steps=np.inf,
    floor=0.0,
    cap=np.inf,
):
    """Gives the thresholds of one block, and how many norms were let in."""
    entered, found = [], []
    for norm in norms:
        history = np.array(entered + [norm] * include_current)
        is_known = len(history) >= max(1, minimum_history)
        learnt = statistic(history, norm) if is_known else np.inf
        threshold = min(max(learnt, floor), cap)
        found.append(threshold)
        is_let_in = norm > 0 and len(entered) < learning_steps
        if is_let_in and (remember != "inliers" or norm <= learnt):
            limit = {"clipped": threshold, "target": learnt}.get(remember, np.inf)
            entered.append(min(norm, limit))
    return np.array(found), len(entered)


def case(source, statistic, **switches):
    return source, statistic, switches


LIMITS = {"floor": 1.1, "cap": 2.5}
SWITCHES = (
    {},
    {"include_current": True, "minimum_history": 5},
    {"include_current": True, "remember": "clipped", **LIMITS},
    {"remember": "clipped", "minimum_history": WINDOW, **LIMITS},
    {"remember": "target", "floor": 0.5, "minimum_history": 3},
    {"remember": "inliers", "minimum_history": 20, "cap": 3.0},
)
ONE_EACH = {
    "quantile": case(
        thresholds.quantile(0.7, WINDOW, factor=1.3), quantile(0.7, factor=1.3)
    ),
    "ema": case(thresholds.ema(1.2, decay=0.9), ema(1.2, 0.9), remember="clipped"),
    "mean_plus_std": case(thresholds.mean_plus_std(WINDOW, 1.5), mean_plus_std(1.5)),
    "maximum": case(
        thresholds.running_extremum(factor=0.5), lambda seen, norm: 0.5 * seen.max()
    ),
    "minimum": case(
        thresholds.running_extremum(False, 3.0), lambda seen, norm: 3 * seen.min()
    ),
    "streaming_quantile": case(
        thresholds.streaming_quantile(0.8, 0.1, minimum_history=4, **LIMITS),
        streaming_quantile(0.8, 0.1),
        **{"minimum_history": 4, **LIMITS},
    ),
    "relative_to_previous": case(
        thresholds.relative_to_previous(1.2, slowest_decay=0.7, floor=0.3),
        relative_to_previous(1.2, 0.7),
        **{"remember": "clipped", "floor": 0.3},
    ),
    "moment_ratio": case(
        thresholds.moment_ratio(0.7, 0.9),
        moment_ratio(0.7, 0.9),
        include_current=True,
    ),
} | {
    f"zscore-{mode}": case(
        thresholds.zscore(1.5, decay=0.9, warmup=8, mode=mode, factor=0.9),
        zscore(1.5, 0.9, 8, mode, 0.9),
        **{"remember": "target", "minimum_history": 8},
    )
    for mode in ("zscore", "mean", "percentile")
}
for name, factor, q in (("M", 1.0, None), ("1.5M", 1.5, None), ("g99/2", 0.5, 0.99)):
    ONE_EACH[f"warmup_statistic-{name}"] = case(
        thresholds.warmup_statistic(9, factor, quantile=q, **LIMITS),
        quantile(1.0 if q is None else q, factor),
        **{"minimum_history": 9, "learning_steps": 9, **LIMITS},
    )

SWITCHED = {
    "quantile": (partial(thresholds.quantile, 0.9, WINDOW), quantile(0.9)),
    "ema": (partial(thresholds.ema, 0.8, decay=0.9), ema(0.8, 0.9)),
    "mean_plus_std": (
        partial(thresholds.mean_plus_std, WINDOW, 1.0),
        mean_plus_std(1.0),
    ),
    "maximum": (
        partial(thresholds.running_extremum, True, 0.5),
        lambda seen, norm: 0.5 * seen.max(),
    ),
    "minimum": (
        partial(thresholds.running_extremum, False, 2.0),
        lambda seen, norm: 2 * seen.min(),
    ),
}
EVERY_SWITCH = {
    f"{name}-{position}": (make(**switches), statistic, switches)
    for name, (make, statistic) in SWITCHED.items()
    for position, switches in enumerate(SWITCHES)
}
for remember in ("raw", "clipped", "inliers"):
    for limits in ({}, LIMITS):
        switches = {"remember": remember, **limits}
        EVERY_SWITCH[f"zscore-{remember}-{len(limits)}"] = (
            thresholds.zscore(2.0, decay=0.9, warmup=8, **switches),
            zscore(2.0, 0.9, 8, "zscore", 1.0),
            {"minimum_history": 8, **switches},
        )


def check(tested, blocks, dtype, rtol):
    source, statistic, switches = tested
    grads = sequence(dtype)
    norms, found, memory = run(source, blocks, grads)
    np.testing.assert_allclose(norms, measured(blocks.kind, grads), rtol=rtol)
    columns = [replay(statistic, column, **switches) for column in norms.T]
    expected = np.stack([column for column, _ in columns], axis=1)
    # Of a block that is zero today the threshold means nothing.
    is_used = norms > 0
    np.testing.assert_allclose(found[is_used], expected[is_used], rtol=rtol)
    seen = [np.asarray(part).reshape(-1) for part in jax.tree.leaves(memory.seen)]
    assert np.concatenate(seen).tolist() == [count for _, count in columns]
    assert np.isfinite(found[is_used]).any()


@pytest.mark.parametrize("kind", ["whole", "unit", "element"])
@pytest.mark.parametrize("name", ONE_EACH)
def test_source_is_the_oracle(name, kind):
    check(ONE_EACH[name], getattr(granularity, kind)(), jnp.float32, 2e-5)


@pytest.mark.parametrize("name", EVERY_SWITCH | ONE_EACH)
def test_every_switch_leaf_by_leaf(name):
    tested = (EVERY_SWITCH | ONE_EACH)[name]
    check(tested, granularity.leaf(), jnp.bfloat16, 2e-5)


@pytest.mark.parametrize("name", ONE_EACH)
def test_float64(name):
    with jax.enable_x64(True):
        check(ONE_EACH[name], granularity.leaf(), jnp.float64, 1e-11)


@pytest.mark.parametrize("q", [0, 0.1, 0.5, 0.95, 1])
def test_quantile_is_that_of_the_filled_part_of_the_window(q):
    norms = np.asarray(jnp.exp(jax.random.normal(jax.random.key(1), (40,))), "f8")
    clip = clipjax.clip_by(thresholds.quantile(q, 16, include_current=True))
    _, found = jax.lax.scan(
        lambda state, norm: (clip.update(norm, state)[1],) * 2,
        clip.init(jnp.zeros(())),
        jnp.asarray(norms, jnp.float32),
    )
    for step, threshold in enumerate(np.asarray(found.info.threshold)):
        window = norms[max(0, step - 15) : step + 1]
        assert threshold == pytest.approx(np.quantile(window, q), rel=1e-6), step
    # The ring holds the latest sixteen, whatever their order.
    ring = np.asarray(found.threshold.memory)
    np.testing.assert_allclose(np.sort(ring[-1]), np.sort(norms[-16:]), rtol=1e-6)
