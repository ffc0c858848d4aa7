"""Docstrings on the API pages: Markdown tables, and links to recipes' pages."""

import pathlib

PAGES = pathlib.Path(__file__).parent.parent / "methods"


def page_of(name: str) -> str | None:
    """Return the page of a recipe, such as ``methods/zclip``, if there is one."""
    recipe = name.removeprefix("clipjax.")
    return f"methods/{recipe}" if (PAGES / f"{recipe}.md").is_file() else None


def link_to_page(app, what, name, thing, options, lines):
    """Add a link to the page with the recipe's figures, after the summary."""
    del app, thing, options
    page = page_of(name) if what == "function" else None
    if page is not None and "" in lines:
        end = lines.index("") + 1
        lines[end:end] = [f"Figures, defaults and pitfalls: :doc:`/{page}`", ""]


def table_to_rst(rows: list[str]) -> list[str]:
    """Turn the lines of a Markdown table into a ``list-table`` of reStructuredText."""
    lines = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in rows[:1] + rows[2:]:
        cells = row.strip().strip("|").split(" | ")
        marks = ["   * - ", *["     - "] * (len(cells) - 1)]
        lines += [mark + cell.strip() for mark, cell in zip(marks, cells, strict=True)]
    return [*lines, ""]


def translate_tables(app, what, name, thing, options, lines):
    """Translate the Markdown tables of a docstring, in place."""
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


def setup(app):
    """Connect both to autodoc."""
    app.connect("autodoc-process-docstring", translate_tables)
    app.connect("autodoc-process-docstring", link_to_page)
    return {"parallel_read_safe": True}
