"""The results of `clipjax private`, as a table, sentences, figures and a page."""

import dataclasses
import html
import pathlib
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from clipjax import privacy

from ... import plotting
from .. import files, pages
from ..summary import spread
from .mechanism import Cost
from .settings import Private
from .train import ABOVE, CLIPPED, NOT_PRIVATE, PLAIN, SCORES, Arm, Run, Trainer

FIGURES = {
    "epsilon": "Accuracy on the held-out images against the ε spent so far, at the δ "
    "above. The gray line is the final accuracy of the plain run.",
    "accuracy": "The same along training, with both runs that promise nothing.",
    "norms": "Quantiles over the images of each step, and the threshold as a gray "
    "line. They come from single images without noise: they are not private, and the "
    "guarantee does not cover them.",
}
FILES = ("report.html", "results.json", *(f"{name}.png" for name in FIGURES))
MEANING = (
    "ε limits what the parameters reveal about any one image: the odds that it was "
    "used change by a factor of e^ε at most, which is 2.7 at ε = 1, 20 at 3 and "
    "2981 at 8, apart from an exception of probability δ."
)
LIMITS = (
    "The guarantee covers the parameters, of all steps together. Losses, norms, "
    "fractions of images, the samples of steps and the files in runs/ are computed "
    "from single images without noise: they are not private.",
    "The guarantee covers the release of one of these models, whose batches and noise "
    "are secret. Here both follow from the seed, so that runs can be repeated: whoever "
    "knows the seed can subtract the noise. With private data, draw the key from "
    "secret random bits, and never use it for another run.",
    "The settings were fixed beforehand, on public data. Choosing them by results on "
    "private data costs privacy as well, in addition to ε.",
    "The held-out images are public here. Accuracy on private images is private.",
    "The guarantee is for one image. It is weaker for a person with many images, and "
    "does not hide facts that many of the images show.",
    "It is proved for real numbers: attacks on the rounding of the noise are not "
    "covered.",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """The results of a finished arm; arrays have an entry for each seed.

    Attributes:
        arm: the arm.
        guarantee: the privacy guarantee; None for arms without one.
        accuracy: accuracy on the held-out images.
        loss: mean loss on the held-out images.
        above: the mean fraction of images above the threshold, which is not private.
        curves: the curves of the runs, each of shape `(seeds, points)`.
        cost: the time and memory of a step.
    """

    arm: Arm
    guarantee: privacy.Guarantee | None
    accuracy: np.ndarray
    loss: np.ndarray
    above: np.ndarray
    curves: dict[str, np.ndarray]
    cost: Cost


@dataclasses.dataclass(frozen=True)
class Results:
    """The rows of all arms, and the settings that they share."""

    settings: Private
    rows: Sequence[Row]
    examples: int
    steps: int
    sampling_rate: float
    sensitivity: float
    batch_in_memory: int

    @property
    def title(self) -> str:
        """Of the table."""
        settings = self.settings
        return (
            f"{settings.model}, {settings.optimizer} at learning rate {settings.lr:g} "
            f"({PLAIN}: {settings.plain_lr:g}), {self.steps} steps of "
            f"{settings.batch} images expected of {self.examples:,}, seeds per run: "
            f"{settings.seeds}"
        )

    def row(self, label: str) -> Row:
        """Return the row of an arm."""
        return next(row for row in self.rows if row.arm.label == label)

    @property
    def private(self) -> list[Row]:
        """The rows with a privacy guarantee."""
        return [row for row in self.rows if row.guarantee]


def gather(trainer: Trainer, runs: Sequence[Run], costs: dict[bool, Cost]) -> Results:
    """Return one row per arm from finished runs."""
    rows = []
    for arm in trainer.arms:
        own = [run.curves for run in runs if run.arm == arm]
        curves = {name: np.array([each[name] for each in own]) for name in own[0]}
        rows.append(
            Row(
                arm,
                trainer.guarantee(arm, trainer.steps) if arm.epsilon else None,
                curves["accuracy"][:, -1],
                curves["held-out loss"][:, -1],
                np.nanmean(curves[ABOVE], axis=1),
                curves,
                costs[arm.is_clipped],
            )
        )
    mechanism = trainer.mechanism
    return Results(
        trainer.settings,
        rows,
        mechanism.examples,
        trainer.steps,
        mechanism.sampling_rate,
        float(mechanism.sensitivity),
        mechanism.batch_in_memory,
    )


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table, as text."""
    header = ["run", "ε", "noise multiplier", "accuracy", "held-out loss"]
    header += ["above threshold (not private)", "time per step", "temporary memory"]
    cells = [
        [
            row.arm.label,
            f"{row.guarantee.epsilon:.3f}" if row.guarantee else "no promise",
            f"{row.arm.noise_multiplier:.3f}" if row.arm.is_clipped else "-",
            spread(row.accuracy, 3),
            spread(row.loss, 3),
            spread(100 * row.above, 0, " %") if row.arm.is_clipped else "-",
            f"{1e3 * row.cost.seconds:.1f} ms",
            f"{row.cost.memory / 2**20:.1f} MiB",
        ]
        for row in results.rows
    ]
    return header, cells


def promises(results: Results) -> list[str]:
    """Return the full statement of the guarantee for each ε, with the accuracy."""
    return [
        f"Promised: {row.guarantee}. Accuracy: {spread(row.accuracy, 3)}."
        for row in results.private
    ]


def findings(results: Results) -> list[str]:
    """Return sentences on the cost of privacy: accuracy, time and memory."""
    settings = results.settings
    plain, clipped = results.row(PLAIN), results.row(CLIPPED)
    said = [headline(results)]
    said.append(
        f"Accuracy without a guarantee: {spread(plain.accuracy, 3)} of the plain run, "
        f"{spread(clipped.accuracy, 3)} with the clip and without noise."
    )
    cost = clipped.cost
    said.append(
        f"A private step takes {cost.seconds / plain.cost.seconds:.2f} times the time "
        f"and {cost.memory / max(plain.cost.memory, 1):.2f} times the temporary memory "
        "of a plain one."
    )
    if settings.delta >= 1 / results.examples:
        said.append(
            f"δ = {settings.delta:g} is not below 1/{results.examples}: a mechanism "
            "that publishes one image at random would satisfy this guarantee. Choose "
            "a smaller --delta."
        )
    return said


def headline(results: Results) -> str:
    """Return the accuracy at each ε against that of the plain run, in one sentence."""
    arms = ", ".join(
        f"{row.accuracy.mean():.3f} at ε = {row.guarantee.epsilon:.2f}"
        for row in results.private
        if row.guarantee
    )
    plain = results.row(PLAIN).accuracy.mean()
    delta = results.settings.delta
    return f"Accuracy {arms} (δ = {delta:g}), against {plain:.3f} without privacy."


def _alts(results: Results) -> dict[str, str]:
    """Return a description of each figure, for screen readers."""
    ends = ", ".join(
        f"{row.arm.label} {row.accuracy.mean():.3f}" for row in results.rows
    )
    shown = results.private[-1]
    return {
        "epsilon": "Held-out accuracy against the ε spent so far, a line for each ε "
        f"that was promised; {headline(results)}",
        "accuracy": f"Held-out accuracy by epoch; at the end: {ends}.",
        "norms": f"Quantiles of the gradient norms of single images by step, "
        f"{shown.arm.label}; {spread(100 * shown.above, 0, ' %')} are above the "
        f"threshold of {results.settings.clip:g}.",
    }


def _figures(results: Results) -> dict[str, bytes]:
    by_label = {row.arm.label: row.curves for row in results.rows}
    private = {row.arm.label: row.curves for row in results.private}
    per_epoch = results.examples / results.settings.batch
    drawn = {
        "epsilon": plotting.plot_lines(
            {label: curves["accuracy"] for label, curves in private.items()},
            {label: curves["epsilon"][0] for label, curves in private.items()},
            x_label=f"ε so far, at δ = {results.settings.delta:g}",
            y_label="accuracy",
            title="Accuracy against ε (gray: the plain run)",
            level=float(results.row(PLAIN).accuracy.mean()),
        ),
        "accuracy": plotting.plot_lines(
            {label: curves["accuracy"] for label, curves in by_label.items()},
            {
                label: curves["step"][0] / per_epoch
                for label, curves in by_label.items()
            },
            x_label="epoch (expected)",
            y_label="accuracy",
            title="Along training",
        ),
    }
    shown = results.private[-1]
    drawn["norms"] = plotting.plot_lines(
        {
            f"{name.removeprefix('norm ')} of the images below": shown.curves[name]
            for name in NOT_PRIVATE
            if name.startswith("norm")
        },
        x_label="step",
        y_label="gradient norm of an image",
        title=f"Not private: norms of single images, {shown.arm.label} (grey: the "
        "threshold)",
        is_log=(False, True),
        level=results.settings.clip,
    )
    return {name: pages.to_png(figure) for name, figure in drawn.items()}


def described(results: Results, command: str, versions: dict[str, str]) -> bytes:
    """Return all numbers as JSON."""

    def of(row: Row) -> dict[str, Any]:
        return {
            "guarantee": row.guarantee and row.guarantee._asdict(),
            "statement": row.guarantee and str(row.guarantee),
            "noise_multiplier": row.arm.noise_multiplier,
            "accuracy": row.accuracy,
            "held_out_loss": row.loss,
            "seconds_per_step": row.cost.seconds,
            "temporary_memory_bytes": row.cost.memory,
            "along_training": {name: row.curves[name] for name in SCORES},
            "not_private": {name: row.curves[name] for name in NOT_PRIVATE},
        }

    content = {
        "command": command,
        "versions": versions,
        "settings": vars(results.settings),
        "examples": results.examples,
        "steps": results.steps,
        "sampling_rate": results.sampling_rate,
        "sensitivity": results.sensitivity,
        "images_at_a_time": results.batch_in_memory,
        "note": "One entry per seed. 'not_private' is computed from single images "
        "without noise.",
        "runs": {row.arm.label: of(row) for row in results.rows},
    }
    return files.to_json(content)


def write(out: pathlib.Path, results: Results, source: str, command: str) -> None:
    """Write report, results and figures: all of them, or none."""
    versions = pages.versions()
    versions["dp_accounting"] = metadata.version("dp-accounting")
    pngs = _figures(results)
    alts = _alts(results)
    promised = "".join(f"<p>{html.escape(text)}</p>\n" for text in promises(results))
    limits = "".join(f"<li>{html.escape(text)}</li>\n" for text in LIMITS)
    images = pages.figures(
        pages.figure(alts[name], pngs[name], caption)
        for name, caption in FIGURES.items()
    )
    used = ", ".join(f"{key} {value}" for key, value in versions.items())
    settings = results.settings
    body = f"""<h1>Private training</h1>
{pages.verdict(findings(results))}
<h2>What is promised</h2>
{promised}<p>{MEANING}</p>
{pages.table(*table(results))}
<p class="note">Mean ± sample standard deviation over seeds. Time per step is the median
of interleaved private and plain steps, without compilation and for
{results.batch_in_memory} images at a time; temporary memory is the compiled step's
memory besides its arguments and results.</p>
<h2>What is not promised</h2>
<ul>
{limits}</ul>
<p>More in clipjax's documentation: <code>docs/privacy.md</code>.</p>
<h2>How</h2>
<p>{html.escape(source)}. {html.escape(results.title)}. Every image is in a step
with probability {results.sampling_rate:g}, independently; its gradient is clipped at
{settings.clip:g} by the rule {html.escape(settings.rule)}; the sum, divided by
{settings.batch}, has sensitivity {results.sensitivity:g} under {settings.relation}.</p>
<pre>{html.escape(command)}</pre>
<h2>Figures</h2>
{images}
<p class="note">{html.escape(used)}</p>"""
    page = pages.page("clipjax: private training", body)
    content = described(results, command, versions)
    written = {f"{name}.png": png for name, png in pngs.items()}
    files.write(out, written | {"results.json": content, "report.html": page})
