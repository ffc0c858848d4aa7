"""Write docs/experiments.md from the files of `clipjax probe experiments --out DIR`.

python docs/experiments_page.py DIR
"""

from __future__ import annotations

import argparse
import json
import pathlib

from clipjax.demos.probes.catalogue import GROUPS

PAGE = pathlib.Path(__file__).parent / "experiments.md"
MARK = "<!-- what follows is made by docs/experiments_page.py -->\n"


def made(directory: pathlib.Path) -> str:
    """Join the reports of the experiments, and their total time."""
    names = GROUPS["experiments"]
    reports = [(directory / f"{name}.md").read_text(encoding="utf-8") for name in names]
    seconds = sum(
        json.loads((directory / f"{name}.json").read_bytes())["seconds"]
        for name in names
    )
    took = f"All {len(names)} together took {seconds / 60:.0f} minutes.\n"
    return "\n".join([MARK, took, *reports])


def main() -> None:
    """Replace the part of the page after the mark."""
    parser = argparse.ArgumentParser(description="The page of experiments.")
    parser.add_argument("directory", type=pathlib.Path)
    written = made(parser.parse_args().directory)
    kept, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(kept + written, encoding="utf-8")


if __name__ == "__main__":
    main()
