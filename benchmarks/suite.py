"""The tables that `make bench` measures, in the order of RESULTS.md."""

from __future__ import annotations

import pathlib

TABLES = pathlib.Path(__file__).parent / "tables"
# A table is the file `test_NAME.py`.
ORDER = (
    "clip_and_adam_costs_one_read",
    "clipping_per_example_costs_a_plain_gradient",
    "clipping_per_example_scales_like_the_plain_gradient",
    "clipping_per_example_needs_the_memory_of_a_gradient",
    "private_step_costs_little_more",
)


def tables_of_suite() -> tuple[str, ...]:
    """Return the names of all tables.

    Raises:
        ValueError: `ORDER` does not name the files that there are.
    """
    files = {path.stem.removeprefix("test_") for path in TABLES.glob("test_*.py")}
    if files != set(ORDER):
        raise ValueError(f"ORDER and {TABLES} differ by {files ^ set(ORDER)}")
    return ORDER


def path_of(name: str) -> pathlib.Path:
    """Return the file that measures a table."""
    return TABLES / f"test_{name}.py"
