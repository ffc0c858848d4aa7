"""The site works offline, and shows every figure."""

import importlib
import re
import subprocess
import sys

import pytest
from test_links import DOCS, ROOT

sys.path.insert(0, str(DOCS / "_ext"))


def test_the_gallery_is_up_to_date():
    command = [sys.executable, DOCS / "gallery_page.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_what_a_page_loads_from_elsewhere_is_found():
    """The build warns of it, and warnings of `make docs` are errors."""
    source = (DOCS / "_ext" / "offline.py").read_text(encoding="utf-8")
    names: dict = {"__name__": "offline"}
    exec(source.replace("from sphinx.util import logging", "import logging"), names)
    find = names["loads_from_elsewhere"]
    loaded = """<script defer src="https://cdn.test/tex.js"></script>
<link rel="stylesheet" href="//cdn.test/a.css">
<link href='https://cdn.test/icon.png' rel='icon'>
<img alt="a" src="http://cdn.test/a.png">
@import url("https://cdn.test/font.css");
src: url(https://cdn.test/font.woff);"""
    assert all(len(find(line)) >= 1 for line in loaded.splitlines())
    kept = """<a href="https://arxiv.org/abs/1211.5063">paper</a>
<script src="_static/doctools.js"></script>
<link rel="canonical" href="https://site.test/">
<img src="_images/a.png"> url(data:image/svg+xml;charset=utf-8,<svg
xmlns="http://www.w3.org/2000/svg">)"""
    assert find(kept) == []


def test_no_page_loads_from_elsewhere():
    """Nor does a page or notebook of the repository, in HTML of its own."""
    loaded = re.compile(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=.?.?https?:")
    files = [*DOCS.rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    pages = [path for path in files if DOCS / "_build" not in path.parents]
    found = [path for path in pages if loaded.search(path.read_text("utf-8"))]
    assert not found


def test_own_extensions_are_named_in_the_configuration():
    conf = (DOCS / "conf.py").read_text(encoding="utf-8")
    helpers = {"links"}  # imported by an extension
    own = {path.stem for path in (DOCS / "_ext").glob("*.py")} - helpers
    assert all(f'"{name}"' in conf for name in own)
    assert "suppress_warnings" not in conf


def test_links_that_are_right_on_github_become_right_on_the_site():
    links = importlib.import_module("links")
    page = DOCS / "start.md"
    source = "[a](choosing.md) [b](../notebooks/01_quick_start.ipynb) "
    source += "[c](../CHANGELOG.md#added)"
    site = (
        "[a](choosing.md) [b](notebooks/01_quick_start.ipynb) [c](changelog.md#added)"
    )
    assert links.relink(source, DOCS, page) == site
    notebook = DOCS / "notebooks" / "01_quick_start.ipynb"
    source = "[a](../docs/choosing.md#which) [b](01_quick_start.ipynb)"
    site = "[a](../choosing.md#which) [b](01_quick_start.ipynb)"
    assert links.relink(source, ROOT / "notebooks", notebook) == site
    outside = links.relink("[a](benchmarks/RESULTS.md)", ROOT, DOCS / "contributing.md")
    assert outside == f"[a]({links.repository()}benchmarks/RESULTS.md)"


def test_tables_of_sentences_are_marked_and_tables_of_numbers_are_not():
    nodes = pytest.importorskip("docutils.nodes")
    tables = importlib.import_module("tables")

    def row(*texts):
        return [nodes.entry("", nodes.paragraph("", text)) for text in texts]

    long = row("one layer spikes", "a clip of each leaf, at a threshold of its own", "")
    assert tables.has_sentences([long])
    assert not tables.has_sentences([row("0.1", "1.13", "1.14")])
    tables.label(long, ["what you see", "use", "look at"])
    texts = [cell.astext() for cell in long]
    assert texts[1].startswith("use: a clip")
    assert texts[0] == "one layer spikes" and texts[2] == ""
