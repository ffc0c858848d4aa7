"""Thresholds that are a multiple of a moving average of norms: spikes and collapse."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import clipjax
from clipjax import thresholds

from ...plotting import plot_lines
from ..options import Positive, Whole
from .arguments import require
from .base import Report, beside

MULTIPLIERS = (0.5, 0.9, 1.0, 1.5)
DECAY = 0.99
# `ema` refuses to average clipped norms with a multiplier of at most 1 unless there is
# a floor; one that is never reached shows why.
NO_FLOOR = 1e-30
SPIKED = {
    "raw norms, k = 2": thresholds.ema(2.0, decay=DECAY, remember="raw"),
    "clipped norms, k = 2": thresholds.ema(2.0, decay=DECAY, remember="clipped"),
    "quantile 0.9": thresholds.quantile(0.9, 200),
}


class Measured(NamedTuple):
    """Averages and thresholds over steps with log-normal norms.

    Attributes:
        multipliers: `(multipliers,)`, the k of a threshold k·average.
        collapse: `(multipliers, seeds, steps)`, `clipjax.thresholds.ema` of clipped
            norms, without a floor.
        plain: `(multipliers, seeds)`, at the end, the average that starts at the first
            norm and has no bias correction.
        floored: `(multipliers, seeds)`, thresholds at the end, with a floor of 0.7.
        means: `(seeds,)`, the mean of the norms.
        spiked: `(sources, seeds, steps)`, thresholds, with one norm of `spike` in the
            middle of the steps.
        sources: `(sources,)`, their names.
    """

    multipliers: np.ndarray
    collapse: np.ndarray
    plain: np.ndarray
    floored: np.ndarray
    means: np.ndarray
    spiked: np.ndarray
    sources: np.ndarray


def measure(*, seeds: int = 20, steps: int = 3000, spike: float = 1e6) -> Measured:
    """Clip norms of mean 1.06 and a spread of 0.35 in their logarithm.

    Args:
        seeds: independent sequences of norms.
        steps: number of steps, at least 100.
        spike: the norm in the middle of the steps of the second experiment.
    """
    require(Whole(), seeds=seeds)
    require(Whole(lowest=100), steps=steps)
    require(Positive(), spike=spike)
    norms = np.exp(0.35 * np.random.default_rng(0).standard_normal((seeds, steps)))
    with_spike = norms.copy()
    with_spike[:, steps // 2] = spike

    def ema(multiplier: float, floor: float) -> thresholds.Threshold:
        return thresholds.ema(multiplier, decay=DECAY, remember="clipped", floor=floor)

    k = np.array(MULTIPLIERS)[:, None, None]
    collapse = _thresholds([ema(m, NO_FLOOR) for m in MULTIPLIERS], norms) / k
    floored = _thresholds([ema(m, 0.7) for m in MULTIPLIERS], norms)
    return Measured(
        np.array(MULTIPLIERS),
        collapse,
        np.stack([_plain(norms, multiplier) for multiplier in MULTIPLIERS]),
        floored[:, :, -1],
        norms.mean(axis=1),
        _thresholds(list(SPIKED.values()), with_spike),
        np.array(list(SPIKED)),
    )


def _thresholds(sources: list[thresholds.Threshold], norms: np.ndarray) -> np.ndarray:
    """The thresholds in force at every step, `(sources, seeds, steps)`."""

    @jax.jit
    @jax.vmap
    def run(norms: jax.Array) -> list[jax.Array]:
        def of(source: thresholds.Threshold) -> jax.Array:
            clip = clipjax.clip_by(source)

            def step(state: Any, norm: jax.Array) -> tuple[Any, Any]:
                state = clip.update(norm, state)[1]
                return state, state.clip_info.clip_threshold

            return jax.lax.scan(step, clip.init(jnp.zeros(())), norms)[1]

        return [of(source) for source in sources]

    return np.asarray(run(jnp.asarray(norms, jnp.float32)))


def _plain(norms: np.ndarray, multiplier: float) -> np.ndarray:
    average = norms[:, 0].copy()
    for norm in norms[:, 1:].T:
        clipped = np.minimum(norm, multiplier * average)
        average += (1 - DECAY) * (clipped - average)
    return average


def report(measured: Measured) -> Report:
    """Averages next to reported ones, and thresholds before and after a spike."""
    multipliers, collapse, plain, floored, means, spiked, sources = measured
    said = ("3e-7", ".046", ".60", "1.07")
    names = [f"k = {k:g}" for k in multipliers]
    middle = spiked.shape[2] // 2
    before, after = spiked[:, :, middle], spiked[:, :, middle + 1]
    raw = (("2.1", None, None), ("2e4", None, None))
    steps = collapse.shape[2]
    tables = [
        beside(
            f"Average of clipped norms after {steps} steps, plain",
            [
                *zip(names, said, plain, strict=True),
                ("mean of the norms", "1.06", means),
            ],
        ),
        beside(
            "The same by thresholds.ema, with bias correction",
            zip(names, said, collapse[:, :, -1], strict=True),
        ),
        beside(
            "Threshold k·average at the end, with a floor of 0.7",
            zip(names, [None] * len(names), floored, strict=True),
        ),
        beside(
            "Threshold before and after one spike",
            [
                (f"{source}, {when}", raw[w][s], table[s])
                for s, source in enumerate(sources)
                for w, (when, table) in enumerate(
                    (("before", before), ("after", after))
                )
            ],
        ),
    ]
    figure = plot_lines(
        {
            **{
                f"clipped norms, {name}": collapse[index, :, 1:]
                for index, name in enumerate(names)
            },
            f"{sources[0]}, one spike": spiked[0, :, 1:],
            f"{sources[1]}, one spike": spiked[1, :, 1:],
        },
        np.arange(1, steps),  # before the first norm there is no threshold
        x_label="step",
        y_label="average, or threshold",
        title="Moving averages of norms as thresholds",
        is_log=(False, True),
    )
    high = (spiked[:, :, middle + 1 :] > 10 * before[:, :, None]).sum(axis=2)
    sunk = [
        n
        for n, row in zip(names, collapse[:, :, -1], strict=True)
        if row.max() < 0.8 * means.min()
    ]
    return Report(
        tables,
        [
            "After one spike the threshold is ten times too high for: "
            + ", ".join(
                f"{row.mean():.0f} steps ({source})"
                for source, row in zip(sources, high, strict=True)
            )
            + ".",
            "Clipped norms pull their own average down for: "
            f"{', '.join(sunk) or 'none'}. Each clip lowers the next threshold; a "
            "multiplier above 1 or a floor "
            "prevents it.",
            "With bias correction the first norms weigh more, so that the average "
            "sinks faster than a plain one that starts at the first norm.",
        ],
        figure,
    )
