"""The files of a comparison: a report, its figures and its numbers."""

import html
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .. import plotting
from . import files, pages
from .compare import Result
from .presets import Settings, Tuning
from .summary import Row, at_best_rate, findings, table, window
from .tasks.base import Task

FIGURES = {
    "loss": "Median over seeds; the band reaches from the lowest to the highest seed. "
    "A cross marks where a seed left the real numbers.",
    "score": "The first score in the table, on data that training never sees.",
    "norm": "The norm that the clip saw and the norm it passed on; where it saw single "
    "examples, the means over these. A step is clipped if anything in it was.",
    "ratio": "1 where the gradient passed unchanged.",
    "threshold": "What each arm allowed.",
}
FILES = (
    "report.html",
    "results.json",
    *(f"{name}.png" for name in FIGURES),
)


def write(
    out: pathlib.Path,
    settings: Settings,
    task: Task,
    results: Sequence[Result],
    rows: Sequence[Row],
    command: str,
) -> None:
    """Write report, results and figures: all of them, or none."""
    best = at_best_rate(rows)
    by_arm = {(result.label, result.learning_rate): result for result in results}
    shown = [by_arm[row.label, row.learning_rate] for row in best]
    figures = _figures(shown, task)
    versions = pages.versions()
    pngs = {f"{name}.png": png for name, png in figures.items()}
    page = _html(settings, task, rows, best, figures, command, versions)
    content = _json(settings, results, rows, command, versions)
    files.write(out, pngs | {"results.json": content, "report.html": page})


def read_finished(out: pathlib.Path, settings: Settings) -> list[Result]:
    """The arms that an earlier run of this comparison has finished.

    Raises:
        ValueError: if there is no such run, or its settings differ in more than the
            arms and their learning rates.
    """
    path = out / "results.json"
    try:
        content = json.loads(path.read_bytes())
        before, arms = content["settings"], list(content["arms"].values())
        results = [_read_arm(arm) for arm in arms]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--resume: {str(path)!r} holds no comparison ({error!r}); "
            "accepted: the --out of an earlier comparison"
        ) from error
    now = files.plain(described(settings))
    for name in now.keys() - {"clips", "lr", "log_every"}:
        if before.get(name) != now[name]:
            raise ValueError(
                f"--resume: {name} was {before.get(name)} in {str(path)!r} and is "
                f"{now[name]} now; accepted: other --clips and --lr alone"
            )
    wanted = [(clip, rate) for clip in settings.clips for rate in settings.lr]
    return [one for one in results if (one.label, one.learning_rate) in wanted]


def _read_arm(arm: dict[str, Any]) -> Result:
    def numbers(values: Any, dtype: type = np.float64) -> np.ndarray:
        return np.asarray(values).astype(dtype)  # "inf" and "nan", too

    summary = arm["summary"]
    return Result(
        label=summary["label"],
        learning_rate=summary["learning_rate"],
        log={name: numbers(rows, np.float32) for name, rows in arm["log"].items()},
        held_out={name: numbers(row) for name, row in summary["held_out"].items()},
        seconds_per_step=numbers(summary["seconds"]),
        score_steps=numbers(arm["score_steps"], np.int64),
        scores={name: numbers(rows) for name, rows in arm["scores"].items()},
        outcome={name: numbers(rows) for name, rows in arm["outcome"].items()},
    )


def _captions(task: Task) -> dict[str, str]:
    """Of every figure, in order: what was learned comes first."""
    picture = {} if task.picture is None else {"outcome": task.picture.caption}
    return picture | FIGURES


def _figures(results: Sequence[Result], task: Task) -> dict[str, bytes]:
    def by_arm(name: str) -> dict[str, np.ndarray]:
        return {result.label: result.log[name] for result in results}

    width = window(results[0].log["loss"].shape[-1])
    raw, clipped = by_arm("grad_norm_raw"), by_arm("grad_norm_clipped")
    threshold = by_arm("threshold")
    figures = {
        "loss": plotting.plot_loss(by_arm("loss"), window=width, unit=task.unit),
        "norm": plotting.plot_norms(raw, clipped, threshold),
        "ratio": plotting.plot_clip_ratio(by_arm("clip_ratio"), window=width),
        "threshold": plotting.plot_threshold(threshold),
    }
    score = next(iter(results[0].scores))
    per_epoch = task.steps_per_epoch
    scores = {result.label: result.scores[score] for result in results}
    figures["score"] = plotting.plot_lines(
        scores,
        {result.label: result.score_steps / (per_epoch or 1) for result in results},
        x_label="epoch" if per_epoch else "step",
        y_label=score,
        title=f"Along training: {score}",
        is_log=(False, _spans_decades(scores.values())),
    )
    if task.picture is not None:
        figures["outcome"] = task.picture.draw(
            {result.label: result.outcome for result in results}
        )
    return {name: pages.to_png(figure) for name, figure in figures.items()}


