"""Measure the tables of RESULTS.md, each in a process of its own.

    python -m benchmarks [TABLE ...] [--small] [--list]

is what `make bench` and `make bench TABLE=...` run. A table is named by its file in
``benchmarks/tables``, or by words of its name. Each writes its numbers to
``benchmarks/results`` when it is done, and RESULTS.md and the tables of the README are
written at the end. ``--small`` tries all with small sizes, and writes nothing. The exit
code is 1 if a table fails or does not show what it claims.
"""

from __future__ import annotations

import subprocess
import sys
import time

from rich.console import Console

from . import page
from .options import Parser
from .suite import path_of, tables_of_suite


def chosen(words: list[str]) -> list[str]:
    """Return the tables whose names contain one of the words, all for no words."""
    names = tables_of_suite()
    return [n for n in names if not words or any(word in n for word in words)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = Parser("", __doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--list", action="store_true", help="print the tables' names")
    options = parser.parse_args(arguments)
    for word in options.tables:
        if not chosen([word]):
            known = ", ".join(tables_of_suite())
            parser.error(f"no table is named {word!r}; there are {known}")
    names = chosen(options.tables)
    if options.list:
        print("\n".join(names))
        return 0

    console, start, failed = Console(highlight=False), time.monotonic(), []
    for number, name in enumerate(names, 1):
        minutes = (time.monotonic() - start) / 60
        console.rule(f"{name} ({number} of {len(names)}, {minutes:.0f} min so far)")
        command = [sys.executable, "-m", "pytest", str(path_of(name)), "--bench"]
        command += ["-q", "-s", "-p", "no:cacheprovider", "--no-header"]
        command += ["--small"] if options.small else []
        if subprocess.run(command).returncode:
            failed.append(name)
    if not options.small:
        page.main([])
    console.rule(f"{(time.monotonic() - start) / 60:.0f} min")
    if failed:
        console.print(f"Failed or missed: {', '.join(failed)}.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
