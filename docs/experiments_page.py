"""Makes docs/experiments.md of what `clipjax probe experiments --out DIR` wrote.

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
    """Joins the reports of the experiments, and the time that they took."""
    names = GROUPS["experiments"]
    reports = [(directory / f"{name}.md").read_text(encoding="utf-8") for name in names]
    seconds = sum(
        json.loads((directory / f"{name}.json").read_bytes())["seconds"]
        for name in names
    )
    took = f"All {len(names)} together took {seconds / 60:.0f} minutes.\n"
    return "\n".join([MARK, took, *reports])


def main() -> None:
    """Replaces what follows the mark of the page."""
    parser = argparse.ArgumentParser(description="The page of experiments.")
    parser.add_argument("directory", type=pathlib.Path)
    written = made(parser.parse_args().directory)
    kept, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(kept + written, encoding="utf-8")


if __name__ == "__main__":
    main()
