"""Makes docs/rows.md, what shows each row of the plan at work, from docs/rows.toml.

python docs/rows_table.py --write    rewrites the page
python docs/rows_table.py --check    fails if it is not up to date
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
import tomllib

from clipjax.demos.presets import PRESETS
from clipjax.demos.probes.catalogue import PROBES

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
PAGE = DOCS / "rows.md"
COMMANDS = ("explode", "private", "tune")
COUNTS = {"A1": 17, "A2": 12, "A3": 15, "A4": 36}
BEGINNING = """# Feature list

clipjax began with a list of the clips, thresholds, measurements and applications that
the literature on gradient clipping describes. For each row of that list, this page
names a test, a command or a page that shows it at work. `docs/rows_table.py` writes the
page, and a test fails if it names something that does not exist.
"""


def read() -> dict[str, dict[str, list[str]]]:
    """Reads the rows by section: a number, its title and what shows it."""
    return tomllib.loads((DOCS / "rows.toml").read_text(encoding="utf-8"))


def mistakes() -> list[str]:
    """Lists rows that are missing, and evidence that does not exist."""
    rows = {n: row for section in read().values() for n, row in section.items()}
    wanted = [f"{part}.{i + 1}" for part, n in COUNTS.items() for i in range(n)]
    found = [f"{number} is missing" for number in wanted if number not in rows]
    for number, (_, *evidence) in rows.items():
        if not evidence:
            found.append(f"{number} has nothing that shows it")
        found += [f"{number}: no {one}" for one in evidence if not exists(one)]
    return found


def exists(evidence: str) -> bool:
    """Tells whether there is such a test, probe, task, command or page."""
    kind, _, name = evidence.partition(" ")
    if kind == "test":
        path, _, function = name.partition("::")
        file = ROOT / path
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        return bool(re.search(rf"^def {function or 'test_'}", text, re.MULTILINE))
    if kind == "command":
        program, _, command = name.partition(" ")
        return program == "clipjax" and command.split()[0] in COMMANDS
    places = {"probe": PROBES, "task": PRESETS}
    if kind in places:
        return name in places[kind]
    return kind == "page" and (DOCS / name.partition("#")[0]).is_file()


def as_link(evidence: str) -> str:
    """Writes one piece of evidence in Markdown."""
    kind, _, name = evidence.partition(" ")
    if kind == "page":
        return f"[{name}]({name})"
    if kind == "probe":
        return f"`clipjax probe {name}`"
    if kind == "task":
        return f"`clipjax compare --task {name}`"
    return f"`{name}`"


def page() -> str:
    """Makes the page."""
    parts = [BEGINNING]
    for title, rows in read().items():
        lines = ["| row | | shown by |", "|---|---|---|"]
        for number, (name, *evidence) in rows.items():
            lines.append(f"| {number} | {name} | {', '.join(map(as_link, evidence))} |")
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def main() -> int:
    """Writes or checks the page."""
    parser = argparse.ArgumentParser(description="The page of rows.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="bring it up to date")
    action.add_argument("--check", action="store_true", help="fail if it is not")
    arguments = parser.parse_args()
    found = mistakes()
    if arguments.write:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        found.append("docs/rows.md is not up to date: docs/rows_table.py --write")
    print(*found, sep="\n", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
