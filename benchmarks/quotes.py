"""What README and pages quote of the results: at most eight rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .options import table
from .report import Cell, Spread, Table

MOST_ROWS = 8


class Quote(NamedTuple):
    """A table of the README or of a page.

    Attributes:
        header: the names of the columns.
        rows: from all stored tables to the rows.
    """

    header: Sequence[str]
    rows: Callable[[Mapping[str, Table]], list[list[str]]]

    def text(self, tables: Mapping[str, Table]) -> str:
        """Return the table as Markdown."""
        return table(self.header, self.rows(tables)[:MOST_ROWS])


def cell(found: Table, row: str, column: str) -> Cell:
    """Return a cell by the first cell of its row and its column; None for no row."""
    rows = {cells[0]: cells for cells in found.rows}
    return rows[row][list(found.columns).index(column)] if row in rows else None


def median(value: Cell) -> str:
    """Return a ratio without its quartiles, or nothing where there is no number."""
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value.median if isinstance(value, Spread) else value:.2f}"


def step(tables: Mapping[str, Table]) -> list[list[str]]:
    """Quote the step of clip and Adam, in both dtypes, and whole train steps."""
    names = ("clip_by_global_norm", "clip_by_leaf_norm", "optax.clip_by_global_norm")
    parts = [
        (tables[f"clip_and_adam_costs_one_read-{dtype}"], "× Adam")
        for dtype in ("float32", "bfloat16")
    ]
    parts += [
        (tables[f"train_steps_cost_two_percent_more-{net}"], "× AdamW")
        for net in ("transformer", "lstm", "convolutional")
    ]
    return [
        [
            f"`{name if '.' in name else f'clipjax.{name}'}`",
            *(median(cell(part, name, column)) for part, column in parts),
        ]
        for name in names
    ]


COMPILED = {
    "global": "`clip_by_global_norm`",
    "entries": "`clip_by_value`, no report",
    "block rms": "`clip_by_block_rms`",
    "AGC": "`adaptive_grad_clip`",
    "unit": "`clip_by` with `granularity.unit()`",
}


def compilation(tables: Mapping[str, Table]) -> list[list[str]]:
    """Quote the seconds to compile each clip of 148 leaves."""
    found = tables["compilation_beside_optax-148"]
    return [
        [
            f"{kind}: {clip}",
            *(
                median(cell(found, kind, column))
                for column in ("clipjax, s", "× Optax")
            ),
        ]
        for kind, clip in COMPILED.items()
    ]


WAYS = {
    "clipjax": "clipjax",
    "jax_privacy": "jax_privacy",
    "jax_privacy, 8 at a time": "… 8 at a time",
    "jax_privacy, 1 at a time": "… 1 at a time",
    "vmap + Optax": "vmap, Optax",
    "Opacus": "Opacus",
}


def models_of(found: Table) -> list[str]:
    """Return the models of a table whose rows are named by model and way."""
    return list(dict.fromkeys(str(row[0]).partition(":")[0] for row in found.rows))


def per_example(tables: Mapping[str, Table]) -> list[list[str]]:
    """Quote the time of every way to clip per example, with its memory in brackets."""
    found = tables["clipping_per_example_costs_a_plain_gradient"]

    def shown(row: str) -> str:
        time = median(cell(found, row, "× plain"))
        memory = median(cell(found, row, "memory × plain"))
        return f"{time} ({memory})" if memory else time

    return [
        [name, *(shown(f"{name}: {way}") for way in WAYS)] for name in models_of(found)
    ]


def per_example_costs(tables: Mapping[str, Table]) -> list[list[str]]:
    """Quote what clipjax's clip per example costs."""
    found = tables["clipping_per_example_costs_a_plain_gradient"]
    columns = ("× plain", "memory × plain", "arithmetic × plain")
    return [
        [
            name,
            *(median(cell(found, f"{name}: clipjax", column)) for column in columns),
        ]
        for name in models_of(found)
    ]


def private_step(tables: Mapping[str, Table]) -> list[list[str]]:
    """Quote a private step relative to the plain one, and its noise."""
    found = tables["private_step_costs_little_more"]

    def milliseconds(name: str) -> str:
        noise, plain = (
            cell(found, name, f"{what}, ms") for what in ("noise alone", "plain")
        )
        return f"{noise:,.0f} ms of {plain:,.0f}"

    return [
        [
            name,
            *(median(cell(found, name, column)) for column in ("private", "memory")),
            milliseconds(name),
        ]
        for name in (str(row[0]) for row in found.rows)
    ]


COSTS = ("time", "temporary memory", "arithmetic")
STEP = ["", "float32", "bfloat16", "Transformer", "LSTM", "convolutional net"]
QUOTES = {
    "step": Quote(STEP, step),
    "compilation": Quote(["148 leaves", "clipjax seconds", "/ Optax's"], compilation),
    "per_example": Quote(["model, batch", *WAYS.values()], per_example),
    "per_example_costs": Quote(
        ["relative to the plain gradient", *COSTS], per_example_costs
    ),
    "private_step": Quote(
        ["model, batch", "private / plain, time", "temporary memory", "noise alone"],
        private_step,
    ),
}
