"""The same training run under several clips."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from . import presets
from .arms import Arm, in_chain, read_clips, read_optimizer
from .tasks.base import Task
from .train import History, Loop


class Moment(NamedTuple):
    """The progress of a comparison.

    Attributes:
        arm: the clip of the current run.
        learning_rate: the learning rate of the current run.
        seed: the seed of the current run.
        step: steps done; 0 when the arm is about to be compiled.
        log: the last values of the log; empty at step 0.
    """

    arm: str
    learning_rate: float
    seed: int
    step: int
    log: Mapping[str, float]


Watch = Callable[[Moment], None]


@dataclasses.dataclass(frozen=True)
class Result:
    """One arm of a finished comparison, a row per seed.

    Attributes:
        label: the clip, as the user wrote it.
        learning_rate: the learning rate.
        log: `(seeds, steps)` arrays: the loss and the metrics of the clip.
        held_out: `(seeds,)` arrays of scores on the held-out data.
        seconds_per_step: `(seeds,)`, without compilation.
        score_steps: `(intervals,)`, the steps after which the model was scored.
        scores: `(seeds, intervals)` arrays of the scores along training.
        outcome: the arrays for the task's picture, of shape `(seeds, …)`.
    """

    label: str
    learning_rate: float
    log: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    seconds_per_step: np.ndarray
    score_steps: np.ndarray
    scores: dict[str, np.ndarray]
    outcome: dict[str, np.ndarray]


def build_arms(settings: presets.Settings, task: Task) -> dict[str, Arm]:
    """Return the arms of a comparison, by the name that the user gave them.

    Raises:
        ValueError: if a clip or the optimizer is unknown, refuses its arguments, or
            cannot stand in its place.
    """
    optimizer = read_optimizer(settings.optimizer)
    places = {"": in_chain} | dict(task.places)
    arms = {}
    for call in read_clips(settings.clips, settings.model.places):
        try:
            arms[call.label] = places[call.place](call, optimizer)
        except (ValueError, TypeError) as error:
            raise ValueError(f"clip {call.label!r}: {error}") from error
    return arms


def compare(
    settings: presets.Settings,
    task: Task,
    arms: Mapping[str, Arm],
    *,
    finished: Collection[tuple[str, float]] = (),
    watch: Watch = lambda moment: None,
) -> Iterator[Result]:
    """Train every arm at every learning rate from every seed.

    All arms are compiled before the first one trains, so that a clip that cannot be
    used in this place is refused at once.

    Args:
        settings: what to compare.
        task: what `build_task(settings.model)` returned.
        arms: what `build_arms(settings, task)` returned.
        finished: arms and learning rates to leave out.
        watch: called after each logging interval, and when an arm is about to be
            compiled.

    Yields:
        One result for each arm and learning rate, when it is finished.

    Raises:
        ValueError: if a clip cannot be used here, or the memory does not suffice.
    """
    rates = {
        label: [rate for rate in settings.lr if (label, rate) not in finished]
        for label in arms
    }
    loops = {}
    for label in filter(rates.get, arms):
        watch(Moment(label, rates[label][0], 0, 0, {}))
        try:
            loops[label] = Loop(
                task,
                arms[label].chain,
                gradient=arms[label].gradient,
                steps=settings.steps,
                interval=settings.log_every,
            )
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"clip {label!r} cannot train here: {error}") from error
        except jax.errors.JaxRuntimeError as error:
            raise _no_memory(label, error) from error
    for label, loop in loops.items():
        for rate in rates[label]:
            try:
                runs = [
                    loop.run(
                        seed,
                        lambda step, log, seed=seed, label=label, rate=rate: watch(
                            Moment(label, rate, seed, step, log)
                        ),
                        learning_rate=rate,
                    )
                    for seed in range(settings.seeds)
                ]
            except jax.errors.JaxRuntimeError as error:
                raise _no_memory(label, error) from error
            yield _stack(label, rate, runs)


def _no_memory(label: str, error: Exception) -> ValueError:
    reason = str(error).rpartition(": ")[2]
    return ValueError(f"clip {label!r} cannot be trained: {reason}")


def _stack(label: str, learning_rate: float, runs: list[History]) -> Result:
    def stacked(field: str) -> dict[str, np.ndarray]:
        rows = [getattr(run, field) for run in runs]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    return Result(
        label=label,
        learning_rate=learning_rate,
        log=stacked("log"),
        held_out=stacked("held_out"),
        seconds_per_step=np.array([run.seconds_per_step for run in runs]),
        score_steps=runs[0].score_steps,
        scores=stacked("scores"),
        outcome=stacked("outcome"),
    )
