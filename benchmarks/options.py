"""What the benchmark commands share: their options, their tables, their verdicts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

DTYPES = ("float32", "bfloat16")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with exit code 2."""

    def __init__(self, command: str, description: str | None):
        """Take the command's name and its module's docstring."""
        super().__init__(
            prog=f"python -m benchmarks.{command}".rstrip("."),
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Print the message, without the usage, and exit."""
        self.exit(2, f"{self.prog}: {message}\n")


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number ≥ 1, got {text!r}")
    return number


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
