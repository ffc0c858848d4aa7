"""Make docs/atlas.md, its figures and the atlas's lines in docs/choosing.md.

python -m benchmarks.atlas.page --write    rewrites them from the results
python -m benchmarks.atlas.page --check    fails if the two pages are old
"""

from __future__ import annotations

import pathlib
import string
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..options import Parser, table
from .__main__ import RESULTS
from .arms import MOMENTUM, UNCLIPPED, WARMUP
from .conditions import BURST, ENTRIES, NAMES, NOISE, SIZE
from .engine import EVERY, QUANTILE, REACHED, SURVIVED, WITHIN
from .figures import FIGURES, draw, panels, save
from .summary import (
    LEVEL,
    SIMPLEST,
    USABLE,
    Atlas,
    Cell,
    Estimate,
    methods,
    ranked,
    verdicts,
)
from .tasks import tasks

DOCS = FIGURES.parent
PAGE, CHOOSING = DOCS / "atlas.md", DOCS / "choosing.md"
TEMPLATE = pathlib.Path(__file__).with_name("page.md")
AGAINST_NONE = "the unclipped arm that has the same optimizer"
MARKS = "<!-- from the atlas -->", "<!-- end of the atlas -->"
PLACES = {
    "before": "before the optimizer",
    "around": "around the optimizer",
    "instead": "in place of the optimizer",
    "after": "after the optimizer, before the learning rate",
    "last": "last, after the learning rate",
}


def link(name: str) -> str:
    """Return a method's name, linked to its page."""
    return f"[`{name}`](methods/{name}.md)"


def listed(names: Sequence[str]) -> str:
    """Return names as a list within a sentence."""
    found = [f"`{name}`" for name in names]
    if len(found) < 2:
        return "".join(found) or "none"
    return f"{', '.join(found[:-1])} and {found[-1]}"


def item(text: str) -> str:
    """Return an item of a list, in lines of 92 characters."""
    return textwrap.fill(
        text, 92, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
    )


def signed(estimate: Estimate, digits: int = 2) -> str:
    """Return a difference and half of its interval."""
    mean = round(estimate.mean, digits) + 0.0  # no negative zero
    return f"{mean:+.{digits}f} ± {estimate.half:.{digits}f}"


def interval(samples: np.ndarray) -> str:
    """Return a mean over seeds and half of its interval."""
    mean, half, _ = Estimate.of([samples])
    return f"{mean:#.3g} ± {half:#.2g}"


def compared(estimates: dict[str, Estimate], other: str) -> str:
    """Say which methods differ from what they are compared with."""
    above, below = verdicts(estimates)
    rest = len(estimates) - len(above) - len(below)
    return "\n".join(
        [
            f"Compared with {other}, of {len(estimates)} recipes:\n",
            item(f"better, {len(above)}: {listed(above)}"),
            item(f"worse, {len(below)}: {listed(below)}"),
            item(f"not told apart: the other {rest}\n"),
            "",
        ]
    )


def against_simplest(atlas: Atlas, condition: str) -> str:
    """Compare with the clip of the global norm."""
    others = [name for name in methods() if name != SIMPLEST]
    found = {
        name: atlas.beats_simplest(name, condition)
        for name in others
        if atlas.own_optimizer(name)
    }
    return compared(found, link(SIMPLEST))


def question(atlas: Atlas, condition: str) -> str:
    """Return the conclusions about one condition."""
    found = {name: atlas.helps(name, condition) for name in methods()}
    first = compared(found, AGAINST_NONE)
    return f"{first}\n{against_simplest(atlas, condition)}"


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