def _spans_decades(arrays: Iterable[np.ndarray]) -> bool:
    """Whether a linear axis would hide the small ones of positive values."""
    values = np.concatenate([array[np.isfinite(array)] for array in arrays])
    return bool(values.size and values.min() > 0 and values.max() > 20 * values.min())


def described(settings: Settings | Tuning) -> dict[str, Any]:
    """The settings as a dictionary."""
    return vars(settings) | {"model": vars(settings.model)}


def _json(
    settings: Settings,
    results: Sequence[Result],
    rows: Sequence[Row],
    command: str,
    versions: dict[str, str],
) -> bytes:
    content = {
        "command": command,
        "versions": versions,
        "settings": described(settings),
        "note": "One entry per seed. Values that are not finite are the texts "
        "'inf', '-inf' and 'nan'. 'log' has one list of steps per seed, 'scores' one "
        "of held-out scores after each of 'score_steps'.",
        "arms": {
            name_of(row, settings): {
                "summary": vars(row),
                "log": result.log,
                "score_steps": result.score_steps,
                "scores": result.scores,
                "outcome": result.outcome,
            }
            for row, result in zip(rows, results, strict=True)
        },
    }
    return files.to_json(content)


def name_of(row: Row, settings: Settings) -> str:
    """The clip, and where there are several learning rates, which one."""
    return (
        row.label if len(settings.lr) == 1 else f"{row.label} @ {row.learning_rate:g}"
    )


def _html(
    settings: Settings,
    task: Task,
    rows: Sequence[Row],
    best: Sequence[Row],
    figures: dict[str, bytes],
    command: str,
    versions: dict[str, str],
) -> bytes:
    name = settings.task
    model = {
        key: value for key, value in vars(settings.model).items() if value is not None
    }
    setup = ", ".join(f"{key} {value}" for key, value in model.items())
    places = "".join(
        f"<br>\n{place}@: {html.escape(meaning)}"
        for place, meaning in settings.model.places.items()
    )
    where = f"<p>Where a clip can stand:{places}</p>\n" if places else ""
    images = "\n".join(
        pages.figure(title, figures[title], caption)
        for title, caption in _captions(task).items()
    )
    used = ", ".join(f"{key} {value}" for key, value in versions.items())
    rates = " or ".join(f"{rate:g}" for rate in settings.lr)
    every = pages.table(*table(rows))
    tables = f"<h2>Table</h2>\n{every}"
    if len(settings.lr) > 1:
        tables = (
            "<h2>Each arm at its own best learning rate</h2>\n"
            f"{pages.table(*table(best))}\n"
            f"<h2>Every arm at every learning rate</h2>\n{every}"
        )
    own = (
        "<p>Each arm at its own best learning rate.</p>" if len(settings.lr) > 1 else ""
    )
    diverged = "its loss is not finite somewhere"
    if task.goal.must_fall:
        diverged += (
            " or if the mean of its last 5 % of losses is above its loss at step 0"
        )
    body = f"""<h1>{name.upper()} with and without clipping</h1>
<p>{html.escape(task.source)}. Model: {html.escape(setup)}.
{settings.steps} steps of {html.escape(settings.optimizer)} at learning rate
{rates}, seeds per arm: {settings.seeds}.</p>
{where}<pre>{html.escape(command)}</pre>
<h2>What is seen</h2>
<p>{html.escape(" ".join(findings(best, settings.lr)))}</p>
{tables}
<p class="note">Mean ± sample standard deviation over seeds. Losses are in
{html.escape(task.unit)}, final and best ones smoothed over
{window(settings.steps)} steps. A seed has diverged if {diverged}. The median norm is
that of the gradient before clipping; the time per step leaves out compilation.</p>
<h2>Figures</h2>
{own}
{images}
<p class="note">{html.escape(used)}</p>"""
    return pages.page(f"clipjax: {name} with and without clipping", body)
