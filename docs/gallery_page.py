"""Makes docs/gallery.md: each figure, what draws it, and the page that explains it.

python docs/gallery_page.py --write    rewrites the page and the notebooks' thumbnails
python docs/gallery_page.py --check    fails if they are not up to date
"""

from __future__ import annotations

import argparse
import base64
import collections
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import sys

from anchors import anchors
from PIL import Image, PngImagePlugin

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
PAGE = DOCS / "gallery.md"
FIGURES = DOCS / "figures"
THUMBNAILS = FIGURES / "notebooks"
IMAGE = re.compile(r"!\[([^]]*)\]\(([^)\s]+\.(?:png|svg))\)")
# By the beginning of a figure's path below docs/figures; the first that fits counts.
COMMANDS = {
    "methods/": ("Methods", "python docs/method_pages.py --draw"),
    "choosing": ("Choosing", "python docs/draw_choosing.py"),
    "threshold_paths": ("Choosing", "python docs/draw_choosing.py"),
    "atlas_": ("Atlas of methods", "python -m benchmarks.atlas.page --write"),
    "compare_rnn_loss": ("Runs", "clipjax compare --out demo"),
    "private_accuracy": ("Runs", "clipjax private --out private"),
    "": ("Figures of your own runs", "python docs/draw_figures.py"),
}
BEGINNING = """# Gallery

Each figure leads to the page or notebook that explains it. `python docs/gallery_page.py
--write` makes this page.
"""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of the gallery; links are relative to ``docs``."""

    image: str
    text: str
    page: str

    @property
    def cell(self) -> str:
        """The figure above the first part of its text, both linked to the page."""
        caption = self.text.split(":")[0]
        if "figures/methods/" in self.image:  # two figures of a method, or one
            what = "200 steps" if self.image.endswith("-path.svg") else "in and out"
            caption = f"{pathlib.Path(self.page).stem}: {what}"
        image = f"[![{self.text}]({self.image})]({self.page})"
        return f"{image}<br>[{caption}]({self.page})"


def as_link(path: pathlib.Path) -> str:
    """Write a path as a link from the gallery."""
    return pathlib.Path(os.path.relpath(path, DOCS)).as_posix()


def pages() -> list[pathlib.Path]:
    """List the pages that may explain a figure; the README's come last."""
    built = {DOCS / "_build", DOCS / "notebooks"}
    found = [page for page in DOCS.rglob("*.md") if not built & set(page.parents)]
    return [*sorted(set(found) - {PAGE}), ROOT / "README.md"]


@functools.cache
def uses() -> dict[pathlib.Path, Figure]:
    """Return where each figure is first shown, and its text there."""
    found: dict[pathlib.Path, Figure] = {}
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for image in IMAGE.finditer(text):
            path = pathlib.Path(os.path.normpath(page.parent / image[2]))
            above = anchors(text[: image.start()])[1:]  # without the page's title
            link = "#".join([as_link(page), *above[-1:]])
            said = " ".join(image[1].split()).replace("|", "\\|")
            found.setdefault(path, Figure(as_link(path), said, link))
    return found


def files() -> list[pathlib.Path]:
    """List the figures, without the thumbnails that this script makes."""
    paths = [*FIGURES.rglob("*.png"), *FIGURES.rglob("*.svg")]
    return sorted(path for path in paths if path.parent != THUMBNAILS)


