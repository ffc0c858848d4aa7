"""The exact figures, compared with the committed ones.

    python -m benchmarks.check [--only NAME ...] [--write]

Counts the programs of every recipe and of what surrounds a clip: equations, XLA's
bytes, operations and temporary memory, the size of the state, collectives on a mesh of
eight simulated devices, and how often a step is traced. None depends on how busy the
machine is. All depend on the version of JAX, and `benchmarks/results/exact.json` has
them by version.

What has changed is printed. The exit code is 1 if a figure is worse than the committed
one or is not committed, and 2 if there are none for this version of JAX. With --only,
all figures of those subjects are shown, beside those of Optax's clip of the same kind.
With --write, the file takes over what was found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console
from rich.progress import track

from .collectives import DEVICES
from .exact import figures, stored, tables
from .exact.compare import Change, compare
from .exact.subjects import peers_of_optax, subjects
from .options import Parser, table

Counted = dict[str, dict[str, float]]
WRITE = "python -m benchmarks.check --write"


def count(some: dict[str, Any]) -> Counted:
    """Count subjects one after another, and show how far that is."""
    console = Console(stderr=True)
    names = track(some, "counting", console=console, transient=True)
    return {name: figures.count(some[name]) for name in names}


def verdict(changes: list[Change], found: Counted) -> tuple[str, int]:
    """Return what the changes come to, and the exit code."""
    bad = [change for change in changes if change.verdict != "better"]
    if bad:
        return f"Worse or missing: {len(bad)}. To accept all that was found: {WRITE}", 1
    if changes:
        return f"Better: {len(changes)}, worse: 0. To keep what was found: {WRITE}", 0
    number = sum(map(len, found.values()))
    return f"{number} figures of {len(found)} subjects are as committed.", 0


def main(
    arguments: list[str] | None = None,
    count: Callable[[dict[str, Any]], Counted] = count,
) -> int:
    """Run the command, and return the exit code.

    Args:
        arguments: of the command line.
        count: returns the figures of subjects.
    """
    known, version = subjects(), stored.version()
    parser = Parser("check", __doc__)
    parser.add_argument("--only", nargs="+", choices=known, metavar="NAME")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    try:
        everything = stored.read()
    except ValueError as error:
        parser.error(f"{stored.FILE} cannot be read: {error}")
    if version not in everything and not options.write:
        others = ", ".join(everything) or "no version"
        parser.error(f"there are figures for JAX {others}, and none for {version}")

    committed = everything.get(version, stored.entry({}, {}))
    names = options.only or list(known)
    found = count({name: known[name] for name in names})
    peers: Counted = {}
    if options.only or options.write:
        of_optax = peers_of_optax()
        peers = count({name: of_optax[name] for name in of_optax if name in names})
    was = committed[stored.SUBJECTS]
    if options.only:
        was = {name: was[name] for name in names if name in was}
        print(table(*tables.beside_optax(found, peers)), end="\n\n")
    changes = compare(was, found)
    if changes:
        print(table(*tables.changes(changes)), end="\n\n")
    if not options.write:
        text, code = verdict(changes, found)
        print(text)
        return code
    if options.only:
        found = committed[stored.SUBJECTS] | found
        peers = committed[stored.OPTAX] | peers
    stored.write(everything | {version: stored.entry(found, peers)})
    print(f"{stored.FILE} has the figures of {len(found)} subjects for JAX {version}.")
    return 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    sys.exit(main())
