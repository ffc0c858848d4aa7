"""The table of numbers: each recipe on the default device, against the CPU."""

from __future__ import annotations

import concurrent.futures
import math
import os
import time
from collections.abc import Mapping
from typing import TypeAlias

from rich.console import Console
from rich.progress import track

from ..report import Cell
from . import differences
from .job import Job

Found: TypeAlias = "concurrent.futures.Future[tuple[float, float] | None]"
Results: TypeAlias = Mapping[tuple[str, str], Found]
ABOUT = """
Eight steps of each recipe, with gradients of norms from 0 to 1e20 and with inf and NaN
in one entry, on this device and on the CPU of the same machine, matrix products at the
highest precision. A number is the largest difference of updates, norms and thresholds,
relative to the largest entry of their leaf, "at norm" the norm of the gradient in that
step. `benchmarks/accelerator/differences.py` says where a bar is wider, and why.
"""


def fill(job: Job) -> None:
    """Compare all recipes, and fail where one is beyond its bar or left out."""
    dtypes = [dtype for dtype in job.options.dtypes if dtype in differences.BARS]
    columns = {"recipe": ""}
    for dtype in dtypes:
        columns |= {dtype: ".1e", f"{dtype}: at norm": "", f"{dtype}: bar": ".1e"}
    title = "The recipes' numbers against the CPU's"
    with job.table("numbers", title, ABOUT, columns) as table:
        found = compare_all(job, dtypes)
        wrong = 0
        for name in job.options.recipes:
            cells: list[Cell] = [name]
            for dtype in dtypes:
                of_dtype, within = cells_of(job, name, dtype, found[dtype, name])
                cells += of_dtype
                wrong += not within
            table.row(*cells)
        table.claim("recipes beyond the bar, failed or left out", wrong, at_most=0)


def compare_all(job: Job, dtypes: list[str]) -> Results:
    """Compare recipes in threads until the time is up, one dtype after the other.

    Most of the time is compilation, which threads do at once.
    """
    shapes = differences.SMALL_SHAPES if job.options.small else differences.SHAPES

    def compare(name: str, dtype: str) -> tuple[float, float] | None:
        if time.monotonic() > job.deadline:
            return None
        return differences.compare(name, shapes, dtype)

    console = Console(stderr=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = {
            (dtype, name): pool.submit(compare, name, dtype)
            for dtype in dtypes
            for name in job.options.recipes
        }
        done = concurrent.futures.as_completed(found.values())
        for _ in track(done, "Recipes", total=len(found), console=console):
            pass
    return found


def cells_of(job: Job, name: str, dtype: str, found: Found) -> tuple[list[Cell], bool]:
    """Return what the table says of a recipe, and whether it is within its bar."""
    bar, where = differences.bar(name, dtype), f"{name} in {dtype}"
    error = found.exception()
    if error is not None:
        return [job.fail(where, error), None, bar], False
    result = found.result()
    if result is None:
        job.leave_out(where)
        return [job.fail(where, "left out"), None, bar], False
    difference, norm = result
    if not difference <= bar:
        job.fail(where, f"differs by {difference:.1e}, and may by {bar:.1e}")
    # JSON has no infinity.
    shown = difference if math.isfinite(difference) else f"{difference}"
    return [shown, f"{norm:g}" if difference else None, bar], difference <= bar
