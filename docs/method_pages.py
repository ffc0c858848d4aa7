"""Makes docs/methods.md and a page for each recipe, from docstrings and method_notes.

python docs/method_pages.py --write           rewrites the pages
python docs/method_pages.py --check           fails if they are not up to date
python docs/method_pages.py --draw [NAME...]  draws the figures, of all or some recipes
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from method_parts import index
from method_parts.docstrings import read_recipes
from method_parts.notes import read_groups, read_others
from method_parts.page import page_of

DOCS = pathlib.Path(__file__).parent
INDEX = DOCS / "methods.md"
FOLDER = DOCS / "methods"
FIGURES = DOCS / "figures" / "methods"


def pages() -> dict[pathlib.Path, str]:
    """Makes all pages, by path."""
    recipes, groups = read_recipes(), read_groups()
    notes = {name: entry for group in groups for name, entry in group.methods.items()}
    for name in recipes.keys() - notes.keys():
        raise ValueError(f"{name} is in no group of docs/method_notes")
    for name in notes.keys() - recipes.keys():
        raise ValueError(f"docs/method_notes has {name}, which is no recipe")
    made = {
        FOLDER / f"{name}.md": page_of(recipe, notes[name])
        for name, recipe in recipes.items()
    }
    tables = index.tables(recipes, groups, read_others())
    made[INDEX] = index.with_tables(INDEX.read_text(encoding="utf-8"), tables)
    return made


def stale(made: dict[pathlib.Path, str]) -> list[str]:
    """Return the names of the pages that differ, are missing, or are left over."""
    now = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    now[INDEX] = INDEX.read_text(encoding="utf-8")
    every = sorted(now.keys() | made.keys())
    return [path.name for path in every if now.get(path) != made.get(path)]


def main() -> int:
    """Writes, checks or draws."""
    parser = argparse.ArgumentParser(description="The pages of the recipes.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="bring them up to date")
    action.add_argument("--check", action="store_true", help="fail if they are not")
    action.add_argument("--draw", nargs="*", metavar="NAME", help="draw the figures")
    arguments = parser.parse_args()
    if arguments.draw is not None:
        from method_parts import figures, scenes  # matplotlib, which pages do without

        FIGURES.mkdir(parents=True, exist_ok=True)
        for name in arguments.draw or scenes.SCENES:
            for path in figures.draw(name, FIGURES):
                print(f"{path.name:40}{path.stat().st_size / 1000:5.0f} kB")
        return 0
    made = pages()
    differing = stale(made)
    if arguments.write:
        FOLDER.mkdir(exist_ok=True)
        for path in set(FOLDER.glob("*.md")) - made.keys():
            path.unlink()
        for path, text in made.items():
            path.write_text(text, encoding="utf-8")
    elif differing:
        command = "python docs/method_pages.py --write"
        print(f"not up to date: {', '.join(differing)}: {command}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
