"""The exact figures as tables: a header, and rows of strings.

    header, rows = tables.clips(stored.read()["0.10.2"])

Every function takes what is stored for one version of JAX.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import figures, traces
from .compare import Change
from .stored import OPTAX, SUBJECTS

Table = tuple[list[str], list[list[str]]]
COSTS = [
    figures.EQUATIONS,
    *(
        f"{dtype}{count}"
        for dtype in ("float32", "bfloat16")
        for count in (": bytes", ": flops", ": temporaries", ", donated: temporaries")
    ),
]
PROGRAMS = [
    figures.STATE,
    figures.STATE_PER_LEAF,
    figures.ALL_REDUCES,
    figures.OTHERS,
    figures.MOVED,
    traces.NEW_THRESHOLD,
    traces.SCHEDULE,
]
RATIOS = [f"relative to plain: {count}" for count in ("bytes", "flops", "temporaries")]


def clips(entry: dict[str, Any]) -> Table:
    """Return equations and costs of every clip, with Optax's own below ours.

    Bytes, flops and temporaries are what a step with Adam has beyond Adam's, in sizes
    of the gradient, and flops per entry.
    """
    return _table("clip", COSTS, entry)


def programs(entry: dict[str, Any]) -> Table:
    """Return the state, the collectives on a mesh and the traces of every clip."""
    return _table("clip", PROGRAMS, entry)


def ratios(entry: dict[str, Any]) -> Table:
    """Return the costs of programs relative to those without clipjax."""
    return _table("program", RATIOS, entry)


def changes(found: Iterable[Change]) -> Table:
    """Return what has changed, and how."""
    header = ["subject", "figure", "was", "now", "verdict"]
    return header, [
        [one.subject, one.figure, _cell(one.was), _cell(one.now), one.verdict]
        for one in found
    ]


def beside_optax(found: dict[str, Any], peers: dict[str, Any]) -> Table:
    """Return one figure per row, with that of Optax's clip of the same kind."""
    rows = [
        [name, figure, _cell(value), _cell(peers.get(name, {}).get(figure))]
        for name, counts in found.items()
        for figure, value in counts.items()
    ]
    return ["subject", "figure", "clipjax", "Optax"], rows


def _table(first: str, columns: list[str], entry: dict[str, Any]) -> Table:
    """Return the subjects that have any of the figures, each with Optax's beside it."""
    rows = []
    for name, counts in entry[SUBJECTS].items():
        if counts.keys() & set(columns):
            rows.append([name, *(_cell(counts.get(column)) for column in columns)])
            peer = entry[OPTAX].get(name)
            if peer is not None:
                cells = (_cell(peer.get(column)) for column in columns)
                rows.append([f"{name}, Optax's", *cells])
    return [first, *columns], rows


def _cell(value: float | None) -> str:
    """Return a number without needless digits, or nothing."""
    return "" if value is None else f"{value:,.10g}"
