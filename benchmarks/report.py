"""Tables of measured numbers: rows, claims about them, and the file that keeps both."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = "jax jaxlib optax flax numpy jax-privacy torch opacus zclip autoclip".split()


class Spread(NamedTuple):
    """The median of several measurements, and their quartiles."""

    median: float
    low: float
    high: float


Cell = str | int | float | Spread | None


class Claim(NamedTuple):
    """A number that was measured, and its bar.

    Attributes:
        statement: what is claimed, in words.
        measured: the number.
        bar: the largest number that the claim allows, or with ``least`` the smallest.
        least: whether the bar is a lower one.
        why: why the claim is missed, where it is known to be.
    """

    statement: str
    measured: float
    bar: float
    least: bool = False
    why: str = ""

    @property
    def holds(self) -> bool:
        """Whether the number is within the bar; NaN is not."""
        return self.measured >= self.bar if self.least else self.measured <= self.bar


def shown(cell: Cell, form: str) -> str:
    """Return a cell as text: a number by its column's format, a spread with quartiles.

    >>> shown(Spread(1.126, 1.1, 1.2), ".2f")
    '1.13 (1.10 to 1.20)'
    """
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, Spread):
        median, low, high = (format(number, form) for number in cell)
        return f"{median} ({low} to {high})"
    return format(cell, form)


@dataclasses.dataclass
class Table:
    """What one benchmark measures.

    Attributes:
        name: of the file in ``benchmarks/results``.
        title: a line.
        about: what a row, a column and a ratio are, as Markdown.
        columns: the format of the numbers by the column's name.
        rows: cells in the order of the columns.
        claims: what the table has to show.
        about_run: machine, versions, date and duration, and the device if it is no CPU.
    """

    name: str
    title: str
    about: str
    columns: Mapping[str, str]
    rows: list[list[Cell]] = dataclasses.field(default_factory=list)
    claims: list[Claim] = dataclasses.field(default_factory=list)
    about_run: dict[str, Any] = dataclasses.field(default_factory=dict)

    def row(self, *cells: Cell) -> None:
        """Add a row, and print it, so that the user sees how far a run is."""
        if len(cells) != len(self.columns):
            raise ValueError(
                f"{self.name}: a row has {len(self.columns)} cells, got {len(cells)}"
            )
        if not self.rows:
            print("\n" + " | ".join(self.columns), flush=True)
        self.rows.append(list(cells))
        print(" | ".join(self.texts()[-1]), flush=True)

    def claim(
        self,
        statement: str,
        measured: float,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        why: str = "",
    ) -> None:
        """State what a number has to be; `failures` tells whether it is so."""
        if (at_most is None) == (at_least is None):
            raise ValueError("pass one of at_most and at_least")
        bar = at_least if at_most is None else at_most
        assert bar is not None
        claim = Claim(statement, float(measured), bar, at_least is not None, why)
        self.claims.append(claim)

    def texts(self) -> list[list[str]]:
        """Return the rows as text."""
        forms = list(self.columns.values())
        return [
            [shown(cell, form) for cell, form in zip(row, forms, strict=True)]
            for row in self.rows
        ]

    def failures(self) -> list[str]:
        """Return a line for each claim that does not hold."""
        return [
            f"{claim.statement}: measured {claim.measured:.4g}, "
            f"{'at least' if claim.least else 'at most'} {claim.bar:g}"
            for claim in self.claims
            if not claim.holds
        ]

    def write(self, folder: pathlib.Path = RESULTS) -> pathlib.Path:
        """Write the table as JSON, whole or not at all."""
        return write_json(folder / f"{self.name}.json", dataclasses.asdict(self))

    def line_about_run(self) -> str:
        """Return where and when the table was measured, as a sentence."""
        about, versions = self.about_run, self.about_run["versions"]
        on, device = about["machine"], about.get("device")
        first = ""
        if device:
            known = f" ({device['memory_gib']} GiB)" if device["memory_gib"] else ""
            first = f"one {device['kind']}{known} and "
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        return (
            f"Measured on {about['date']} in {about['seconds']} s on {first}"
            f"{on['cores']} cores ({on['processor'] or on['architecture']}, "
            f"{on['memory_gib']} GiB, load {on['load']} before) with {named}."
        )

    @classmethod
    def read(cls, path: pathlib.Path) -> Table:
        """Read what `write` has written."""
        found = json.loads(path.read_text(encoding="utf-8"))
        found["rows"] = [[_cell(cell) for cell in row] for row in found["rows"]]
        found["claims"] = [Claim(*claim) for claim in found["claims"]]
        return cls(**found)


def _cell(stored: Any) -> Cell:
    return Spread(*stored) if isinstance(stored, list) else stored


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> pathlib.Path:
    """Write a file under another name, and then rename it; a list takes a line an item.

    Numbers are rounded to six digits.
    """

    def text(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], list | tuple):
            return "[\n  " + ",\n  ".join(json.dumps(item) for item in value) + "\n ]"
        return json.dumps(value)

    lines = [f" {json.dumps(key)}: {text(_rounded(content[key]))}" for key in content]
    return write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def write_text(path: pathlib.Path, text: str) -> pathlib.Path:
    """Write a file under another name, and then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    return draft.replace(path)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return the processor, cores and memory of this machine, and how busy it is."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(":")[2] for line in lines if "model name" in line]
    except OSError:
        models = []
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": (models or [platform.processor()])[0].strip(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": memory and round(memory / 2**30),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


class Run:
    """Machine, versions and date at the start of a run, and then its duration."""

    def __init__(self) -> None:
        """Look at the machine before the run makes it busy."""
        self._start = time.perf_counter()
        self._found = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "versions": versions(),
        }

    def about(self) -> dict[str, Any]:
        """Return what is to be stored."""
        return self._found | {"seconds": round(time.perf_counter() - self._start)}
