"""Markdown tables, and the place of a recipe on the four axes."""

from __future__ import annotations

from collections.abc import Sequence

from .docstrings import Recipe

AXES = ("granularity", "norm", "rule", "threshold")


def as_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    for cells in rows:
        if any("|" in cell.replace(r"\|", "") for cell in cells):
            raise ValueError(f"a cell of a Markdown table must not have a |: {cells}")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def on_the_axes(coordinates: str) -> list[str]:
    """Return the place on the four axes; entries and singular values have no norm."""
    what, *others = coordinates.split(" × ")
    return [what, *["–"] * (3 - len(others)), *others]


def coordinates_table(recipes: dict[str, Recipe]) -> str:
    """Makes the table that sorts recipes by the four axes."""
    rows = [
        [f"[{name}](methods/{name}.md)", *on_the_axes(recipe.coordinates)]
        for name, recipe in recipes.items()
    ]
    return as_table(["recipe", *AXES], sorted(rows, key=lambda row: row[1:]))
