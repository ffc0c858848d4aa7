"""From the cells to scores, differences with intervals, and adjusted p-values."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from ..recipes import recipes
from .arms import UNCLIPPED
from .cells import read

USABLE = 0.9  # of the unclipped arm's score: what a usable learning rate reaches
LEVEL = 0.05
SIMPLEST = "clip_by_global_norm"


def signs(samples: Sequence[np.ndarray]) -> float:
    """Return the p-value of the sign test, over all samples; ties do not count."""
    values = np.concatenate(samples)
    up, down = int(np.sum(values > 0)), int(np.sum(values < 0))
    if not up + down:
        return 1.0
    return float(scipy.stats.binomtest(up, up + down).pvalue)


class Estimate(NamedTuple):
    """A mean over seeds, half of its 95 % interval, and the p-value of zero."""

    mean: float
    half: float
    p: float

    @classmethod
    def of(cls, samples: Sequence[np.ndarray]) -> Estimate:
        """Estimate the mean of the means of some tasks, each over its own seeds.

        The tasks are fixed: only seeds are random. Degrees of freedom are those of
        Welch and Satterthwaite; with one sample it is the t-interval.
        """
        mean = float(np.mean([np.mean(sample) for sample in samples]))
        parts = [
            np.var(sample, ddof=1) / len(sample) / len(samples) ** 2
            for sample in samples
        ]
        total = float(sum(parts))
        if not total:
            return cls(mean, 0.0, signs(samples))
        freedom = total**2 / sum(
            part**2 / (len(sample) - 1)
            for part, sample in zip(parts, samples, strict=True)
        )
        error = math.sqrt(total)
        student = scipy.stats.t(freedom)
        p = 2 * float(student.sf(abs(mean) / error))
        return cls(mean, float(student.ppf(0.975)) * error, p)


def holm(estimates: dict[str, Estimate]) -> set[str]:
    """Return the names that differ from zero at `LEVEL`, after Holm's correction."""
    found: set[str] = set()
    order = sorted(estimates, key=lambda name: estimates[name].p)
    for place, name in enumerate(order):
        if estimates[name].p * (len(order) - place) > LEVEL:
            break
        found.add(name)
    return found


@dataclasses.dataclass(frozen=True)
class Cell:
    """One arm on one task; losses have axes of rates and of seeds."""

    content: dict[str, Any]

    @property
    def tuning(self) -> int:
        """The number of seeds for tuning, which come first."""
        return self.content["grid"]["tuning"]

    @functools.cached_property
    def initial(self) -> np.ndarray:
        """The loss before training, by seed."""
        return np.array(self.content["initial"])

    def final(self, condition: str) -> np.ndarray:
        """Return final losses; the initial one where a run ended above it."""
        values = np.array(self.content[condition]["final"], float)
        return np.where(np.isfinite(values), values, self.initial)

    def best_rate(self, condition: str) -> int:
        """Return the position of the rate that is best for the seeds for tuning."""
        return int(np.argmin(self.final(condition)[:, : self.tuning].mean(1)))

    def reported(self, condition: str, rate: int | None = None) -> np.ndarray:
        """Return final losses of the reported seeds, at a rate or the clean one."""
        rate = self.best_rate("clean") if rate is None else rate
        return self.final(condition)[rate, self.tuning :]

    def numbers(self, condition: str, what: str) -> np.ndarray:
        """Return another number of the reported seeds, at the clean rate."""
        values = np.array(self.content[condition][what], float)
        return values[self.best_rate("clean"), self.tuning :]


