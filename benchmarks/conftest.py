"""Benchmarks run when they are asked for, and write what they found."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import pytest

from .report import RESULTS, Run, Table


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that `make bench` and the tests pass."""
    group = parser.getgroup("benchmarks")
    group.addoption("--bench", action="store_true", help="run the benchmarks")
    group.addoption(
        "--small", action="store_true", help="small sizes, to try a benchmark"
    )
    group.addoption(
        "--results",
        type=pathlib.Path,
        metavar="FOLDER",
        help="where to write; benchmarks/results unless --small is given",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list) -> None:
    """Skip every benchmark without --bench."""
    if config.getoption("--bench"):
        return
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="a benchmark: make bench"))


@dataclasses.dataclass
class Bench:
    """What a benchmark is given.

    Attributes:
        small: whether sizes and rounds are to be small.
        folder: where results go, or None.
        name: of the file that asks.
    """

    small: bool
    folder: pathlib.Path | None
    name: str

    def rounds(self, count: int) -> int:
        """Return how many rounds to measure."""
        return min(count, 2) if self.small else count

    @contextlib.contextmanager
    def table(
        self, title: str, about: str, columns: Mapping[str, str], *, part: str = ""
    ) -> Iterator[Table]:
        """Give a table to fill, write it, and fail where a claim of it does not hold.

        Args:
            title: a line.
            about: what the numbers are, as Markdown.
            columns: the format of the numbers by the column's name.
            part: which of the file's tables this is, if it has several.
        """
        name = f"{self.name}-{part}" if part else self.name
        table, run = Table(name, title, about, columns), Run()
        yield table
        table.about_run = run.about()
        if self.folder:
            table.write(self.folder)
        # Times of small sizes say nothing.
        missed = [] if self.small else table.failures()
        assert not missed, "missed: " + "; ".join(missed)


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    """Give a benchmark its settings."""
    small = bool(request.config.getoption("--small"))
    folder = request.config.getoption("--results")
    if folder is None and not small:
        folder = RESULTS
    return Bench(small, folder, request.path.stem.removeprefix("test_"))
