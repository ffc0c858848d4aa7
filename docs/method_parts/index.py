"""Lays out the tables of docs/methods.md, by what a method is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .docstrings import Recipe, as_markdown
from .notes import Group
from .tables import as_table, coordinates_table

BEGIN = "<!-- methods: begin; made by docs/method_pages.py -->"
END = "<!-- methods: end -->"


def tables(
    recipes: Mapping[str, Recipe], groups: Sequence[Group], others: Sequence[Any]
) -> str:
    """Makes a section for each purpose, then all recipes by name and by parts."""
    parts = [section(group, recipes) for group in groups]
    rows = [
        [
            f"`{row['name']}`",
            row["what"],
            row["use"],
            f"[{row['where']}]({row['page']})",
        ]
        for row in others
    ]
    parts += [
        "## Around a clip, and instead of one",
        "Wrappers and functions that are no recipes.",
        as_table(["name", "what it does", "use it when", "page"], rows),
        "## All recipes by name",
        ", ".join(f"[{name}](methods/{name}.md)" for name in sorted(recipes)) + ".",
        "## All recipes by their parts",
        "`clipjax.clip_by` makes any other combination of granularity, norm, rule and "
        "threshold\n([glossary](glossary.md)). Clips of single entries and of singular "
        "values have no norm to choose:\n`clipjax.clip_entries` and "
        "`clipjax.spectral.clip_singular_values` take a rule and a threshold.",
        coordinates_table(dict(recipes)),
    ]
    return "\n\n".join(parts)


def section(group: Group, recipes: Mapping[str, Recipe]) -> str:
    """Makes the section of one purpose."""
    rows = [
        [
            f"[{name}](methods/{name}.md)",
            as_markdown(recipes[name].summary),
            notes.use,
            recipes[name].paper,
        ]
        for name, notes in group.methods.items()
    ]
    header = ["recipe", "what it does", "use it when", "from"]
    return f"## {group.title}\n\n{group.intro}\n\n{as_table(header, rows)}"


def with_tables(page: str, made: str) -> str:
    """Puts the tables between the two markers of a page."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page must have each of {BEGIN} and {END} once")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"
