"""Recommend a threshold from the norms that a run has recorded."""

import functools
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..diagnostics import suggest_thresholds
from .options import did_you_mean

LONGEST_LINE = 2**20  # bytes; a line of metrics has some hundreds
NORM = "grad_norm_raw"
ACCEPTED = "accepted: a JSONL file with a norm, or an object of metrics, per line"


def read_norms(path: pathlib.Path, key: str | None = None) -> np.ndarray:
    """Return the norms in a JSONL file: one number, or one object of metrics, a line.

    If the "step" of an object is not above the one before, after a restart from a
    checkpoint, the earlier entries from that step on are replaced. Objects without the
    norm, empty lines and an incomplete last line are skipped.

    Args:
        path: the file.
        key: the key of the norm in an object; by default the only key that is
            `grad_norm_raw` or ends with `/grad_norm_raw`.

    Returns:
        One float64 per step; null, or a text such as "NaN", becomes non-finite.

    Raises:
        ValueError: the file contains anything else; the message names file and line.
    """
    named = repr(str(path))
    try:
        records = list(_records(path))
    except OSError as error:
        raise ValueError(
            f"cannot read {named} ({error.strerror}); {ACCEPTED}"
        ) from error
    objects = [record for _, record in records if isinstance(record, dict)]
    keys = list(dict.fromkeys(name for record in objects for name in record))
    if objects:
        key = _choose(keys, key, named)
    norms: list[tuple[float, float]] = []
    for number, record in records:
        step, value = number, record
        if isinstance(record, dict):
            if key not in record:
                continue
            step, value = record.get("step", number), record[key]
        while norms and norms[-1][0] >= step:
            norms.pop()
        try:
            norms.append((step, math.nan if value is None else _number(value)))
        except ValueError:
            raise ValueError(
                f"line {number} of {named} holds {value!r} for a norm; {ACCEPTED}"
            ) from None
    if not norms:
        raise ValueError(f"{named} holds no norms; {ACCEPTED}")
    return np.array([norm for _, norm in norms])


def _records(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        # Bounded, since a binary file may have no line breaks at all.
        read_line = functools.partial(file.readline, LONGEST_LINE)
        for number, line in enumerate(iter(read_line, b""), 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                    return  # the run was killed while it wrote
                raise ValueError(
                    f"line {number} of {str(path)!r} is not JSON; {ACCEPTED}"
                ) from error


def _choose(keys: list[str], key: str | None, named: str) -> str:
    found = [name for name in keys if name.rpartition("/")[2] == NORM]
    if key is None and len(found) == 1:
        return found[0]
    if key is None:
        listed = ", ".join(map(repr, found or keys)) or "nothing"
        what = "several norms" if found else f"no {NORM!r}"
        raise ValueError(f"{named} has {what}: say which with --key, one of {listed}")
    if key not in keys:
        listed = ", ".join(map(repr, keys)) or "nothing"
        hint = did_you_mean(key, keys)
        raise ValueError(f"{named} has no key {key!r}{hint}; accepted: {listed}")
    return key


def _number(value: Any) -> float:
    if isinstance(value, bool | list | dict):
        raise ValueError
    return float(value)


def tune(path: pathlib.Path, key: str | None) -> int:
    """Print the table of thresholds for the norms in a file, and a line to paste."""
    norms = read_norms(path, key)
    table = suggest_thresholds(norms)
    from . import terminal

    cells = [
        [row.strategy, f"{row.threshold:.4g}", f"{100 * row.clipped_fraction:.1f} %"]
        for row in table.rows
    ]
    terminal.show_table(
        f"Thresholds from {len(norms)} recorded norms",
        ("strategy", "threshold", "would have clipped"),
        cells,
    )
    threshold = f"{table.recommended.threshold:.4g}"
    reason = " ".join([table.reason, *table.cautions])
    terminal.say(f"Recommended: {threshold} ({table.recommended.strategy}). {reason}")
    print(f"\nclipjax.clip_by_global_norm({threshold})")
    return 0
