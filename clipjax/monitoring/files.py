"""Files of rows: replaced atomically, and readable after a killed process."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

Row = tuple[int, dict[str, Any]]


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a temporary file, then rename it, so that readers see all or nothing."""
    place = pathlib.Path(path)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="", dir=place.parent, delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, place)
        except BaseException:
            os.unlink(file.name)
            raise


def append_lines(path: str | os.PathLike[str], text: str) -> None:
    """Append whole lines; a kill can leave only the last of them without its end."""
    with open(path, "ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def cut_half_line(path: str | os.PathLike[str]) -> None:
    """Cut off a last line without its end, so that lines can be appended."""
    try:
        file = open(path, "rb+")
    except FileNotFoundError:
        return
    with file:
        file.truncate(file.read().rfind(b"\n") + 1)


def jsonl_text(rows: Iterable[Row]) -> str:
    """Return one JSON object per row; JSON has strings for NaN and infinity only."""
    lines = []
    for step, numbers in rows:
        written = {key: _json_number(value) for key, value in numbers.items()}
        lines.append(json.dumps({"step": step} | written, allow_nan=False) + "\n")
    return "".join(lines)


def rows_of_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read rows with increasing steps: a step that goes back drops what it replaces.

    Raises:
        ValueError: a line other than the last is no JSON object of numbers.
    """
    rows: list[dict[str, Any]] = []
    lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):  # after the last end: half
        try:
            row = {key: float(value) for key, value in json.loads(line).items()}
            row["step"] = int(row["step"])
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with a step and "
                f"numbers, got {line[:80]!r}"
            ) from error
        while rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)
    return rows


def csv_text(keys: Sequence[str], rows: Iterable[Row]) -> str:
    """Return a table; a number that a row lacks is an empty cell."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["step", *keys])
    for step, numbers in rows:
        cells = [str(numbers[key]) if key in numbers else "" for key in keys]
        table.writerow([step, *cells])
    return text.getvalue()


def _json_number(value: Any) -> float | str:
    """Return the number with the fewest digits that reads back as the same value."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(str(value))
