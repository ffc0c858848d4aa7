"""Makes the tables of recipes in README.md and docs/methods.md from docstrings.

python docs/methods_table.py --write    rewrites the tables
python docs/methods_table.py --check    fails if they are not up to date
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import pathlib
import re
import sys

from clipjax import recipes

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
METHODS = ROOT / "docs" / "methods.md"
BEGIN = "<!-- methods: begin; made by docs/methods_table.py -->"
END = "<!-- methods: end -->"
# Modules of recipes, in the order in which a newcomer meets them; others come last.
FAMILIES = ("classic", "smooth", "elementwise", "history", "tensorwise", "adaptive")
FAMILIES += ("spectral", "optimizers")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a recipe's docstring says about it."""

    name: str
    summary: str
    equation: str
    coordinates: str
    reference: str
    family: str = ""

    @property
    def source(self) -> str:
        """The file that defines it."""
        return f"clipjax/recipes/{self.family}.py"

    @property
    def paper(self) -> str:
        """Its first reference, with the authors or the title as the link's text."""
        first = self.reference.split(";")[0]
        link = re.search(r"`([^`<]+?)\s*<([^>]+)>`_", first)
        if link is None:
            return as_markdown(first)
        title, address = link.groups()
        authors = first[: link.start()].strip(", ")
        year = re.search(r"\b(19|20)\d\d\b", first[link.end() :])
        if authors:
            names = authors.split(", ")
            more = " et al." if len(names) > 1 else ""
            title = f"{names[0]}{more}"
        return f"[{title}{f' {year[0]}' if year else ''}]({address})"


def read_recipe(name: str, docstring: str, family: str = "") -> Recipe:
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
    return Recipe(name=name, family=family, **found)


def read_recipes() -> list[Recipe]:
    """Reads every recipe that clipjax exports, by family and name."""
    found = []
    for name, function in vars(recipes).items():
        if inspect.isfunction(function):
            family = function.__module__.rpartition(".")[2]
            found.append(read_recipe(name, inspect.getdoc(function) or "", family))
    order = {family: position for position, family in enumerate(FAMILIES)}
    return sorted(found, key=lambda r: (order.get(r.family, len(order)), r.name))


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
    """Makes the short table for README.md."""
    rows = [
        [f"[`{r.name}`]({r.source})", as_markdown(r.summary), r.paper]
        for r in read_recipes()
    ]
    return as_table(["recipe", "what it does", "from"], rows)


def page_table() -> str:
    """Makes the table for the documentation, with equations and full references."""
    rows = [
        [
            f"`{recipe.name}`",
            f"{as_markdown(recipe.summary)} ${recipe.equation}$",
            as_markdown(recipe.reference),
        ]
        for recipe in read_recipes()
    ]
    return as_table(["recipe", "what it does", "reference"], rows)


def on_the_axes(coordinates: str) -> list[str]:
    """Return the place on the four axes; entries and singular values have no norm."""
    what, *others = coordinates.split(" × ")
    return [what, *["–"] * (3 - len(others)), *others]


def coordinates_table() -> str:
    """Makes the table that sorts recipes by the four axes."""
    rows = [
        [f"`{recipe.name}`", *on_the_axes(recipe.coordinates)]
        for recipe in read_recipes()
    ]
    axes = ["granularity", "norm", "rule", "threshold"]
    return as_table(["recipe", *axes], sorted(rows, key=lambda row: row[1:]))


def with_table(page: str, table: str = "") -> str:
    """Puts a table between the two markers of a page, by default that of the README."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page must have each of {BEGIN} and {END} once")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table or readme_table()}\n{END}{after}"


def main() -> int:
    """Writes or checks the tables."""
    parser = argparse.ArgumentParser(description="The tables of recipes.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="bring them up to date")
    action.add_argument("--check", action="store_true", help="fail if they are not")
    arguments = parser.parse_args()
    tables = f"{page_table()}\n\n## By their parts\n\n{coordinates_table()}"
    old = {path: path.read_text(encoding="utf-8") for path in (README, METHODS)}
    new = {README: with_table(old[README]), METHODS: with_table(old[METHODS], tables)}
    if arguments.write:
        for path, text in new.items():
            path.write_text(text, encoding="utf-8")
    elif old != new:
        print(
            "The tables are not up to date: run python docs/methods_table.py --write",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
