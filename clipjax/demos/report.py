"""The files of a comparison: a report, its figures and its numbers."""

import html
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import files, pages
from .compare import Result
from .presets import Settings, Tuning
from .report_figures import CAPTIONS, LEARNED, Drawn, draw
from .summary import Row, at_best_rate, findings, table, window
from .tasks.base import Task
from .verdict import verdict

FILES = ("report.html", "results.json")
FIGURES = tuple(f"{name}.png" for name in ("outcome", *CAPTIONS))


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
    figures, constants = draw(shown, best, task)
    versions = pages.versions()
    said = verdict(rows, task.unit)
    page = _html(settings, task, rows, said, figures, constants, command, versions)
    content = _json(settings, results, rows, said, command, versions)
    written = {f"{name}.png": figure.png for name, figure in figures.items()}
    written |= {"results.json": content, "report.html": page}
    # Remove the figures of an earlier run: they would be mistaken for this run's.
    files.write(out, written, remove=FIGURES)


def read_finished(out: pathlib.Path, settings: Settings) -> list[Result]:
    """Return the arms that an earlier run of this comparison has finished.

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


def described(settings: Settings | Tuning) -> dict[str, Any]:
    """Return the settings as a dictionary."""
    return vars(settings) | {"model": vars(settings.model)}


def _json(
    settings: Settings,
    results: Sequence[Result],
    rows: Sequence[Row],
    said: Sequence[str],
    command: str,
    versions: dict[str, str],
) -> bytes:
    content = {
        "command": command,
        "verdict": said,
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
    """Return an arm's name: its clip and, if there are several, its learning rate."""
    return (
        row.label if len(settings.lr) == 1 else f"{row.label} @ {row.learning_rate:g}"
    )


def _html(
    settings: Settings,
    task: Task,
    rows: Sequence[Row],
    said: Sequence[str],
    figures: Mapping[str, Drawn],
    constants: Sequence[str],
    command: str,
    versions: dict[str, str],
) -> bytes:
    best = at_best_rate(rows)
    several = len(settings.lr) > 1
    own = "<p>Each arm at its own best learning rate.</p>\n" if several else ""
    every = (
        f"<h2>Every arm at every learning rate</h2>\n{pages.table(*table(rows))}\n"
        if several
        else ""
    )

    def shown(names: Iterable[str]) -> str:
        return pages.figures(
            pages.figure(figures[name].alt, figures[name].png, figures[name].caption)
            for name in names
            if name in figures
        )

    said_constants = "".join(f"<p>{html.escape(text)}</p>\n" for text in constants)
    notes = "".join(
        f"<li>{html.escape(text)}</li>\n" for text in findings(best, settings.lr)
    )
    body = f"""<h1>{settings.task.upper()} with and without clipping</h1>
{pages.verdict(said)}
<h2>What was learned</h2>
{own}{shown(LEARNED)}
<h2>Numbers</h2>
{own}{pages.table(*table(best))}
<p class="note">{html.escape(_meaning(settings, task))}</p>
{every}<h2>What the clip did</h2>
{said_constants}{shown(name for name in CAPTIONS if name not in LEARNED)}
<h2>What this shows, and what it does not</h2>
<ul>
{notes}</ul>
<h2>Setup</h2>
{_setup(settings, task)}
<pre>{html.escape(command)}</pre>
<p class="note">{html.escape(", ".join(map(" ".join, versions.items())))}</p>"""
    return pages.page(f"clipjax: {settings.task} with and without clipping", body)


def _meaning(settings: Settings, task: Task) -> str:
    """Explain the columns of the table."""
    diverged = "its loss is not finite somewhere"
    if task.goal.must_fall:
        diverged += " or the mean of its last 5 % of losses is above its loss at step 0"
    return (
        f"Mean ± sample standard deviation over seeds. Losses are in {task.unit}, "
        f"final and best ones smoothed over {window(settings.steps)} steps. A seed has "
        f"diverged if {diverged}. The median norm is that of the gradient before "
        "clipping; the time per step leaves out compilation."
    )


def _setup(settings: Settings, task: Task) -> str:
    """Describe data, model, optimizer and places of the clip."""
    model = ", ".join(
        f"{key} {value}"
        for key, value in vars(settings.model).items()
        if value is not None
    )
    rates = " or ".join(f"{rate:g}" for rate in settings.lr)
    text = (
        f"{task.source}. Model: {model}. {settings.steps} steps of "
        f"{settings.optimizer} at learning rate {rates}, seeds per arm: "
        f"{settings.seeds}."
    )
    places = "".join(
        f"<br>\n{place}@: {html.escape(meaning)}"
        for place, meaning in settings.model.places.items()
    )
    where = f"\n<p>Where a clip can stand:{places}</p>" if places else ""
    return f"<p>{html.escape(text)}</p>{where}"
