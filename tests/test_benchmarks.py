"""The suite of benchmarks: what is stored is what pages show, and a claim can fail."""

import subprocess
import sys

import pytest

from benchmarks import __main__ as command
from benchmarks import page, quotes
from benchmarks.report import RESULTS, Spread, Table
from benchmarks.suite import tables_of_suite


def example():
    columns = {"clip": "", "ms": ".1f", "× Adam": ".2f"}
    table = Table("example", "A title", "What is compared.", columns)
    table.row("global", 12.345678901, Spread(1.126, 1.1, 1.2))
    table.row("none", None, 1.0)
    return table


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = example()
    table.claim("the ratio", 1.126, at_most=1.15)
    path = table.write(tmp_path)
    assert path.name == "example.json"
    assert [file.name for file in tmp_path.iterdir()] == ["example.json"]
    read = Table.read(path)
    assert read.texts() == [
        ["global", "12.3", "1.13 (1.10 to 1.20)"],
        ["none", "", "1.00"],
    ]
    assert read.claims == table.claims


@pytest.mark.parametrize(
    ("measured", "bar", "fails"),
    [
        (1.1, {"at_most": 1.15}, False),
        (1.2, {"at_most": 1.15}, True),
        (float("nan"), {"at_most": 1.15}, True),
        (0.9, {"at_least": 0.8}, False),
        (0.7, {"at_least": 0.8}, True),
    ],
)
def test_a_claim_fails_beyond_its_bar(measured, bar, fails):
    table = example()
    table.claim("the ratio", measured, **bar)
    assert bool(table.failures()) == fails


def test_rows_have_as_many_cells_as_columns():
    with pytest.raises(ValueError, match="3 cells, got 1"):
        example().row("too few")


def test_every_stored_table_is_shown_and_the_others_are_named():
    stored, shown = page.stored(), page.PAGE.read_text("utf-8")
    assert shown == page.results_page(stored)
    for name in tables_of_suite():
        assert f"TABLE={name}`" in shown or f" {name}" in shown, name
    left = {path.stem for path in RESULTS.glob("*.json")} - set(stored) - {"exact"}
    assert not left, "of no table"


def test_pages_quote_what_is_stored():
    texts = [path.read_text("utf-8") for path in page.QUOTING]
    for text in texts:
        assert page.with_quotes(text, page.stored()) == text
        assert page.QUOTED.search(text)
    for name, quote in quotes.QUOTES.items():
        assert any(f"<!-- results: {name} -->" in text for text in texts)
        assert len(quote.rows(page.stored())) <= quotes.MOST_ROWS


def test_benchmarks_are_skipped_unless_asked_for():
    line = [sys.executable, "-m", "pytest", "benchmarks/tables", "-q"]
    line += ["-p", "no:cacheprovider"]
    run = subprocess.run(line, cwd=page.ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert " passed" not in run.stdout and " skipped" in run.stdout


def test_an_unknown_table_is_a_mistake_of_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["no_such_table"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
