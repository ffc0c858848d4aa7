"""The main pages of the built site, as a phone and a desktop show them."""

import pytest
from browser_checks import check

PAGES = (
    "index",
    "start",
    "choosing",
    "methods",
    "methods/zclip",
    "thresholds",
    "theory",
    "spikes",
    "privacy",
    "gallery",
    "api",
    "api/engine",
    "coming_from/optax",
    "glossary",
    "search",
)


@pytest.mark.parametrize("name", PAGES)
def test_a_page(visit, site, name):
    path = site / f"{name}.html"
    if not path.exists():
        pytest.skip(f"the site has no page {name!r}")
    check(visit(path))


def test_a_notebook(visit, site):
    notebooks = sorted((site / "notebooks").glob("0*.html"))
    if not notebooks:
        pytest.skip("the site has no notebooks")
    check(visit(notebooks[0]), figures=1)


def test_formulas_are_typeset_without_a_network(visit, site):
    page = visit(site / "theory.html").page
    if not page.query_selector(".math"):
        pytest.skip("the page has no formulas")
    page.wait_for_selector("mjx-container", timeout=20_000)
