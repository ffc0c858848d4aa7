"""The figures of a comparison, each with a description for screen readers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .. import plotting
from . import pages
from .compare import Result
from .summary import Row, window
from .tasks.base import Task
from .verdict import mean_text

CAPTIONS = {
    "loss": "Median over seeds; the band reaches from the lowest to the highest seed. "
    "A cross marks a loss that is not finite.",
    "score": "The first score in the table, on data that training never sees.",
    "norm": "Gradient norms before and after the clip; for clips per example, the "
    "means over the examples. A step is clipped if any part of it was clipped.",
    "ratio": "Norm after over norm before the clip: 1 if the gradient is unchanged.",
    "threshold": "The threshold of each arm at each step.",
}
LEARNED = ("outcome", "loss", "score")


class Drawn(NamedTuple):
    """A figure of a report: its image, its description, and its caption."""

    png: bytes
    alt: str
    caption: str


def draw(
    results: Sequence[Result], rows: Sequence[Row], task: Task
) -> tuple[dict[str, Drawn], list[str]]:
    """Draw the quantities that change during training; put constants into sentences.

    Args:
        results: one per arm.
        rows: their rows of the table, in the same order.
        task: the task.

    Returns:
        The figures by name, and sentences about constant quantities.
    """
    figures = _learned(results, task)
    said = []
    norms = _by_arm(results, "grad_norm_raw")
    limits = _by_arm(results, "threshold")
    alt = _each(
        rows, lambda row: f"{row.label} clipped in {100 * row.clipped.mean():.0f} %"
    )
    figures["norm"] = Drawn(
        pages.to_png(
            plotting.plot_norms(norms, _by_arm(results, "grad_norm_clipped"), limits)
        ),
        f"Gradient norm before and after clipping by step, a panel per arm: {alt}.",
        CAPTIONS["norm"],
    )
    if any((row.ratio != 1).any() for row in rows):
        width = window(results[0].log["loss"].shape[-1])
        ratios = plotting.plot_clip_ratio(_by_arm(results, "clip_ratio"), window=width)
        alt = _each(rows, lambda row: f"{row.label} {np.nanmean(row.ratio):.2g}")
        figures["ratio"] = Drawn(
            pages.to_png(ratios),
            f"Norm after over norm before clipping by step; means: {alt}.",
            CAPTIONS["ratio"],
        )
    else:
        said.append("The clip ratio is 1 throughout: no clip changed any gradient.")
    if all(_is_constant(values) for values in limits.values()):
        each = "; ".join(f"{label}: {_level(one)}" for label, one in limits.items())
        said.append(f"Thresholds, the same at every step: {each}.")
    else:
        alt = ", ".join(f"{label} {_range(one)}" for label, one in limits.items())
        figures["threshold"] = Drawn(
            pages.to_png(plotting.plot_threshold(limits)),
            f"Threshold by step: {alt}.",
            CAPTIONS["threshold"],
        )
    return figures, said


def _learned(results: Sequence[Result], task: Task) -> dict[str, Drawn]:
    figures = {}
    if task.picture is not None:
        arms = {result.label: result.outcome for result in results}
        figures["outcome"] = Drawn(
            pages.to_png(task.picture.draw(arms)),
            f"What was learned with each arm: {', '.join(arms)}.",
            task.picture.caption,
        )
    losses = _by_arm(results, "loss")
    width = window(results[0].log["loss"].shape[-1])
    drawn = plotting.plot_loss(losses, window=width, unit=task.unit)
    figures["loss"] = Drawn(
        pages.to_png(drawn),
        f"Training loss by step, running mean over {width}: {_ends(losses, width)}.",
        CAPTIONS["loss"],
    )
    score = next(iter(results[0].scores))
    per_epoch = task.steps_per_epoch
    scores = {result.label: result.scores[score] for result in results}
    drawn = plotting.plot_lines(
        scores,
        {result.label: result.score_steps / (per_epoch or 1) for result in results},
        x_label="epoch" if per_epoch else "step",
        y_label=score,
        title=f"Along training: {score}",
        is_log=(False, spans_decades(scores.values())),
    )
    alt = f"{score} along training: {_ends(scores, 1)}."
    figures["score"] = Drawn(
        pages.to_png(drawn), alt[0].upper() + alt[1:], CAPTIONS["score"]
    )
    return figures


def _by_arm(results: Sequence[Result], name: str) -> dict[str, np.ndarray]:
    return {result.label: result.log[name] for result in results}


def _each(rows: Sequence[Row], text: Callable[[Row], str]) -> str:
    return ", ".join(map(text, rows))


def _ends(curves: Mapping[str, np.ndarray], width: int) -> str:
    """Describe the first and last value of each curve."""
    return ", ".join(
        f"{label} from {mean_text(rows[:, 0])} to {mean_text(rows[:, -width:])}"
        for label, rows in curves.items()
    )


def _is_constant(values: np.ndarray) -> bool:
    """Return whether values are constant up to rounding; NaN counts as one value."""
    first = np.broadcast_to(values[:1, :1], values.shape)
    return np.allclose(values, first, rtol=1e-6, atol=0, equal_nan=True)


def _level(values: np.ndarray) -> str:
    level = values.flat[0]
    if np.isposinf(level):
        return "no limit"
    return f"{level:.4g}" if np.isfinite(level) else "not a number"


def _range(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "without a limit"
    return f"from {finite.min():.3g} to {finite.max():.3g}"


def spans_decades(arrays: Iterable[np.ndarray]) -> bool:
    """Return whether a linear axis would hide the small ones of positive values."""
    values = np.concatenate([array[np.isfinite(array)] for array in arrays])
    return bool(values.size and values.min() > 0 and values.max() > 20 * values.min())
