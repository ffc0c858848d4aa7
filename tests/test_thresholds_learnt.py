"""Thresholds that learn, against plain NumPy that keeps every norm it has seen."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax import granularity, thresholds

STEPS, BLOCKS, WINDOW = 60, 6, 16
LAYERS = granularity.leaf(stacked=1)


def sequences(dtype=jnp.float32):
    """Makes log-normal norms of several blocks, with spikes, and zeros here and there.

    A block is a layer of one entry, so that its norm is known exactly.
    """
    generator = np.random.default_rng(0)
    norms = np.exp(0.4 * generator.standard_normal((STEPS, BLOCKS)))
    norms *= generator.random(norms.shape) > 0.05
    for block, spike in enumerate((11, 30, 44)):
        norms[[spike, spike + 3], block] *= 50
        norms[spike - 2, block] = 0
    norms[[0, 20], :3] = 0
    signs = generator.choice([-1, 1], norms.shape)
    return (signs * norms).astype(dtype)[..., None]


def run(clip, grads):
    """Runs a clip; gives the thresholds and lengths of every step, and the memory."""
    update, state = jax.jit(clip.update), clip.init(grads[0])
    thresholds, lengths = [], []
    for step in grads:
        updates, state = update(step, state)
        info = state.clip_info
        # For clips of the whole there is one threshold, and no report of blocks.
        is_whole = isinstance(info.block_thresholds, tuple)
        thresholds.append([info.clip_threshold] if is_whole else info.block_thresholds)
        lengths.append(np.linalg.norm(np.asarray(updates, "f8"), axis=-1))
    (memory,) = state.clip_memory.values()
    return np.array(thresholds, "f8"), np.array(lengths), memory


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


def log_mean_plus_std(k, decay):
    def threshold(history, norm):
        logs = np.log(history)
        mean = weighted(logs, decay)
        variance = weighted((logs - mean) ** 2, decay)
        return np.exp(mean + k * max(np.sqrt(variance), 1e-3))

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


LIMITS = {"floor": 1.1, "cap": 2.5}
CASES = {
    "quantile": (
        thresholds.quantile(0.7, WINDOW, factor=1.3),
        *(quantile(0.7, factor=1.3), {}),
    ),
    "ema": (
        thresholds.ema(1.2, decay=0.9),
        *(ema(1.2, 0.9), {"remember": "clipped"}),
    ),
    "mean_plus_std": (
        thresholds.mean_plus_std(WINDOW, 1.5),
        *(mean_plus_std(1.5), {}),
    ),
    "log_mean_plus_std": (
        thresholds.log_mean_plus_std(1.5, decay=0.9, minimum_history=4),
        *(log_mean_plus_std(1.5, 0.9), {"remember": "clipped", "minimum_history": 4}),
    ),
    "log_mean_plus_std-raw": (
        thresholds.log_mean_plus_std(1, decay=0.8, remember="raw", minimum_history=1),
        *(log_mean_plus_std(1, 0.8), {}),
    ),
    "maximum": (
        thresholds.running_extremum(factor=0.5),
        *(lambda seen, norm: 0.5 * seen.max(), {}),
    ),
    "minimum": (
        thresholds.running_extremum(False, 3.0, minimum_history=5, cap=3.0),
        *(lambda seen, norm: 3 * seen.min(), {"minimum_history": 5, "cap": 3.0}),
    ),
    "streaming_quantile": (
        thresholds.streaming_quantile(0.8, 0.1, minimum_history=4, **LIMITS),
        *(streaming_quantile(0.8, 0.1), {"minimum_history": 4, **LIMITS}),
    ),
    "relative_to_previous": (
        thresholds.relative_to_previous(1.2, slowest_decay=0.7, floor=0.3),
        *(relative_to_previous(1.2, 0.7), {"remember": "clipped", "floor": 0.3}),
    ),
    "moment_ratio": (
        thresholds.moment_ratio(0.7, 0.9),
        *(moment_ratio(0.7, 0.9), {"include_current": True}),
    ),
}
for mode in ("zscore", "mean", "percentile"):
    CASES[f"zscore-{mode}"] = (
        thresholds.zscore(1.5, decay=0.9, warmup=8, mode=mode, factor=0.9),
        zscore(1.5, 0.9, 8, mode, 0.9),
        {"remember": "target", "minimum_history": 8},
    )
for remember in ("clipped", "inliers"):
    switches = {"remember": remember, **LIMITS}
    CASES[f"zscore-{remember}"] = (
        thresholds.zscore(2.0, decay=0.9, warmup=8, **switches),
        zscore(2.0, 0.9, 8, "zscore", 1.0),
        {"minimum_history": 8, **switches},
    )
for factor, q in ((1.5, None), (0.5, 0.99)):
    CASES[f"warmup_statistic-{factor}"] = (
        thresholds.warmup_statistic(9, factor, quantile=q, **LIMITS),
        quantile(1.0 if q is None else q, factor),
        {"minimum_history": 9, "learning_steps": 9, **LIMITS},
    )

# When a norm enters, and which, is for all memories alike: each switch in one of two.
SWITCHED = {
    "quantile": (partial(thresholds.quantile, 0.9, WINDOW), quantile(0.9)),
    "ema": (partial(thresholds.ema, 0.8, decay=0.9), ema(0.8, 0.9)),
}
SWITCHES = (
    {},
    {"include_current": True, "minimum_history": 5},
    {"include_current": True, "remember": "clipped", **LIMITS},
    {"remember": "clipped", "minimum_history": WINDOW, **LIMITS},
    {"remember": "target", "floor": 0.5, "minimum_history": 3},
    {"remember": "inliers", "minimum_history": 20, "cap": 3.0},
)
for position, switches in enumerate(SWITCHES):
    name = list(SWITCHED)[position % 2]
    make, statistic = SWITCHED[name]
    CASES[f"{name}-{position}"] = make(**switches), statistic, switches


def check(name, grads, rtol, blocks=LAYERS):
    source, statistic, switches = CASES[name]
    clip = clipjax.clip_by(source, granularity=blocks)
    found, lengths, memory = run(clip, grads)
    norms = np.abs(np.asarray(grads[..., 0], "f8"))
    measured = norms if blocks == LAYERS else np.linalg.norm(norms, axis=1)[:, None]
    columns = [replay(statistic, column, **switches) for column in measured.T]
    expected = np.stack([column for column, _ in columns], axis=1)
    # Of a block that is zero today the threshold means nothing.
    used = measured > 0
    np.testing.assert_allclose(found[used], expected[used], rtol=rtol)
    assert memory.norms_seen.tolist() == [count for _, count in columns]
    assert np.isfinite(found[used]).any() and np.any(measured > expected)
    shares = np.minimum(1, expected / np.where(used, measured, 1))
    rounding = max(rtol, float(jnp.finfo(grads.dtype).eps))
    np.testing.assert_allclose(lengths, norms * shares, rtol=rounding)


@pytest.mark.parametrize("name", CASES)
def test_thresholds_and_updates_are_those_of_the_oracle(name):
    # Bfloat16 for some, whose norms are exact all the same.
    dtype = jnp.bfloat16 if name.startswith("ema") else jnp.float32
    check(name, sequences(dtype), rtol=2e-5)


def test_one_norm_for_the_whole():
    check("zscore-zscore", sequences(), 2e-5, granularity.whole())


@pytest.mark.parametrize(
    "name", ["mean_plus_std", "log_mean_plus_std", "zscore-zscore"]
)
def test_float64(name):
    with jax.enable_x64(True):
        check(name, sequences(np.float64), rtol=1e-11)


@pytest.mark.parametrize("level", [1e-30, 1.0, 1e30])
def test_logarithms_of_a_constant_history_at_any_magnitude(level):
    """A deviation of zero is taken as a thousandth, and units do not matter."""
    source = thresholds.log_mean_plus_std(3.0, minimum_history=2, cap=2e30)
    norms = np.full((5, 1), level, np.float32)
    found, _, _ = run(clipjax.clip_by(source), norms)
    assert found[:2].max() == np.float32(2e30)  # unknown so far: only the cap clips
    np.testing.assert_allclose(found[2:, 0], level * np.exp(0.003), rtol=2e-5)


def test_one_threshold_for_each_unit():
    source = thresholds.warmup_statistic(1)
    clip = clipjax.clip_by(source, granularity=granularity.unit())
    grads = {"a": np.float32([[3, 0], [4, 2]]), "b": np.ones(4, np.float32)}
    update = jax.jit(clip.update)
    _, state = update(grads, clip.init(grads))
    updates, _ = update(jax.tree.map(lambda g: np.float32(9) * g, grads), state)
    np.testing.assert_allclose(np.linalg.norm(updates["a"], axis=0), [5, 2], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(updates["b"]), 2, rtol=1e-6)


def test_quantile_is_that_of_the_filled_part_of_the_window():
    grads = np.exp(np.random.default_rng(1).standard_normal(40, np.float32))
    norms = grads.astype("f8")

    @jax.jit
    def scan(q):
        source = thresholds.quantile(q, 16, include_current=True)
        clip = clipjax.clip_by(source)
        step = lambda state, norm: clip.update(norm, state)[::-1]  # noqa: E731
        return jax.lax.scan(step, clip.init(grads[0]), grads)

    for q in (0, 0.1, 0.5, 0.95, 1):
        state, found = scan(jnp.float32(q))
        for step in range(40):
            window = norms[max(0, step - 15) : step + 1]
            least = min(norms[step], np.quantile(window, q))
            assert found[step] == pytest.approx(least, rel=1e-6), step
        # The ring holds the latest sixteen, whatever their order.
        ring = np.asarray(state.clip_memory["quantile"].norms_kept)
        np.testing.assert_allclose(np.sort(ring[:, 0]), np.sort(norms[-16:]), rtol=1e-6)
    assert scan._cache_size() == 1
