"""Relative links that are right on GitHub, made right on the site."""

import os
import pathlib
import re
import tomllib

DOCS = pathlib.Path(__file__).parent.parent
ROOT = DOCS.parent
LINK = re.compile(r"(?<=\]\()([^)#\s:]+\.(?:md|ipynb))(?=[)#])")
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def repository() -> str:
    """Return the address of files of the repository; empty if none is known."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    address = tomllib.loads(text)["project"].get("urls", {}).get("Repository", "")
    return address and f"{address}/blob/main/"


def on_site(target: str, folder: pathlib.Path, page: pathlib.Path) -> str:
    """Return the link of ``page``, below ``DOCS``, to what ``folder`` calls ``target``.

    Notebooks are below ``docs`` on the site and beside it in the repository. A page
    that the site does not have is at the address of the repository.
    """
    path = pathlib.Path(os.path.normpath(folder / target))
    if not path.is_file() or ROOT not in path.parents:
        return target  # Sphinx warns of it
    name = path.relative_to(ROOT).as_posix()
    if name in PAGES:
        path = DOCS / PAGES[name]
    elif name.startswith("notebooks/"):
        path = DOCS / name
    elif DOCS not in path.parents:
        return repository() + name if repository() else target
    return pathlib.Path(os.path.relpath(path, page.parent)).as_posix()


def relink(text: str, folder: pathlib.Path, page: pathlib.Path) -> str:
    """Turn the links to pages and notebooks in a Markdown text."""
    return LINK.sub(lambda found: on_site(found[1], folder, page), text)
