"""Links in pages and notebooks lead to files and headings that exist."""

import importlib
import os
import pathlib
import re
import sys
from urllib.parse import unquote

import pytest
import reading
from reading import DOCS, NOTEBOOKS, ROOT, text_of

sys.path.insert(0, str(DOCS))

anchors_of = importlib.import_module("anchors")

PAGES = [*reading.PAGES, ROOT / "CHANGELOG.md", *NOTEBOOKS]
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)")
REMOTE = ("http://", "https://", "mailto:")
# On the site, these have an entry in place of an anchor; see the extension `pages`.
MADE_BY_THE_BUILD = {"notebooks/index.md"}


def links(markdown):
    """Lists the targets of links and images, without those that code shows."""
    prose = re.sub(r"`[^`\n]+`", "`", anchors_of.without_code(markdown))
    return [unquote(target) for target in LINK.findall(prose)]


def broken(path, markdown, root=ROOT):
    """Lists the links of a page that lead nowhere."""
    found = []
    for target in links(markdown):
        if target.startswith(REMOTE) or target in MADE_BY_THE_BUILD:
            continue
        name, _, anchor = target.partition("#")
        place = pathlib.Path(os.path.normpath(path.parent / name)) if name else path
        inside = root in place.parents
        if not inside or not place.exists():
            found.append(target)
        elif anchor and place.suffix in {".md", ".ipynb"}:
            here = markdown if place == path else text_of(place)
            if anchor not in anchors_of.anchors(here):
                found.append(target)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    assert not broken(path, text_of(path))


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "other.md").write_text(
        "# Other\n\n## What it is: a `test`\n\n## A\n## A\n"
    )
    page = tmp_path / "page.md"
    text = """# Page
[a](other.md) [b](other.md#what-it-is-a-test) [c](#page) [d](https://x.test/#none)
[e](gone.md) [f](other.md#gone) [g](#gone) [h](../../outside.md) ![i](gone.png)
[j](other.md#a-1) [k](other.md#a-2) `[l](code.md)`
```text
[m](code.md)
```
"""
    page.write_text(text)
    gone = ["gone.md", "other.md#gone", "#gone", "../../outside.md", "gone.png"]
    assert broken(page, text, tmp_path) == [*gone, "other.md#a-2"]


def test_every_relative_link_of_the_site_is_a_path():
    """The root of the site is not that of the repository."""
    absolute = [t for path in PAGES for t in links(text_of(path)) if t[0] == "/"]
    assert not absolute
