"""Makes the tables of recipes from their docstrings.

The documentation calls `page_table` at build time. For the README:

    python docs/methods_table.py --write    rewrites the table in README.md
    python docs/methods_table.py --check    fails if it is not up to date
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import pathlib
import re
import sys

from clipjax import recipes

README = pathlib.Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- methods: begin; made by docs/methods_table.py -->"
END = "<!-- methods: end -->"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a recipe's docstring says about it."""

    name: str
    summary: str
    equation: str
    coordinates: str
    reference: str


def read_recipe(name: str, docstring: str) -> Recipe:
    """Reads a recipe's docstring, or says what it lacks."""
    parts = {
        "summary": r"\A(.+?)\n\n",
        "equation": r"^\.\. math::(.+?)\n\n(?=\S)",
        "coordinates": r"^Coordinates: ``(.+?)``$",
        "reference": r"^References:\n(.+?)\s*\Z",
    }
    found = {}
    for part, pattern in parts.items():
        match = re.search(pattern, docstring, re.DOTALL | re.MULTILINE)
        if match is None:
            raise ValueError(f"the docstring of {name} has no {part}")
        found[part] = " ".join(match.group(1).split())
    return Recipe(name=name, **found)


def read_recipes() -> list[Recipe]:
    """Reads every recipe that clipjax exports, in order of name."""
    return [
        read_recipe(name, inspect.getdoc(function) or "")
        for name, function in sorted(vars(recipes).items())
        if inspect.isfunction(function)
    ]


def as_markdown(text: str) -> str:
    """Turns the links and quotes of a docstring into Markdown."""
    text = re.sub(r"`([^`<]+?)\s*<([^>]+)>`_+", r"[\1](\2)", text)
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def as_table(header: list[str], rows: list[list[str]]) -> str:
    """Lays out a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    for cells in rows:
        if any("|" in cell for cell in cells):
            raise ValueError(f"a cell of a Markdown table must not have a |: {cells}")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def readme_table() -> str:
    """Makes the table for README.md."""
    rows = [
        [
            f"`{recipe.name}`",
            as_markdown(recipe.summary),
            recipe.coordinates,
            as_markdown(recipe.reference),
        ]
        for recipe in read_recipes()
    ]
    return as_table(["recipe", "what it does", "coordinates", "reference"], rows)


def page_table() -> str:
    """Makes the table for the documentation, with links and equations."""
    rows = [
        [
            f"{{py:func}}`~clipjax.{recipe.name}`",
            f"{as_markdown(recipe.summary)} ${recipe.equation}$",
            recipe.coordinates,
            as_markdown(recipe.reference),
        ]
        for recipe in read_recipes()
    ]
    return as_table(["recipe", "what it does", "coordinates", "reference"], rows)


def on_the_axes(coordinates: str) -> list[str]:
    """Return the place on the four axes; entries and singular values have no norm."""
    what, *others = coordinates.split(" × ")
    return [what, *["–"] * (3 - len(others)), *others]


def coordinates_table() -> str:
    """Makes the table that sorts recipes by the four axes."""
    rows = [
        [f"{{py:func}}`~clipjax.{recipe.name}`", *on_the_axes(recipe.coordinates)]
        for recipe in read_recipes()
    ]
    axes = ["granularity", "norm", "rule", "threshold"]
    return as_table(["recipe", *axes], sorted(rows, key=lambda row: row[1:]))


def with_table(readme: str) -> str:
    """Puts the table between the two markers."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md must have each of {BEGIN} and {END} once")
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{readme_table()}\n{END}{after}"


def main() -> int:
    """Writes or checks the table in README.md."""
    parser = argparse.ArgumentParser(description="The table of recipes in README.md.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="bring it up to date")
    action.add_argument("--check", action="store_true", help="fail if it is not")
    arguments = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = with_table(old)
    if arguments.write:
        README.write_text(new, encoding="utf-8")
    elif old != new:
        print(
            "The table in README.md is not up to date: "
            "run python docs/methods_table.py --write",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
