"""Final loss by learning rate and threshold, run by run."""

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import optax

from clipjax import recipes

from . import files
from .arms import read_optimizer
from .presets import Tuning
from .summary import diverged
from .tasks.base import Task
from .train import Loop

Key = tuple[float, float, int]


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run of a cell.

    Attributes:
        learning_rate: row of the heat map.
        threshold: column of the heat map; infinite without a clip.
        seed: which run of the cell.
        loss: mean of the last losses.
        diverged: whether the run diverged, by `summary.diverged`.
        clipped: fraction of the steps whose gradient was clipped.
        norms: norms of the gradients before the clip; only of runs without one.
    """

    learning_rate: float
    threshold: float
    seed: int
    loss: float
    diverged: bool
    clipped: float
    norms: tuple[float, ...] = ()

    @property
    def key(self) -> Key:
        """The learning rate, threshold and seed of the run."""
        return self.learning_rate, self.threshold, self.seed


def keys_of(settings: Tuning) -> list[Key]:
    """Return the keys of all runs: first the first seed of every cell."""
    columns = (math.inf, *settings.thresholds)
    runs = itertools.product(range(settings.seeds), settings.lr, columns)
    return [(rate, threshold, seed) for seed, rate, threshold in runs]


def train(
    settings: Tuning,
    task: Task,
    keys: Iterable[Key],
    watch: Callable[[Key, int, dict[str, float]], None],
) -> Iterator[Run]:
    """Train the runs, by one compiled program: rate and threshold are its arguments.

    Args:
        settings: the settings.
        task: the result of `build_task(settings.model)`.
        keys: the keys of the runs.
        watch: called with the run, its steps done and its last log after each interval.

    Raises:
        ValueError: if the task does not fit into memory.
    """
    optimizer = read_optimizer(settings.optimizer)

    def build(learning_rate: jax.Array, threshold: jax.Array):
        clip = recipes.clip_by_global_norm(threshold)
        return optax.chain(clip, optimizer(learning_rate))

    try:
        loop = Loop(
            task,
            build,
            names=("learning_rate", "threshold"),
            steps=settings.steps,
            interval=settings.log_every,
            is_scored=False,
        )
        for key in keys:
            rate, threshold, seed = key
            history = loop.run(
                seed,
                lambda step, log, key=key: watch(key, step, log),
                learning_rate=rate,
                threshold=threshold,
            )
            losses = history.log["loss"].astype(np.float64)
            is_unclipped = threshold == math.inf
            yield Run(
                *key,
                loss=float(losses[-settings.last :].mean()),
                diverged=bool(diverged(losses)),
                clipped=float((history.log["clipped_fraction"] > 0).mean()),
                norms=tuple(history.log["grad_norm_raw"].tolist())
                if is_unclipped
                else (),
            )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).rpartition(": ")[2]
        raise ValueError(f"the task cannot be trained: {reason}") from error


class RunFile:
    """The finished runs, a line of JSON each, below a line with the settings.

    Args:
        path: the file; it need not exist.
        settings: the settings that all its runs must share.

    Raises:
        ValueError: if the file has another format, or runs with other settings. More
            learning rates, thresholds and seeds are allowed.
    """

    def __init__(self, path: pathlib.Path, settings: dict[str, Any]):
        """Read the file, skipping an incomplete last line of a killed process."""
        free = {"lr", "thresholds", "seeds", "log_every"}
        fixed = {name: settings[name] for name in settings.keys() - free}
        self.path = path
        self.header = files.to_json({"settings": dict(sorted(fixed.items()))})
        now = json.loads(self.header)["settings"]
        content = path.read_bytes() if path.exists() else b""
        lines = content.splitlines(keepends=True)
        self.good = [line for line in lines if line.endswith(b"\n")]
        try:
            records = [json.loads(line) for line in self.good]
            before = dict(records[0]["settings"]) if records else now
            runs = [_read_run(record) for record in records[1:]]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(
                f"{str(path)!r} is no file of a heat map ({error!r}); accepted: "
                "another --out"
            ) from error
        for name in now:
            if before.get(name) != now[name]:
                raise ValueError(
                    f"{str(path)!r} holds runs of other settings ({name} was "
                    f"{before.get(name)} and is {now[name]} now); accepted: the same "
                    "settings, or another --out"
                )
        self.runs: dict[Key, Run] = {run.key: run for run in runs}

    def start(self) -> None:
        """Create the file, or remove an incomplete last line."""
        files.make_directory(self.path.parent)
        self.path.write_bytes(b"".join(self.good) or self.header)

    def add(self, run: Run) -> None:
        """Append one run."""
        with self.path.open("ab") as file:
            file.write(files.to_json(vars(run)))
        self.runs[run.key] = run


def _read_run(record: dict[str, Any]) -> Run:
    numbers = {name: float(record[name]) for name in ("loss", "clipped")}
    return Run(
        float(record["learning_rate"]),
        float(record["threshold"]),  # "inf", too
        record["seed"],
        diverged=record["diverged"],
        norms=tuple(map(float, record["norms"])),
        **numbers,
    )


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """The runs of a heat map in order.

    Attributes:
        learning_rates: `(rows,)`, ascending.
        thresholds: `(columns,)`, ascending; the last is infinite: no clip.
        loss: `(rows, columns, seeds)`, the mean of the last losses of each run.
        diverged: `(rows, columns, seeds)`.
        norms: `(rows, seeds, steps)`, the norms of the runs without a clip.
    """

    learning_rates: np.ndarray
    thresholds: np.ndarray
    loss: np.ndarray
    diverged: np.ndarray
    norms: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """`(rows, columns)`: mean loss over seeds."""
        return self.loss.mean(axis=-1)

    @property
    def is_usable(self) -> np.ndarray:
        """`(rows, columns)`: whether no seed diverged."""
        return np.logical_not(self.diverged.any(axis=-1))

    def best(self, columns: slice = slice(None)) -> tuple[int, int] | None:
        """Row and column of the lowest mean loss where no seed diverged, if any."""
        loss = np.where(self.is_usable, self.mean, np.inf)[:, columns]
        if not np.isfinite(loss).any():
            return None
        row, column = np.unravel_index(np.argmin(loss), loss.shape)
        return int(row), int(range(len(self.thresholds))[columns][column])

    def highest_rate(self, column: int) -> float | None:
        """The highest learning rate below which, and at which, no seed diverged."""
        good = self.is_usable[:, column]
        count = len(good) if good.all() else int(np.argmin(good))
        return float(self.learning_rates[count - 1]) if count else None


def gather(settings: Tuning, runs: dict[Key, Run]) -> HeatMap:
    """The runs of the settings as arrays; all of them must be finished."""
    rates = sorted(settings.lr)
    thresholds = [*sorted(settings.thresholds), math.inf]

    def of(value: Callable[[Run], Any], columns: list[float]) -> np.ndarray:
        return np.array(
            [
                [
                    [value(runs[rate, column, seed]) for seed in range(settings.seeds)]
                    for column in columns
                ]
                for rate in rates
            ]
        )

    return HeatMap(
        np.array(rates),
        np.array(thresholds),
        loss=of(lambda run: run.loss, thresholds),
        diverged=of(lambda run: run.diverged, thresholds),
        norms=of(lambda run: run.norms, [math.inf])[:, 0],
    )
