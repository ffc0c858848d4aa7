"""What the README claims beside Optax, and the numbers that it shows, are so."""

import inspect
import pathlib
import re
import tomllib

import jax
import pytest

import clipjax
from benchmarks import beside_optax
from benchmarks.exact import stored as counted
from clipjax import recipes
from clipjax.jax_internals.versions import NEWEST, OLDEST

ROOT = pathlib.Path(__file__).parent.parent
START = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows_below(page, header):
    """Return the rows of the table whose header starts with some words, by name."""
    _, found, table = page.partition(f"\n| {header}")
    assert found, f"there is no table with the header {header!r}"
    lines = table.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    return {name: rest for name, *rest in cells}


@pytest.mark.parametrize("row", beside_optax.ROWS)
@pytest.mark.filterwarnings("default")  # Optax casts 1e5 to float16
def test_each_row_beside_optax_is_what_both_libraries_do(row):
    with jax.numpy_dtype_promotion("standard"):
        measure = beside_optax.ROWS[row]
        line = f"| {row} | {measure(beside_optax.optax)} | {measure(clipjax)} |"
    assert line in README, f"run python -m benchmarks.beside_optax; it prints {line}"


def test_the_table_beside_optax_has_five_rows_and_a_source_for_each():
    assert len(rows_below(README, "| Optax 0.2.8 |")) == len(beside_optax.ROWS) == 5


def test_the_supported_releases_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    required = set(project["project"]["dependencies"])
    pins = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").split("\n", 1)[1]
    oldest = dict(line.split("==") for line in pins.split())
    assert oldest["jax"] == oldest["jaxlib"] == OLDEST
    assert {f"{name}>={oldest[name]}" for name in ("jax", "optax")} <= required
    for extra in ("demos", "bench"):
        assert f"flax>={oldest['flax']}" in extras[extra]
    assert f"the newest supported JAX, {OLDEST} and {NEWEST}.\n" in README
    assert f"at least JAX {OLDEST} and Optax {oldest['optax']};" in START
    assert f"The newest JAX that the tests run on is {NEWEST}.\n" in START


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert lines.index("## Which method?") <= 85


def test_methods_named_by_situation_exist():
    situations = README.partition("## Which method?")[2].partition("\n## ")[0]
    recipes = re.findall(r"docs/methods/(\w+)\.md", situations)
    assert 6 <= len(recipes) <= 12
    assert all(hasattr(clipjax, name) for name in recipes)


def test_the_reads_of_a_report_and_the_number_of_methods():
    counts = counted.read()[OLDEST]["subjects"]["clip_by_value"]
    assert counts["float32: bytes"] == pytest.approx(4, abs=0.05)
    assert "four more times" in README
    methods = [f for f in vars(recipes).values() if inspect.isfunction(f)]
    assert f"[{len(methods)} methods]" in README
    assert f"{len(methods)} ways to clip" in (ROOT / "docs/index.md").read_text("utf-8")
