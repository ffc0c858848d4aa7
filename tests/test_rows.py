"""Every row of the plan is shown by something that exists."""

import importlib.util
import pathlib

import pytest

from clipjax.demos.presets import PRESETS
from clipjax.demos.probes.catalogue import GROUPS, PROBES

SCRIPT = pathlib.Path(__file__).parent.parent / "docs" / "rows_table.py"


@pytest.fixture(scope="module")
def rows():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_row_is_empty_and_all_that_is_named_exists(rows):
    assert rows.mistakes() == []


def test_the_page_is_as_it_is_made(rows):
    assert rows.PAGE.read_text(encoding="utf-8") == rows.page()


@pytest.mark.parametrize(
    "evidence",
    [
        "test tests/test_rows.py::test_of_nothing",
        "test tests/test_none.py",
        "probe none",
        "task none",
        "command clipjax none",
        "page none.md",
        "rumor",
    ],
)
def test_what_does_not_exist_is_found(rows, evidence, monkeypatch):
    monkeypatch.setattr(rows, "read", lambda: {"": {"A1.1": ["A clip", evidence]}})
    assert f"A1.1: no {evidence}" in rows.mistakes()
    assert "A4.36 is missing" in rows.mistakes()


def test_the_page_of_applications_names_every_task_probe_and_place():
    page = (SCRIPT.parent / "applications.md").read_text(encoding="utf-8")
    places = {f"{p}@" for one in PRESETS.values() for p in one.model.places}
    missing = [n for n in (*PRESETS, *PROBES, *places) if f"`{n}`" not in page]
    assert not missing


def test_the_page_of_experiments_has_each_of_them():
    page = (SCRIPT.parent / "experiments.md").read_text(encoding="utf-8")
    missing = [n for n in GROUPS["experiments"] if f"\n## {n}\n" not in page]
    assert not missing
