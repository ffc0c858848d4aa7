"""The tables of docs/atlas.md."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..options import table
from .arms import TIGHTENED, TIGHTER, UNCLIPPED
from .conditions import NAMES
from .estimates import Estimate, ranked
from .summary import SIMPLEST, TIGHT, Atlas, Cell, methods
from .tasks import tasks

PLACES = {
    "before": "before the optimizer",
    "around": "around the optimizer",
    "instead": "in place of the optimizer",
    "after": "after the optimizer, before the learning rate",
    "last": "last, after the learning rate",
}


def link(name: str) -> str:
    """Return a clip's name, linked to the page of its recipe."""
    return f"[`{name}`](methods/{TIGHTENED.get(name, name)}.md)"


def signed(estimate: Estimate, digits: int = 2) -> str:
    """Return a difference and half of its interval."""
    mean = round(estimate.mean, digits) + 0.0  # no negative zero
    return f"{mean:+.{digits}f} ± {estimate.half:.{digits}f}"


def interval(samples: np.ndarray) -> str:
    """Return a mean over seeds and half of its interval."""
    mean, half, _ = Estimate.of([samples])
    return f"{mean:#.3g} ± {half:#.2g}"


def overview(atlas: Atlas) -> str:
    """Return one row for each method, averaged over the tasks."""
    spikes = {
        name: Estimate.of([atlas.score(task, name, "spikes") for task in atlas.tasks])
        for name in [UNCLIPPED, *methods()]
    }
    rows = []
    for name in ranked(spikes):
        is_method = name != UNCLIPPED
        row = [link(name) if is_method else "no clip", f"{spikes[name].mean:.2f}"]
        row.append(f"{atlas.average(name, 'spikes', 'survived'):.1f}")
        for condition in ("clean", "bad batches", "label noise"):
            row.append(signed(atlas.helps(name, condition)) if is_method else "0")
        row.append(signed(atlas.widens(name), 1) if is_method else "0")
        row += [f"{100 * atlas.clipped(name):.0f} %", f"{atlas.cost(name):.2f}"]
        rows.append(row)
    header = [
        *("method", "spikes: score", "survived of 4", "clean", "bad batches"),
        *("label noise", "decades of rates", "clipped", "operations"),
    ]
    return table(header, rows)


def retuned(atlas: Atlas) -> str:
    """Return differences of scores where the rate is tuned under each condition."""
    rows = [
        [link(name), *(signed(atlas.helps(name, one, own=True)) for one in NAMES[1:])]
        for name in ranked(
            {name: atlas.helps(name, "spikes", True) for name in methods()}
        )
    ]
    return table(["method", *NAMES[1:]], rows)


def of_task(atlas: Atlas, task: str) -> str:
    """Return one row for each arm of a task."""
    cells = atlas.cells[task]
    names = sorted(cells, key=lambda name: cells[name].reported("clean").mean())
    header = [
        *("method", "final loss", "best loss", "steps to the target"),
        *("spikes", "survived", "bad batches", "label noise", "clipped", "decades"),
    ]
    if tasks()[task].modes is not None:
        header.append("modes")
    rows = []
    for name in names:
        cell = cells[name]
        row = [f"`{name}`" if name.startswith(UNCLIPPED) else link(name)]
        row += [interval(cell.reported("clean"))]
        row += [interval(cell.numbers("clean", "best")), reached(cell)]
        row.append(interval(cell.reported("spikes")))
        row.append(f"{cell.numbers('spikes', 'survived').mean():.1f}")
        row += [interval(cell.reported(condition)) for condition in NAMES[2:]]
        clipped = cell.content["clean"]["clipped"][cell.best_rate("clean")]
        row.append(f"{100 * clipped:.0f} %")
        row.append(f"{atlas.width(task, name, 'clean').mean():.1f}")
        if "modes" in cell.content["clean"]:
            row.append(f"{cell.numbers('clean', 'modes').mean():.1f}")
        rows.append(row)
    return table(header, rows)


