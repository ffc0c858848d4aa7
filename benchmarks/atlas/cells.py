"""One JSON file per cell, written whole or not at all, and kept if nothing changed."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np

from .arms import Arm, arms
from .conditions import BURST, ENTRIES, EVERY, NOISE, SIZE, SPIKES
from .engine import (
    QUANTILE,
    REACHED,
    SURVIVED,
    WITHIN,
    Grid,
    Inputs,
    capped,
    inputs,
    pilot,
    simulate,
    step_flops,
    survived,
)
from .task import Task
from .text import LENGTH

EDITION = 1  # raise it if the same settings give other results
RULES = {
    "edition": EDITION,
    "spikes": [*SPIKES, SIZE, ENTRIES, SURVIVED, WITHIN],
    "bad batches": BURST,
    "label noise": NOISE,
    "evaluation": EVERY,
    "quantiles": [QUANTILE, REACHED],
    "length": LENGTH,
    "versions": {name: importlib.metadata.version(name) for name in ("jax", "optax")},
}


def fingerprint(task: Task, grid: Grid, *others: Any) -> str:
    """Return a hash of everything that a cell's numbers depend on."""
    settings = [RULES, task.settings(), grid, *others]
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}"
        for key, value in content.items()
    )
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(f"{{{lines}}}\n", encoding="utf-8")
    temporary.replace(path)


def read(path: pathlib.Path, wanted: str | None = None) -> dict[str, Any] | None:
    """Return a file's content if it is there and has the fingerprint wanted."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    is_wanted = wanted is None or content["fingerprint"] == wanted
    return content if is_wanted else None


def rounded(values: np.ndarray) -> Any:
    """Return nested lists of numbers of four digits; None for what is not finite."""
    if values.ndim:
        return [rounded(value) for value in values]
    return float(f"{values:.4g}") if np.isfinite(values) else None


def compute(
    task: Task, arm: Arm, grid: Grid, given: dict[str, Inputs], target: float
) -> dict[str, Any]:
    """Train a cell and return what its file holds."""
    exponents = grid.exponents(task, arm)
    content: dict[str, Any] = {
        "fingerprint": fingerprint(task, grid, arm.settings(), target),
        "arm": arm.settings(),
        "grid": grid._asdict(),
        "exponents": rounded(exponents),
        "flops": step_flops(task, arm, given["clean"]),
    }
    for name, runs in simulate(task, arm, exponents, given).items():
        content.setdefault("initial", rounded(runs.losses[0, :, 0]))
        losses = capped(runs.losses)
        reached = np.minimum.accumulate(losses, axis=-1) <= target
        first = np.where(reached[..., -1], EVERY * np.argmax(reached, axis=-1), -1)
        is_lost = ~(runs.losses[..., -1] < runs.losses[..., 0])
        content[name] = {
            "final": rounded(np.where(is_lost, np.inf, runs.losses[..., -1])),
            "best": rounded(losses.min(axis=-1)),
            "steps": first.tolist(),
            "clipped": rounded(np.mean(runs.clipped, axis=1)),
        }
        if name == "spikes":
            content[name]["survived"] = survived(runs.losses, task.steps).tolist()
        if task.modes is not None:
            content[name]["modes"] = runs.modes.astype(int).tolist()
    return content


def fill(
    task: Task, names: Collection[str] | None, grid: Grid, out: pathlib.Path
) -> Iterator[tuple[str, Exception | bool]]:
    """Compute a task's cells that are missing or old, the arms without a clip first.

    Yields:
        A cell's name, and whether it was computed, or the error that stopped it.
    """
    given = functools.cache(lambda: inputs(task, grid.seeds))
    print_of_pilot = fingerprint(task, grid, "pilot")
    path = out / task.name / "pilot.json"
    common = read(path, print_of_pilot)
    if common is None:
        common = {"fingerprint": print_of_pilot, **pilot(task, grid, given()["clean"])}
        write(path, common)
    for name, arm in arms(task, common["thresholds"]).items():
        if names is not None and name not in names:
            continue
        path = out / task.name / f"{name}.json"
        target = common["target"]
        try:
            is_old = read(path, fingerprint(task, grid, arm.settings(), target)) is None
            if is_old:
                write(path, compute(task, arm, grid, given(), target))
        except Exception as error:  # the other cells go on
            yield name, error
        else:
            yield name, is_old
        jax.clear_caches()