@dataclasses.dataclass(frozen=True)
class Atlas:
    """All cells of the tasks that are complete."""

    cells: dict[str, dict[str, Cell]]
    pilots: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: pathlib.Path) -> Atlas:
        """Read the results; a task that lacks a recipe is left out."""
        found: dict[str, dict[str, Cell]] = {}
        pilots = {}
        for directory in sorted(path for path in folder.iterdir() if path.is_dir()):
            cells = {
                path.stem: Cell(read(path) or {})
                for path in sorted(directory.glob("*.json"))
                if path.stem != "pilot"
            }
            if {UNCLIPPED, *recipes()} <= cells.keys():
                found[directory.name] = cells
                common = read(directory / "pilot.json") or {}
                pilots[directory.name] = common["thresholds"]
        return cls(found, pilots)

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks."""
        return list(self.cells)

    def scale(self, task: str) -> float:
        """Return the progress of the unclipped arm without a fault: a score of one."""
        cell = self.cells[task][UNCLIPPED]
        gains = cell.initial[cell.tuning :] - cell.reported("clean")
        return float(np.mean(gains))

    def score(
        self, task: str, arm: str, condition: str, own: bool = False
    ) -> np.ndarray:
        """Return progress by seed, in units of `scale`; 0 where a run diverged.

        Args:
            task: the task.
            arm: the arm.
            condition: the condition.
            own: whether the rate is tuned under the condition, not without a fault.
        """
        cell = self.cells[task][arm]
        rate = cell.best_rate(condition) if own else None
        gains = cell.initial[cell.tuning :] - cell.reported(condition, rate)
        return gains / self.scale(task)

    def width(self, task: str, arm: str, condition: str) -> np.ndarray:
        """Return, by seed, the decades of learning rates with a usable final loss."""
        cell = self.cells[task][arm]
        gains = (cell.initial - cell.final(condition))[:, cell.tuning :]
        return np.sum(gains >= USABLE * self.scale(task), axis=0) / 2

    def reference(self, task: str, arm: str) -> str:
        """Return the unclipped arm with the same optimizer."""
        return self.cells[task][arm].content["arm"]["reference"]

    def own_optimizer(self, arm: str) -> list[str]:
        """Return the tasks in which the arm has the task's optimizer."""
        return [task for task in self.tasks if self.reference(task, arm) == UNCLIPPED]

    def helps(self, arm: str, condition: str, own: bool = False) -> Estimate:
        """Return the difference of scores to the unclipped arm, over all tasks."""
        return Estimate.of(
            [
                self.score(task, arm, condition, own)
                - self.score(task, self.reference(task, arm), condition, own)
                for task in self.tasks
            ]
        )

    def widens(self, arm: str, condition: str = "clean") -> Estimate:
        """Return by how many decades the arm's range of rates is wider.

        Widths are multiples of half a decade, so that the p-value is that of the sign
        test.
        """
        differences = [
            self.width(task, arm, condition)
            - self.width(task, self.reference(task, arm), condition)
            for task in self.tasks
        ]
        return Estimate.of(differences)._replace(p=signs(differences))

    def beats_simplest(self, arm: str, condition: str) -> Estimate:
        """Return the difference of scores to `SIMPLEST`, with the same optimizer."""
        return Estimate.of(
            [
                self.score(task, arm, condition) - self.score(task, SIMPLEST, condition)
                for task in self.own_optimizer(arm)
            ]
        )

    def average(self, arm: str, condition: str, what: str) -> float:
        """Return a number averaged over seeds and tasks."""
        found = [self.cells[t][arm].numbers(condition, what) for t in self.tasks]
        return float(np.mean(found))

    def clipped(self, arm: str, condition: str = "clean") -> float:
        """Return the fraction of steps that were clipped, averaged over tasks."""
        cells = [self.cells[task][arm] for task in self.tasks]
        return float(
            np.mean(
                [c.content[condition]["clipped"][c.best_rate("clean")] for c in cells]
            )
        )

    def cost(self, arm: str) -> float:
        """Return the operations of a step over those of the unclipped arm's."""
        return float(
            np.mean(
                [
                    self.cells[task][arm].content["flops"]
                    / self.cells[task][self.reference(task, arm)].content["flops"]
                    for task in self.tasks
                ]
            )
        )

    def at_edge(self) -> list[str]:
        """List the cells whose best rate is the first or last of the grid."""
        return [
            f"{task} {arm}"
            for task, cells in self.cells.items()
            for arm, cell in cells.items()
            if cell.best_rate("clean") in (0, len(cell.content["exponents"]) - 1)
        ]


def methods() -> list[str]:
    """Return the recipes' names."""
    return list(recipes())


def ranked(estimates: dict[str, Estimate]) -> list[str]:
    """Return names from the largest mean to the smallest."""
    return sorted(estimates, key=lambda name: -estimates[name].mean)


def verdicts(estimates: dict[str, Estimate]) -> tuple[list[str], list[str]]:
    """Return those above zero and those below it, as far as Holm's test supports."""
    differ = holm(estimates)
    order = [name for name in ranked(estimates) if name in differ]
    above = [name for name in order if estimates[name].mean > 0]
    return above, [name for name in reversed(order) if name not in above]
