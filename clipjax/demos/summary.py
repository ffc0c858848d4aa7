"""The summary of a comparison: the rows of its table, and notes."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ..plotting import running_mean
from .arms import is_unclipped
from .compare import Result
from .tasks.base import LOSS, Goal


def window(steps: int) -> int:
    """Return the length of the running mean of the loss: 5 % of the run, at least 1."""
    return max(1, steps // 20)


def diverged(losses: np.ndarray, *, must_fall: bool = True) -> np.ndarray:
    """Return which seeds diverged.

    A seed has diverged if its loss is not finite somewhere, or, where a loss must fall,
    if the mean of its last 5 % of losses is above its loss at step 0.
    """
    finite = np.asarray(np.isfinite(losses).all(axis=-1))
    if not must_fall:
        return ~finite
    last = losses[..., -window(losses.shape[-1]) :].mean(axis=-1)
    return ~finite | (last > losses[..., 0])


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm; arrays have one entry per seed and may hold values that are not finite.

    Attributes:
        label: the clip.
        learning_rate: the learning rate.
        first: loss at step 0.
        final: smoothed loss at the end.
        best: lowest smoothed loss.
        held_out: scores on held-out data by name.
        diverged: which seeds diverged.
        clipped: fraction of the steps in which the clip changed the gradient.
        share: mean over the steps of the fraction of clipped blocks, or of clipped
            examples for clips per example.
        ratio: mean of norm after over norm before.
        norm: median of the finite norms before clipping.
        seconds: time per step.
        goal: the criterion that arms are ranked by.
    """

    label: str
    learning_rate: float
    first: np.ndarray
    final: np.ndarray
    best: np.ndarray
    held_out: dict[str, np.ndarray]
    diverged: np.ndarray
    clipped: np.ndarray
    share: np.ndarray
    ratio: np.ndarray
    norm: np.ndarray
    seconds: np.ndarray
    goal: Goal = LOSS

    @property
    def rank(self) -> np.ndarray:
        """The values that arms are ranked by, one per seed; lower is better."""
        name, is_lowest_best, _ = self.goal
        reached = self.final if name == "loss" else self.held_out[name]
        return reached if is_lowest_best else -reached


def _over_finite(reduce, values: np.ndarray) -> np.ndarray:
    """Reduce each row over its finite values; NaN where there are none."""
    rows = [row[np.isfinite(row)] for row in values]
    return np.array([reduce(row) if row.size else np.nan for row in rows])


def summarise(result: Result, goal: Goal = LOSS) -> Row:
    """Return the numbers of one arm; `goal` is that of its task."""
    losses = result.log["loss"]
    width = window(losses.shape[-1])
    smoothed = running_mean(losses, width)[:, width - 1 :]
    return Row(
        label=result.label,
        learning_rate=result.learning_rate,
        first=losses[:, 0],
        final=smoothed[:, -1],
        best=_over_finite(np.min, smoothed),
        held_out=result.held_out,
        diverged=diverged(losses, must_fall=goal.must_fall),
        clipped=(result.log["clipped_fraction"] > 0).mean(axis=-1),
        share=result.log["clipped_fraction"].mean(axis=-1),
        ratio=_over_finite(np.mean, result.log["clip_ratio"]),
        norm=_over_finite(np.median, result.log["grad_norm_raw"]),
        seconds=result.seconds_per_step,
        goal=goal,
    )


def at_best_rate(rows: Sequence[Row]) -> list[Row]:
    """Return one row per clip: that of the learning rate with the best mean rank.

    A learning rate at which fewer seeds diverge comes first.
    """

    def badness(row: Row) -> tuple[int, float]:
        rank = float(row.rank.mean())
        return int(row.diverged.sum()), rank if np.isfinite(rank) else math.inf

    by_label: dict[str, Row] = {}
    for row in rows:
        best = by_label.setdefault(row.label, row)
        if badness(row) < badness(best):
            by_label[row.label] = row
    return list(by_label.values())