def first_image(notebook: dict) -> bytes | None:
    """Return the first figure among a notebook's outputs."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            encoded = output.get("data", {}).get("image/png")
            if encoded:
                return base64.b64decode("".join(encoded))
    return None


@dataclasses.dataclass(frozen=True)
class Notebook:
    """A notebook, its title and its first figure."""

    path: pathlib.Path
    title: str
    image: bytes

    @property
    def thumbnail(self) -> pathlib.Path:
        """The file with the small image."""
        return THUMBNAILS / f"{self.path.stem}.png"

    @property
    def digest(self) -> str:
        """What tells whether the thumbnail is of this figure."""
        return hashlib.sha256(self.image).hexdigest()

    def is_drawn(self) -> bool:
        """Tell whether the thumbnail is up to date."""
        if not self.thumbnail.is_file():
            return False
        with Image.open(self.thumbnail) as image:
            return image.info.get("source") == self.digest

    def draw(self) -> None:
        """Write the thumbnail: at most 480 pixels wide, with 64 colors."""
        image = Image.open(io.BytesIO(self.image)).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
        image.thumbnail((480, 480))
        info = PngImagePlugin.PngInfo()
        info.add_text("source", self.digest)
        self.thumbnail.parent.mkdir(exist_ok=True)
        small = image.quantize(64, dither=Image.Dither.NONE)
        small.save(self.thumbnail, optimize=True, pnginfo=info)


@functools.cache
def notebooks() -> list[Notebook]:
    """List the notebooks that have a figure."""
    found = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        image = first_image(notebook)
        title = re.search(
            r"^# (.+)$",
            "\n".join("".join(cell["source"]) for cell in notebook["cells"]),
            re.MULTILINE,
        )
        if image is not None:
            found.append(Notebook(path, title[1] if title else path.stem, image))
    return found


def as_table(figures: list[Figure]) -> str:
    """Lay figures out in rows of two, each with its text below it."""
    lines = ["| | |", "| --- | --- |"]
    for first in range(0, len(figures), 2):
        cells = [figure.cell for figure in figures[first : first + 2]]
        lines.append(f"| {' | '.join([*cells, ''][:2])} |")
    return "\n".join(lines)


def group_of(path: pathlib.Path) -> tuple[str, str]:
    """Return the section of a figure, and the command that draws it."""
    name = path.relative_to(FIGURES).as_posix()
    return next(value for start, value in COMMANDS.items() if name.startswith(start))


def page() -> str:
    """Make the page."""
    groups: dict[tuple[str, str], list[Figure]] = {}
    for path in files():
        if path in uses():
            groups.setdefault(group_of(path), []).append(uses()[path])
    parts = [BEGINNING]
    thumbnails = [
        Figure(as_link(one.thumbnail), one.title, as_link(one.path))
        for one in notebooks()
    ]
    parts.append(
        f"## Notebooks\n\nThe first figure of each.\n\n{as_table(thumbnails)}\n"
    )
    for title, command in dict.fromkeys(COMMANDS.values()):
        figures = groups.get((title, command), [])
        if title == "Methods":  # those with two figures first, each in one row
            shown = collections.Counter(one.page for one in figures)
            figures.sort(key=lambda one: -shown[one.page])
        if figures:
            drawn = f"Drawn by `{command}`."
            heading = f"## {title}\n\n" if f"## {title}\n" not in parts[-1] else ""
            parts.append(f"{heading}{drawn}\n\n{as_table(figures)}\n")
    return "\n".join(parts)


def mistakes() -> list[str]:
    """List what is not up to date, and figures that no page shows."""
    found = [
        f"no page shows {path.relative_to(ROOT)}"
        for path in files()
        if path not in uses()
    ]
    wanted = {one.thumbnail for one in notebooks()}
    old = set(THUMBNAILS.glob("*.png")) - wanted
    stale = [one.thumbnail for one in notebooks() if not one.is_drawn()]
    if old or stale or not PAGE.is_file() or PAGE.read_text("utf-8") != page():
        found.append("docs/gallery.md is not up to date: docs/gallery_page.py --write")
    return found


def write() -> None:
    """Write the page and the thumbnails that have changed."""
    for one in notebooks():
        if not one.is_drawn():
            one.draw()
    for path in set(THUMBNAILS.glob("*.png")) - {n.thumbnail for n in notebooks()}:
        path.unlink()
    PAGE.write_text(page(), encoding="utf-8")


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description="The gallery.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="bring it up to date")
    action.add_argument("--check", action="store_true", help="fail if it is not")
    if parser.parse_args().write:
        write()
    found = mistakes()
    print(*found, sep="\n", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
