"""Configuration of Sphinx."""

import pathlib
import re
import shutil
import tomllib

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent

project = "clipjax"
author = "The clipjax authors"
copyright = "2026, The clipjax authors"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",  # MathJax and its fonts, copied into the built site
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"clipjax {release}"

NAME = re.compile(r"(clipjax\.)?[a-zA-Z_]\w+(\.[a-zA-Z_]\w+)*")
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say it in words
autodoc_preserve_defaults = True
napoleon_attr_annotations = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# Links out of the documentation, such as to CONTRIBUTING.md, are right on GitHub.
suppress_warnings = ["myst.xref_missing"]
nb_execution_mode = "off"  # committed with outputs, and executed by the tests


def copy_notebooks() -> None:
    """Brings the notebooks below this folder, where Sphinx looks, and lists them."""
    folder = HERE / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for notebook in notebooks:
        shutil.copy(notebook, folder)
    entries = "\n".join(notebook.stem for notebook in notebooks)
    page = f"# Notebooks\n\n```{{toctree}}\n{entries}\n```\n"
    (folder / "index.md").write_text(page, encoding="utf-8")


copy_notebooks()


def table_to_rst(rows: list[str]) -> list[str]:
    """Turns the lines of a Markdown table into a ``list-table`` of reStructuredText."""
    lines = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in rows[:1] + rows[2:]:
        cells = row.strip().strip("|").split(" | ")
        marks = ["   * - ", *["     - "] * (len(cells) - 1)]
        lines += [mark + cell.strip() for mark, cell in zip(marks, cells, strict=True)]
    return [*lines, ""]


def translate_tables(app, what, name, thing, options, lines):
    """Translates the Markdown tables of a docstring, in place."""
    del app, what, name, thing, options
    translated: list[str] = []
    rows: list[str] = []
    unfinished = ""
    for line in lines:
        if unfinished:  # a row may go on in the next line, to where a bar ends one
            line = f"{unfinished} {line.strip()}"
        is_row = line.startswith("|")
        unfinished = line if is_row and not line.endswith("|") else ""
        if unfinished:
            continue
        if is_row:
            rows.append(line)
            continue
        if rows:
            translated += table_to_rst(rows)
            rows = []
        translated.append(line)
    if rows:
        translated += table_to_rst(rows)
    lines[:] = translated


class LinkNames(SphinxTransform):
    """Links names in plain code, such as `zclip` or `clipjax.zclip`, to their entries.

    So the pages need no roles, which GitHub would show as they are.
    """

    default_priority = 10  # before references are resolved

    def apply(self, **kwargs):
        del kwargs
        if self.env.docname == "api":
            return
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext().removesuffix("()")
            if isinstance(literal.parent, nodes.reference) or not NAME.fullmatch(name):
                continue
            target = f"clipjax.{name.removeprefix('clipjax.')}"
            link = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=target, refwarn=False
            )
            literal.replace_self(link)
            link += literal


def setup(app):
    """Connects the translation of tables, and the links of names."""
    app.connect("autodoc-process-docstring", translate_tables)
    app.add_transform(LinkNames)