def spread(values: np.ndarray, decimals: int | None = None, unit: str = "") -> str:
    """Format mean ± sample standard deviation over seeds, or the non-finite count.

    Without `decimals`, show three significant digits of the mean.
    """
    bad = int((~np.isfinite(values)).sum())
    if bad:
        return f"not finite ({bad} of {len(values)})"
    mean = values.mean()
    if decimals is None:
        decimals = 2 - math.floor(math.log10(abs(mean))) if mean else 2
    form = f".{decimals}f" if 0 <= decimals <= 6 and abs(mean) < 1e6 else ".2e"
    text = f"{mean:{form}}"
    if len(values) > 1:
        text += f" ± {values.std(ddof=1):{form}}"
    return text + unit


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table, as text."""
    scores = list(rows[0].held_out)
    rates = ["rate"] if len({row.learning_rate for row in rows}) > 1 else []
    header = ["clip", *rates, "final loss", "best loss", *scores]
    header += ["diverged", "steps clipped", "median norm", "time per step"]
    cells = [
        [
            row.label,
            *(f"{row.learning_rate:g}" for _ in rates),
            spread(row.final, 3),
            spread(row.best, 3),
            *(spread(row.held_out[score], 3) for score in scores),
            f"{row.diverged.sum()} of {len(row.diverged)}",
            spread(100 * row.clipped, 0, " %"),
            spread(row.norm),
            spread(1e3 * row.seconds, 1, " ms"),
        ]
        for row in rows
    ]
    return header, cells


def findings(rows: Sequence[Row], rates: Sequence[float] = ()) -> list[str]:
    """Return notes on the results and on the conclusions that they do not support.

    Args:
        rows: one row per clip.
        rates: the learning rates that each clip had to choose from.
    """
    said = []
    for row in rows:
        if is_unclipped(row.label):
            continue
        if not row.clipped.any():
            # Elsewhere than before the optimizer, more may differ than the clip.
            curve = "" if "@" in row.label else "its curve is the unclipped one up to "
            curve += "rounding, and " if curve else ""
            said.append(
                f"{row.label!r} never acted: {curve}its threshold is above every norm "
                "that it saw."
            )
        elif row.share.mean() > 0.99 and np.nanmean(row.ratio) < 0.5:
            said.append(
                f"{row.label!r} clipped practically every gradient, to "
                f"{100 * np.nanmean(row.ratio):.2g} % of its norm on average: it sets "
                "the length of the steps rather than catching rare spikes."
            )
    if len(rates) > 1:
        said += _edges(rows, rates)
    elif not any(row.diverged.any() for row in rows) and rows[0].goal.must_fall:
        said.append(
            "At this learning rate training is stable without help from a clip."
            if any(is_unclipped(row.label) for row in rows)
            else "No arm trains without a clip: whether one was needed is not seen."
        )
    seeds = len(rows[0].final)
    few = "one seed" if seeds == 1 else f"{seeds} seeds"
    settled = f"Differences as small as the spread are not settled by {few}."
    if len(rows) > 1 and len(rates) > 1:
        said.append(
            "Each arm has the learning rate, of those tried, at which it ended best "
            "on the same seeds, which flatters all of them alike; initial parameters "
            f"and the order of the batches are shared. {settled}"
        )
    elif len(rows) > 1:
        said.append(
            "All arms share one learning rate, the initial parameters and the order "
            "of the batches. This shows what clipping does at this learning rate, not "
            "which method is best when each has its own learning rate, which --lr with "
            f"several numbers shows. {settled}"
        )
    return said


def _edges(rows: Sequence[Row], rates: Sequence[float]) -> list[str]:
    """Name each arm's best learning rate, and whether the range should be extended."""
    said = []
    for row in rows:
        beyond = {max(rates): "higher", min(rates): "lower"}.get(row.learning_rate)
        hint = f", the last one tried: try a {beyond} one" if beyond else ""
        said.append(f"{row.label!r} is best at {row.learning_rate:g}{hint}.")
    return said
