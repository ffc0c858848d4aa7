"""Write RESULTS.md, and the tables that pages quote, from the stored results.

    python -m benchmarks.page [--check]

`make bench` does it at its end. Every table is a file in ``benchmarks/results``; with
``--check`` nothing is written, and the exit code is 1 if a page is not what the files
give.
"""

from __future__ import annotations

import pathlib
import re
import sys

from .exact import stored as counted
from .exact import tables as counts
from .options import Parser, table
from .quotes import QUOTES
from .report import RESULTS, Table, write_text
from .suite import PARTS_ON_ACCELERATOR, tables_of_suite

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "benchmarks" / "RESULTS.md"
# The pages that quote tables.
QUOTING = [ROOT / p for p in ("README.md", "docs/per_example.md", "docs/privacy.md")]
HEAD = """# Results

Written by `make bench` from the files in `benchmarks/results`, each of which a command
below writes again. Two machines, or two runs on a busy one, cannot be compared by their
milliseconds. Compare the ratios: all rows of a table run in turn in one process, a
ratio is the median of the ratios within the rounds, and the numbers in brackets are its
quartiles. "Missed" marks what a table was meant to show and does not.
"""
ON_ACCELERATOR = """
Written by `python -m benchmarks.accelerator`. All other tables are of CPUs.
"""
COUNTS = """
Counts of the compiled programs, which do not depend on how busy the machine is:
equations of the jaxpr for each further leaf; bytes, operations and temporaries of a
step with Adam beyond those of Adam alone, in sizes of the gradient and for each entry;
temporaries of the clip alone when the gradient is donated; bytes of state; collectives
of six leaves on a mesh of 4 x 2 devices; and how often three steps trace, each with a
new threshold, or with a schedule. The lines marked Optax's are its clips of the same
kind. `make bench-check` compares them with a new count, and fails if one is worse.
"""
# A quoted table stands below such a line, and ends at the next empty one.
QUOTED = re.compile(r"(<!-- results: (\S+) -->\n).*?(?=\n\n)", re.DOTALL)


def stored(folder: pathlib.Path = RESULTS) -> dict[str, Table]:
    """Return the stored tables by name: an accelerator's, and those of the suite."""
    found = {}
    for part in PARTS_ON_ACCELERATOR:
        path = folder / "accelerator" / f"accelerator-{part}.json"
        if path.exists():
            found[path.stem] = Table.read(path)
    paths = {path.stem: path for path in folder.glob("*.json")}
    for name in tables_of_suite():
        parts = sorted((path for path in paths if _is_of(path, name)), key=_place)
        found |= {part: Table.read(paths[part]) for part in parts}
    return found


def section(found: Table) -> str:
    """Return what the page says of a table."""
    base, _, part = found.name.partition("-")
    on_accelerator = base == "accelerator"
    command = f"`make bench TABLE={base}`"
    if on_accelerator:
        command = f"`python -m benchmarks.accelerator --parts {part}`"
    parts = [
        f"{'###' if on_accelerator else '##'} {found.title}",
        command,
        found.about.strip(),
        table(list(found.columns), found.texts()),
    ]
    if found.claims:
        parts.append("\n".join(_line(claim) for claim in found.claims))
    return "\n\n".join([*parts, found.line_about_run()])


def _line(claim) -> str:
    sign = "≥" if claim.least else "≤"
    verdict = "holds" if claim.holds else "**missed**"
    line = f"- {claim.statement}: {claim.measured:.3g} {sign} {claim.bar:g}, {verdict}"
    return line + (f". {claim.why}" if claim.why and not claim.holds else "")


def results_page(tables: dict[str, Table]) -> str:
    """Return the text of RESULTS.md, which an accelerator's tables lead."""
    parts = [HEAD.strip(), *map(section, tables.values())]
    first = next(iter(tables.values()), None)
    if first and "device" in first.about_run:
        platform = first.about_run["device"]["platform"]
        parts.insert(1, f"## On a {platform.upper()}\n\n{ON_ACCELERATOR.strip()}")
    left = [n for n in tables_of_suite() if not any(_is_of(t, n) for t in tables)]
    if left:
        parts.append(f"Not measured yet: {', '.join(left)}.")
    return "\n\n".join([*parts, *counts_section()]) + "\n"


def _is_of(table: str, name: str) -> bool:
    """Return whether a stored table is one of those that a file measures."""
    return table == name or table.startswith(f"{name}-")


def _place(name: str) -> tuple[bool, str]:
    """Return what parts are sorted by: float32 first, and numbers by their size."""
    padded = re.sub(r"\d+", lambda match: match[0].zfill(9), name)
    return not name.endswith("-float32"), padded


def counts_section() -> list[str]:
    """Return the exact figures, of the oldest version of JAX that has some."""
    found = counted.read()
    version = min(found, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    tables = (counts.clips, counts.programs, counts.ratios)
    return [
        f"## Counts, with JAX {version}",
        "`make bench-check`",
        COUNTS.strip(),
        *(table(*make(found[version])) for make in tables),
    ]


def with_quotes(text: str, tables: dict[str, Table]) -> str:
    """Return the text of a page with its quoted tables brought up to date."""

    def quoted(match: re.Match[str]) -> str:
        return match[1] + QUOTES[match[2]].text(tables)

    return QUOTED.sub(quoted, text)


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or check them."""
    parser = Parser("page", __doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    tables = stored()
    pages = {PAGE: results_page(tables)}
    for path in QUOTING:
        pages[path] = with_quotes(path.read_text(encoding="utf-8"), tables)
    old = [p for p, text in pages.items() if p.read_text(encoding="utf-8") != text]
    for path in old:
        if not options.check:
            write_text(path, pages[path])
        print(f"{path.name} {'is out of date' if options.check else 'written'}")
    return 1 if options.check and old else 0


if __name__ == "__main__":
    sys.exit(main())
