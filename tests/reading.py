"""Reads the README, the pages and the notebooks as text, as code and as commands."""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
MADE = {DOCS / "_build", DOCS / "notebooks"}  # by the build of the documentation
SITE = sorted(page for page in DOCS.rglob("*.md") if not MADE & set(page.parents))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FENCE = re.compile(r"^(```+|~~~+)(\w*).*?\n(.*?)^\1\s*$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def text_of(file):
    """A page's text, or the Markdown cells of a notebook."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    cells = json.loads(text)["cells"]
    parts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    return "\n\n".join(parts)


def code_of(file):
    """The Python of a page or of a notebook, which runs elsewhere."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return "\n".join(m[3] for m in FENCE.finditer(text) if m[2].startswith("py"))
    cells = json.loads(text)["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def spans_of(file):
    """Code in running text, on one line each."""
    running = FENCE.sub("", text_of(file))
    return {" ".join(span.split()) for span in SPAN.findall(running)}


def console_lines_of(file):
    """What a reader types: the lines with a prompt in blocks of `console`."""
    for match in FENCE.finditer(text_of(file)):
        if match[2] == "console":
            joined = match[3].replace("\\\n", " ")
            yield from re.findall(r"^\$ (.+)$", joined, re.MULTILINE)
