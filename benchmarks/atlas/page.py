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

import numpy as np

from ..options import Parser
from .__main__ import RESULTS
from .arms import MOMENTUM, TIGHTENED, TIGHTER, UNCLIPPED, WARMUP
from .conditions import BURST, ENTRIES, NAMES, NOISE, SIZE
from .engine import EVERY, QUANTILE, REACHED, SURVIVED, WITHIN
from .estimates import LEVEL
from .figures import FIGURES, draw, panels, save
from .summary import RATES, SIMPLEST, TIGHT, USABLE, Atlas, methods
from .tables import (
    arguments,
    leads,
    link,
    of_task,
    overview,
    retuned,
    thresholds,
    tightened,
)
from .tasks import tasks

DOCS = FIGURES.parent
PAGE, CHOOSING = DOCS / "atlas.md", DOCS / "choosing.md"
TEMPLATE = pathlib.Path(__file__).with_name("page.md")
AGAINST_NONE = "the unclipped arm that has the same optimizer"
ORDER = {  # of the questions about the final loss
    "spikes": "under planted spikes",
    "clean": "when nothing is wrong",
    "bad batches": "under a burst of bad batches",
    "label noise": "with wrong labels",
}
MARKS = "<!-- from the atlas -->", "<!-- end of the atlas -->"


def listed(names: Sequence[str]) -> str:
    """Return names as a list within a sentence."""
    found = [f"`{name}`" for name in names]
    if len(found) < 2:
        return "".join(found) or "none"
    return f"{', '.join(found[:-1])} and {found[-1]}"


def named(names: Sequence[str]) -> str:
    """Return names in brackets, or nothing."""
    return f" ({listed(names)})" if names else ""


def item(text: str) -> str:
    """Return an item of a list, in lines of 92 characters."""
    return textwrap.fill(
        text, 92, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
    )


def compared(atlas: Atlas, other: str, what: str, named: str) -> str:
    """Say which clips differ from what they are compared with."""
    above, below = atlas.verdicts(other, what)
    count = len(atlas.tests[other, what])
    return "\n".join(
        [
            f"Compared with {named}, of {count} clips:\n",
            item(f"better, {len(above)}: {listed(above)}"),
            item(f"worse, {len(below)}: {listed(below)}"),
            item(f"not told apart: the other {count - len(above) - len(below)}\n"),
            "",
        ]
    )


def question(atlas: Atlas, condition: str) -> str:
    """Return the conclusions about one condition."""
    first = compared(atlas, UNCLIPPED, condition, AGAINST_NONE)
    return f"{first}\n{compared(atlas, SIMPLEST, condition, link(SIMPLEST))}"


def leaders(atlas: Atlas, condition: str) -> list[str]:
    """Return the recipes that are better than the simplest clip."""
    return [n for n in atlas.verdicts(SIMPLEST, condition)[0] if n not in TIGHTENED]


def method_or_threshold(atlas: Atlas) -> str:
    """Say which of the recipes that beat the simplest clip beat its tighter threshold.

    `tables.leads` has their names.
    """
    lines = []
    for one in ORDER:
        first = leaders(atlas, one)
        above, below = atlas.verdicts(TIGHT, one)
        also, worse = set(first) & set(above), set(first) & set(below)
        of_these = (
            f" Of these, better than `{TIGHT}`, too: {len(also)}; not told apart from "
            f"it: {len(first) - len(also) - len(worse)}; worse: {len(worse)}."
        )
        lines.append(
            f"{one}: recipes better than `{SIMPLEST}`: {len(first) or 'none'}."
            f"{of_these if first else ''} Of all {len(atlas.tests[TIGHT, one])} clips "
            f"that are compared with `{TIGHT}`, better: {len(above)}{named(above)}; "
            f"worse: {len(below)}."
        )
    return "\n".join(map(item, lines))


