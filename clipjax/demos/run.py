"""Run the commands, from checked settings to files."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from . import compare as training
from . import explode as exploding
from . import files, heat_map, interrupts, report, summary, terminal, tune_report
from .arms import read_clips, read_optimizer
from .presets import Explosion, Settings, Tuning
from .tasks.base import Task
from .tasks.build import build_task


def in_epochs(settings: Any) -> tuple[Any, Task]:
    """Return the task, and the settings with `epochs` converted to `steps`."""
    task = build_task(settings.model)
    epochs = getattr(settings.model, "epochs", None)
    if epochs is not None and task.steps_per_epoch is not None:
        steps = math.ceil(epochs * task.steps_per_epoch)
        settings = dataclasses.replace(settings, steps=steps)
    return settings, task


def _train(
    settings: Settings, task: Task, finished: Sequence[training.Result] = ()
) -> tuple[list[training.Result], bool]:
    """Train the missing arms; return all results in order, and whether interrupted."""
    results = list(finished)
    keys = [(one.label, one.learning_rate) for one in results]
    arms = training.build_arms(settings, task)
    is_whole = False
    try:
        with interrupts.deferred() as check, terminal.live(settings, finished) as show:

            def watch(moment: training.Moment) -> None:
                show(moment)
                check()

            for result in training.compare(
                settings, task, arms, finished=keys, watch=watch
            ):
                results.append(result)
        is_whole = True
    except KeyboardInterrupt:
        pass
    order = [(clip, rate) for clip in settings.clips for rate in settings.lr]
    results.sort(key=lambda one: order.index((one.label, one.learning_rate)))
    return results, is_whole


def compare(
    settings: Settings, out: pathlib.Path, *, command: str, resume: bool
) -> int:
    """Train, show the table and write the report; return the exit code."""
    files.check_destination(out, (*report.FILES, *report.FIGURES))
    # Refuse a mistake before the data are read.
    read_optimizer(settings.optimizer)
    read_clips(settings.clips, settings.model.places)
    settings, task = in_epochs(settings)
    finished = report.read_finished(out, settings) if resume else []
    results, is_whole = _train(settings, task, finished)
    if not results:
        raise KeyboardInterrupt
    rows = [summary.summarise(result, task.goal) for result in results]
    terminal.show_comparison(settings, rows, task.unit)
    report.write(out, settings, task, results, rows, command)
    print(f"Report: {out / 'report.html'}")
    if is_whole:
        return 0
    total = len(settings.clips) * len(settings.lr)
    again = command if resume else f"{command} --resume"
    print(
        f"clipjax: interrupted; {len(results)} of {total} arms are finished and in the "
        f"report; to train the others: {again}",
        file=sys.stderr,
    )
    return interrupts.EXIT_CODE


def explode(settings: Explosion) -> int:
    """Show one clipped step, one bad time step and the run that follows."""
    task = build_task(settings.training.model)
    network = exploding.build(task)
    step = exploding.clipped_step(network, max_norm=settings.max_norm, lr=settings.lr)
    terminal.show_step(settings, step)
    seen = exploding.bad_time_step(
        network,
        bad_step=settings.bad_step,
        error=settings.error,
        max_norm=settings.max_norm,
    )
    terminal.show_bad_step(settings, seen)
    results, is_whole = _train(settings.training, task)
    if results:
        rows = [summary.summarise(result, task.goal) for result in results]
        terminal.show_comparison(settings.training, rows, task.unit)
    if is_whole:
        return 0
    print("clipjax: interrupted before the last run was finished", file=sys.stderr)
    return interrupts.EXIT_CODE


def tune(settings: Tuning, out: pathlib.Path, *, command: str) -> int:
    """Train the missing runs of a heat map, write its files; return the exit code."""
    files.check_destination(out, (*tune_report.FILES, "cells.jsonl"))
    read_optimizer(settings.optimizer)
    settings, task = in_epochs(settings)
    described = report.described(settings)
    kept = heat_map.RunFile(out / "cells.jsonl", described)
    keys = heat_map.keys_of(settings)
    missing = [key for key in keys if key not in kept.runs]
    try:
        with interrupts.deferred() as check, terminal.bars({"runs": len(keys)}) as show:

            def watch(key: heat_map.Key, step: int, log: dict[str, float]) -> None:
                check()
                rate, threshold, seed = key
                column = tune_report.label(threshold)
                seen = f"lr {rate:g} threshold {column} seed {seed} step {step}"
                show("runs", len(kept.runs), f"{seen} loss {log['loss']:.3f}")

            if missing:
                kept.start()
                show("runs", 0, "compiling")
                for run in heat_map.train(settings, task, missing, watch):
                    kept.add(run)
                show("runs", len(keys), "")
    except KeyboardInterrupt:
        if not kept.runs:
            raise
        print(
            f"clipjax: interrupted; {len(kept.runs.keys() & set(keys))} of {len(keys)} "
            f"runs are kept in {kept.path}; to go on: {command}",
            file=sys.stderr,
        )
        return interrupts.EXIT_CODE
    heat = heat_map.gather(settings, kept.runs)
    seeds = "one seed" if settings.seeds == 1 else f"{settings.seeds} seeds"
    terminal.show_table(
        f"Mean of the last {settings.last} of {settings.steps} losses, "
        f"{seeds}; columns are thresholds, * is the best cell",
        *tune_report.cells(heat),
    )
    terminal.say(" ".join(tune_report.findings(heat)))
    suggested = tune_report.suggestion(heat)
    if suggested:
        terminal.say(tune_report.say_suggestion(suggested))
    paste = tune_report.pasted(settings, heat)
    if paste:
        print(f"\n{paste}\n")
    runs = [kept.runs[key] for key in keys]
    written = tune_report.contents(described, heat, runs, command, paste, suggested)
    files.write(out, written)
    print(f"Heat map: {out / 'heat_map.png'}")
    print(f"Report: {out / 'report.html'}")
    return 0
