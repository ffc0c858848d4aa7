"""Draws the images of docs/figures.md with the code of that page.

A block of code is followed by the image of its variable ``figure``.
"""

from __future__ import annotations

import io
import pathlib
import re

from PIL import Image
from run_snippets import BLOCK

HERE = pathlib.Path(__file__).parent
IMAGE = re.compile(r"!\[[^]]*\]\((figures/\w+\.png)\)")


def draw(page: pathlib.Path) -> list[pathlib.Path]:
    """Runs the blocks of a page, and writes the image that stands before the next."""
    text = page.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    ends = [block.start() for block in blocks[1:]] + [len(text)]
    namespace: dict = {}
    written = []
    for block, end in zip(blocks, ends, strict=True):
        exec(block.group(1), namespace)
        image = IMAGE.search(text, block.end(), end)
        if image:
            written.append(page.parent / image.group(1))
            save(namespace["figure"], written[-1])
    return written


def save(figure, path: pathlib.Path) -> None:
    """Writes a PNG of 64 colors, a third of the size of a full one."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    image = Image.open(buffer).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    for path in draw(HERE / "figures.md"):
        print(path.relative_to(HERE.parent), f"{path.stat().st_size / 1000:.0f} kB")