def text(atlas: Atlas) -> str:
    """Return the page."""
    known = tasks()
    steps = [known[task].steps for task in atlas.tasks]
    grid = atlas.cells[atlas.tasks[0]][UNCLIPPED].content["grid"]
    seeds = grid["tuning"] + grid["reported"]
    arms = sum(map(len, atlas.cells.values()))
    edges = atlas.at_edge()
    count = len(methods())
    widths = {name: atlas.widens(name) for name in methods()}
    by_task = [f"### {task}\n\n{of_task(atlas, task)}" for task in atlas.tasks]
    bare = np.mean([atlas.score(task, UNCLIPPED, "spikes") for task in atlas.tasks])
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        grid,
        tasks_count=len(atlas.tasks),
        runs=f"{arms * len(NAMES) * grid['rates'] * seeds:,}",
        shortest=min(steps),
        longest=max(steps),
        size=f"{SIZE:,.0f}",
        entries=ENTRIES,
        bare=f"{bare:.2f}",
        spikes=question(atlas, "spikes"),
        clean=question(atlas, "clean"),
        usable=f"{100 * USABLE:.0f}",
        widths=compared(widths, AGAINST_NONE),
        burst=BURST,
        bad=question(atlas, "bad batches"),
        noise=f"{100 * NOISE:.0f}",
        label=question(atlas, "label noise"),
        within=WITHIN,
        survived=f"{100 * SURVIVED:.0f}",
        overview=overview(atlas),
        retuned=retuned(atlas),
        comparisons=(len(NAMES) + 1) * count + len(NAMES) * (count - 1),
        methods=count,
        simplest=SIMPLEST,
        level=f"{100 * LEVEL:.0f}",
        false=f"{(2 * len(NAMES) + 1) * 100 * LEVEL:.0f}",
        edges_count=len(edges),
        arms=arms,
        edges=", ".join(edges) or "none",
        about="\n".join(f"- `{task}`: {known[task].about}." for task in atlas.tasks),
        every=EVERY,
        reached=f"{100 * REACHED:.0f}",
        parts="\n\n".join(by_task),
        quantile=f"{100 * QUANTILE:.0f}",
        momentum=MOMENTUM,
        warmup=WARMUP,
        arguments=arguments(atlas),
        thresholds=thresholds(atlas),
    )


def quoted(atlas: Atlas) -> str:
    """Return what docs/choosing.md says about the atlas."""
    lines = []
    for condition, what in zip(
        ("spikes", "clean", "bad batches", "label noise"),
        (
            "under planted spikes",
            "when nothing is wrong",
            "under a burst of bad batches",
            "with wrong labels",
        ),
        strict=True,
    ):
        found = {name: atlas.helps(name, condition) for name in methods()}
        above, below = verdicts(found)
        simplest = {
            name: atlas.beats_simplest(name, condition)
            for name in methods()
            if name != SIMPLEST and atlas.own_optimizer(name)
        }
        better, worse = verdicts(simplest)
        named = f" ({listed(better)})" if better else ""
        lines.append(
            f"{what}: {len(above)} of {len(found)} recipes train better than no clip, "
            f"and {len(below)} worse. Compared with `{SIMPLEST}`, {len(better)} train "
            f"better{named} and {len(worse)} worse."
        )
    above, below = verdicts({name: atlas.widens(name) for name in methods()})
    lines.append(
        f"the range of usable learning rates: wider than without a clip for "
        f"{len(above)} recipes{f', most for {listed(above[:3])}' if above else ''}; "
        f"narrower for {len(below)}."
    )
    return "\n".join(item(line[0].upper() + line[1:]) for line in lines)


def pages(atlas: Atlas) -> dict[pathlib.Path, str]:
    """Return the content of both pages."""
    old = CHOOSING.read_text(encoding="utf-8")
    before, rest = old.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    lines = f"{MARKS[0]}\n{quoted(atlas)}\n{MARKS[1]}"
    return {PAGE: text(atlas), CHOOSING: before + lines + after}


def main(given: list[str] | None = None) -> int:
    """Write or check the pages."""
    parser = Parser("atlas.page", __doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="bring them up to date")
    action.add_argument("--check", action="store_true", help="fail if they are not")
    is_writing = parser.parse_args(given).write
    atlas = Atlas.read(RESULTS)
    old = [
        path
        for path, content in pages(atlas).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != content
    ]
    if is_writing:
        for path, content in pages(atlas).items():
            path.write_text(content, encoding="utf-8")
        for name, shown in panels(atlas).items():
            save(draw(shown), FIGURES / f"{name}.png")
        return 0
    for path in old:
        print(f"{path.name} is old: python -m benchmarks.atlas.page --write")
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