def text(atlas: Atlas) -> str:
    """Return the page."""
    known = tasks()
    steps = [known[task].steps for task in atlas.tasks]
    grid = atlas.cells[atlas.tasks[0]][UNCLIPPED].content["grid"]
    seeds = grid["tuning"] + grid["reported"]
    arms = sum(map(len, atlas.cells.values()))
    edges = atlas.at_edge()
    first = {TIGHT}.union(*(leaders(atlas, one) for one in ORDER))
    left_out = "; ".join(
        f"`{task}` (arms that are not computed: {listed(names)})"
        for task, names in atlas.missing.items()
    )
    left_out = f"Not complete, and left out: {left_out}." if left_out else ""
    by_task = [f"### {task}\n\n{of_task(atlas, task)}" for task in atlas.tasks]
    bare = np.mean([atlas.score(task, UNCLIPPED, "spikes") for task in atlas.tasks])
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        grid,
        tasks_count=len(atlas.tasks),
        left_out=textwrap.fill(left_out, 92) + "\n\n" if left_out else "",
        runs=f"{arms * len(NAMES) * grid['rates'] * seeds:,}",
        shortest=min(steps),
        longest=max(steps),
        size=f"{SIZE:,.0f}",
        entries=ENTRIES,
        bare=f"{bare:.2f}",
        spikes=question(atlas, "spikes"),
        clean=question(atlas, "clean"),
        usable=f"{100 * USABLE:.0f}",
        widths=compared(atlas, UNCLIPPED, RATES, AGAINST_NONE),
        burst=BURST,
        bad=question(atlas, "bad batches"),
        noise=f"{100 * NOISE:.0f}",
        label=question(atlas, "label noise"),
        within=WITHIN,
        survived=f"{100 * SURVIVED:.0f}",
        overview=overview(atlas),
        retuned=retuned(atlas),
        method_or_threshold=method_or_threshold(atlas),
        edge_leads=", ".join(edge for edge in edges if edge.split()[1] in first)
        or "none",
        leads=leads(atlas, {one: leaders(atlas, one) for one in ORDER}),
        tightened=tightened(atlas),
        tests=sum(map(len, atlas.tests.values())),
        clips=len(methods()),
        recipes=len(methods()) - len(TIGHTENED),
        simplest=SIMPLEST,
        tight=TIGHT,
        tighter=TIGHTER,
        tight_names=listed(list(TIGHTENED)),
        level=f"{100 * LEVEL:.0f}",
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
    """Return what docs/choosing.md says about the atlas: the recipes alone."""

    def of_recipes(other: str, what: str) -> list[list[str]]:
        found = atlas.verdicts(other, what)
        return [[n for n in names if n not in TIGHTENED] for names in found]

    count = len(methods()) - len(TIGHTENED)
    lines = []
    for one, what in ORDER.items():
        above, below = of_recipes(UNCLIPPED, one)
        better, worse = of_recipes(SIMPLEST, one)
        also = [name for name in of_recipes(TIGHT, one)[0] if name in better]
        of_which = (
            f"; of these, better than the same clip with a tenth of its threshold: "
            f"{len(also) or 'none'}{named(also)}"
        )
        lines.append(
            f"{what}, of {count} recipes, better than no clip: {len(above) or 'none'}; "
            f"worse: {len(below) or 'none'}. Better than `{SIMPLEST}`: "
            f"{len(better) or 'none'}{named(better)}{of_which if better else ''}. "
            f"Worse than `{SIMPLEST}`: {len(worse) or 'none'}."
        )
    tight = [
        [
            what
            for one, what in ORDER.items()
            if TIGHT in atlas.verdicts(SIMPLEST, one)[i]
        ]
        for i in (0, 1)
    ]
    lines.append(
        f"`{SIMPLEST}` with a tenth of its threshold, compared with the whole one: "
        f"better {' and '.join(tight[0]) or 'nowhere'}; worse "
        f"{' and '.join(tight[1]) or 'nowhere'}."
    )
    above, below = of_recipes(UNCLIPPED, RATES)
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
