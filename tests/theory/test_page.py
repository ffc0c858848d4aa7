"""Every statement has a test that cites it; the page of theory names what exists."""

import ast
import pathlib
import re

import pytest

from clipjax.demos.probes.catalogue import PROBES

HERE = pathlib.Path(__file__)
PAGE = HERE.parents[2] / "docs" / "theory.md"
CORRECTIONS = {f"C{number}" for number in range(1, 34)}
VERDICTS = {f"B{number}" for number in range(1, 93)}

# What the numbers claim cannot be computed here.
NOT_TESTED = {
    "B47": "a rate that is attributed to a paper on something else",
    "B58": "the best of a grid after three epochs of MNIST: `clipjax probe heat-map`",
    "B62": "hyperparameters that a paper states",
    "B63": "which paper a recipe is from",
    "B64": "authors and subject of a paper",
    "B65": "lengths of a text",
    "B67": "claims without data or a reference",
}


def collected(file):
    """The functions of a file that pytest collects, by name."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return {node.name: node for node in functions if node.name.startswith("test_")}


@pytest.fixture(scope="module")
def files():
    others = (file for file in HERE.parent.glob("test_*.py") if file != HERE)
    return {file.name: collected(file) for file in others}


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


def cited(function):
    """The numbers that a docstring begins with: "C5, B17: ..."."""
    numbers, colon, _ = (ast.get_docstring(function) or "").partition(":")
    is_list = colon and re.fullmatch(r"[BC]\d+(, [BC]\d+)*", numbers)
    return set(numbers.split(", ")) if is_list else set()


def test_every_statement_is_cited(files):
    by_test = [cited(node) for tests in files.values() for node in tests.values()]
    found = set().union(*by_test)
    assert found <= CORRECTIONS | VERDICTS
    assert CORRECTIONS - found == set()
    assert VERDICTS - found == set(NOT_TESTED)


def test_a_test_that_cites_a_statement_asserts(files):
    for name, tests in files.items():
        for node in tests.values():
            if cited(node):
                text = ast.unparse(node)
                assert "assert " in text or "testing.assert_" in text, (name, node.name)


def links(page):
    """Pairs of a file and the tests that are named after the link to it."""
    found = []
    for item in re.split(r"\n(?=- )|\n\n", page):
        link = re.match(r"- \[(test_\w+\.py)\]\(\.\./tests/theory/\1\):", item)
        if link:
            found.append((link[1], re.findall(r"`(test_\w+)`", item)))
    return found


def test_the_page_names_tests_that_exist(page, files):
    named = links(page)
    for file, names in named:
        assert names and set(names) <= set(files[file]), file
    everywhere = re.findall(r"`(test_\w+)`", page)
    assert sorted(everywhere) == sorted(name for _, names in named for name in names)


def test_the_page_leads_to_every_file(page, files):
    assert {file for file, _ in links(page)} == set(files)


def test_the_page_names_probes_that_exist(page):
    names = re.findall(r"`clipjax probe ([^`]+)`", page)
    assert len(names) > 20 and set(names) <= set(PROBES)
