"""From the cells to scores, and to every comparison that the page makes."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..recipes import recipes
from .arms import OTHERS, TIGHTENED, UNCLIPPED
from .cells import read
from .conditions import NAMES
from .estimates import Estimate, holm, ranked, signs
from .tasks import tasks

USABLE = 0.9  # of the unclipped arm's score: what a usable learning rate reaches
SIMPLEST = "clip_by_global_norm"
TIGHT = next(name for name, recipe in TIGHTENED.items() if recipe == SIMPLEST)
RATES = "rates"  # the question about the range of learning rates


def methods() -> list[str]:
    """Return the names of the clips: the recipes, and the tightened ones."""
    return [*recipes(), *TIGHTENED]


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
    """All cells of the tasks that are complete.

    Attributes:
        cells: by task and arm.
        pilots: the thresholds by task.
        missing: the arms that other tasks lack.
    """

    cells: dict[str, dict[str, Cell]]
    pilots: dict[str, dict[str, Any]]
    missing: dict[str, list[str]]

    @classmethod
    def read(cls, folder: pathlib.Path) -> Atlas:
        """Read the results; a task that lacks an arm is left out."""
        found: dict[str, dict[str, Cell]] = {}
        pilots, missing = {}, {}
        for task, settings in sorted(tasks().items()):
            other = OTHERS["sgd" if settings.family == "adam" else "adam"]
            cells = {
                name: read(folder / task / f"{name}.json")
                for name in (UNCLIPPED, other, *methods())
            }
            if lacks := [name for name, content in cells.items() if content is None]:
                missing[task] = lacks
                continue
            found[task] = {name: Cell(content or {}) for name, content in cells.items()}
            pilots[task] = (read(folder / task / "pilot.json") or {})["thresholds"]
        return cls(found, pilots, missing)

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

    def beats(
        self, arm: str, other: str, condition: str, among: Sequence[str] | None = None
    ) -> Estimate:
        """Return the difference of scores to another clip, with the same optimizer."""
        return Estimate.of(
            [
                self.score(task, arm, condition) - self.score(task, other, condition)
                for task in among or self.own_optimizer(arm)
            ]
        )

    @functools.cached_property
    def tests(self) -> dict[tuple[str, str], dict[str, Estimate]]:
        """Every comparison, by what clips are compared with and by the question."""
        found = {(UNCLIPPED, RATES): {name: self.widens(name) for name in methods()}}
        comparable = [name for name in methods() if self.own_optimizer(name)]
        for one in NAMES:
            found[UNCLIPPED, one] = {name: self.helps(name, one) for name in methods()}
            for other, without in (
                (SIMPLEST, {SIMPLEST}),
                (TIGHT, {SIMPLEST, TIGHT}),
            ):
                found[other, one] = {
                    name: self.beats(name, other, one)
                    for name in comparable
                    if name not in without
                }
            for name, recipe in TIGHTENED.items():
                found.setdefault((recipe, one), {})[name] = self.beats(
                    name, recipe, one
                )
        return found

    @functools.cached_property
    def supported(self) -> set[tuple[str, str, str]]:
        """The comparisons that differ, after one correction for all of them."""
        return holm(
            {
                (*question, name): estimate
                for question, estimates in self.tests.items()
                for name, estimate in estimates.items()
            }
        )

    def verdicts(self, other: str, what: str) -> tuple[list[str], list[str]]:
        """Return the clips above another arm, and those below it."""
        found = self.tests[other, what]
        order = [n for n in ranked(found) if (other, what, n) in self.supported]
        above = [name for name in order if found[name].mean > 0]
        return above, [name for name in reversed(order) if name not in above]

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