def reached(cell: Cell) -> str:
    """Return the median step at which the target was reached, and how often it was."""
    steps = cell.numbers("clean", "steps")
    good = steps[steps >= 0]
    if not len(good):
        return "never"
    often = "" if len(good) == len(steps) else f" ({len(good)} of {len(steps)} seeds)"
    return f"{np.median(good):.0f}{often}"


def worded(value: Any, thresholds: dict[str, Any], steps: int) -> str:
    """Return an argument, or the name of the measurement that it is a quantile of."""
    if value == steps:
        return "steps"
    for name, measured in thresholds.items():
        if name == "typical leaf norm":
            continue
        if value == measured:
            return f"q({name})"
        if isinstance(measured, float) and value == measured / TIGHTER:
            return f"q({name}) / {TIGHTER}"
        if isinstance(measured, float) and value in (1e-4 * measured, 1 / measured):
            return f"0.0001 q({name})" if value < measured else f"1 / q({name})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def arguments(atlas: Atlas) -> str:
    """Return a table of places and arguments, by method."""
    rows = []
    for name in methods():
        found: dict[tuple[str, str, str], list[str]] = {}
        for task in atlas.tasks:
            arm = atlas.cells[task][name].content["arm"]
            given = {k: v for k, v in arm["arguments"].items() if k != "labels"}
            values = {
                key: worded(value, atlas.pilots[task], tasks()[task].steps)
                for key, value in given.items()
            }
            words = ", ".join(f"{key} = {value}" for key, value in values.items())
            key = PLACES[arm["place"]], words or "defaults", arm["family"]
            found.setdefault(key, []).append(task)
        for (place, words, family), where in found.items():
            named = "all" if len(where) == len(atlas.tasks) else ", ".join(where)
            optimizer = "SGD" if family == "sgd" else "Adam"
            rows.append([link(name), place, words, optimizer, named])
    return table(["method", "place", "arguments", "optimizer", "tasks"], rows)


def thresholds(atlas: Atlas) -> str:
    """Return the measured quantiles, by task."""
    names = [
        name
        for name, value in next(iter(atlas.pilots.values())).items()
        if isinstance(value, float)
    ]
    rows = [
        [task, *(f"{pilot[name]:.3g}" for name in names)]
        for task, pilot in atlas.pilots.items()
    ]
    return table(["q", *names], rows)


def starred(atlas: Atlas, other: str, condition: str, name: str) -> str:
    """Return a difference of scores, with a star if the tests support it."""
    found = signed(atlas.tests[other, condition][name])
    return found + "*" * ((other, condition, name) in atlas.supported)


def leads(atlas: Atlas, leaders: dict[str, list[str]]) -> str:
    """Return the lead of each recipe over both thresholds of the simplest clip."""
    rows = [
        [
            condition,
            link(name),
            f"{100 * atlas.clipped(name):.0f} %",
            *(starred(atlas, other, condition, name) for other in (SIMPLEST, TIGHT)),
        ]
        for condition, names in leaders.items()
        for name in names
    ]
    header = ["condition", "recipe", "clipped"]
    return table([*header, *(f"minus `{other}`" for other in (SIMPLEST, TIGHT))], rows)


def tightened(atlas: Atlas) -> str:
    """Return what a smaller threshold changes, by clip, condition and optimizer."""
    families = {task: tasks()[task].family for task in atlas.tasks}
    rows = []
    for name, recipe in TIGHTENED.items():
        shares = [f"{100 * atlas.clipped(arm):.0f} %" for arm in (recipe, name)]
        found = [starred(atlas, recipe, condition, name) for condition in NAMES]
        rows.append([link(name), "all", *shares, *found])
        for family, named in (("sgd", "SGD"), ("adam", "Adam")):
            among = [task for task in atlas.tasks if families[task] == family]
            found = [signed(atlas.beats(name, recipe, one, among)) for one in NAMES]
            rows.append([link(name), named, "", "", *found])
    return table(["clip", "tasks", "clipped before", "clipped", *NAMES], rows)
