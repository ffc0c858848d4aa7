"""The `clipjax` command: what it accepts, and what it runs.

Nothing from the extras but click is imported before the arguments are read.
"""

import dataclasses
import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

import clipjax

from . import arms, interrupts, presets
from .options import Choice, Name, OptionalPath, flag
from .parameters import (
    Given,
    Setting,
    command_of,
    fields_of,
    lines,
    listed,
    option,
    options_of,
    out_option,
)
from .private.settings import Private
from .private.settings import read as read_private
from .probes.catalogue import GROUPS, PROBES

DEFAULT_TASK = "rnn"


def task_options(
    settings: type, per_task: Mapping[str, presets.Settings | presets.Tuning], task: str
) -> list[click.Parameter]:
    """The options of settings that have a preset for each task.

    Those of other tasks are accepted as well, to be refused with a better message than
    that there is no such option; the help shows those of one task, with its defaults.
    """
    models = [type(preset.model) for preset in per_task.values()]
    fields = {
        field.name: field for kind in (settings, *models) for field in fields_of(kind)
    }
    preset = per_task.get(task, per_task[DEFAULT_TASK])
    own = {field.name: field for field in fields_of(type(preset.model))}
    options = []
    for name, field in (fields | own).items():
        meaning = field.metadata["meaning"] + _default_of(name, preset)
        one = option(name, field.metadata["kind"], meaning)
        one.hidden = not hasattr(preset, name) and name not in own
        options.append(one)
    return options


def _default_of(name: str, preset: presets.Settings | presets.Tuning) -> str:
    value = getattr(preset, name, getattr(preset.model, name, None))
    if value is None:
        return ""
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
    other = "; with another --optimizer, its own" if name == "lr" else ""
    return f" (default: {text}{other})"


def read_settings(
    given: Given, per_task: Mapping[str, presets.Settings | presets.Tuning]
) -> Any:
    """Return the preset of a task, with the given options; removes "task" from them.

    Raises:
        ValueError: for an option that the task does not have, or a refused value.
    """
    task = given.pop("task")
    preset = per_task[task]
    own = {field.name for field in fields_of(type(preset.model))}
    others = {field.name for field in fields_of(type(preset))}
    for name in given.keys() - own - others:
        holders = [
            other
            for other, settings in per_task.items()
            if hasattr(settings.model, name)
        ]
        raise ValueError(
            f"{flag(name)} {given[name]}: --task {task} has no such option; "
            f"accepted with --task {' or '.join(holders)}"
        )
    if {"epochs", "steps"} <= given.keys():
        raise ValueError(
            f"--epochs {given['epochs']}: accepted without --steps, which is "
            f"{given['steps']}"
        )
    if "optimizer" in given and "lr" not in given:
        rate = presets.default_rate(task, given["optimizer"])
        is_grid = isinstance(preset, presets.Tuning)
        given["lr"] = presets.rates_around(rate) if is_grid else (rate,)
    model = {name: value for name, value in given.items() if name in own}
    rest = {name: value for name, value in given.items() if name not in own}
    return dataclasses.replace(
        preset, model=dataclasses.replace(preset.model, **model), **rest
    )


def _compare(given: Given, command: str) -> int:
    out, resume = given.pop("out"), given.pop("resume")
    settings = read_settings(given, presets.PRESETS)
    from . import run

    return run.compare(settings, out, command=command, resume=resume)


def _tune(given: Given, command: str) -> int:
    history, key, out = (given.pop(name, None) for name in ("history", "key", "out"))
    if history is not None:
        given.pop("task")
        for name in given:
            raise ValueError(f"{flag(name)}: goes with a task, not with --history")
        from . import recorded

        return recorded.tune(history, key=key)
    if key is not None:
        raise ValueError(f"--key {key}: accepted with --history alone")
    settings = read_settings(given, presets.TUNING)
    from . import run

    return run.tune(settings, out, command=command)


def _explode(given: Given, command: str) -> int:
    del command
    settings = presets.Explosion(**given)
    from . import run

    return run.explode(settings)


def _private(given: Given, command: str) -> int:
    out, resume = given.pop("out"), given.pop("resume")
    settings = read_private(given)
    from .private import command as private

    return private.run(settings, out, command=command, resume=resume)


def _probe(given: Given, command: str) -> int:
    from .probes import run

    return run.run(
        given["names"], given["out"], command=command, resume=given["resume"]
    )


def _probe_epilog() -> str:
    listed = [f"{name}: {entry.summary}" for name, entry in PROBES.items()]
    return lines("Probes:", [*listed, f"{', '.join(GROUPS)}: several of them"])


def _tasks() -> str:
    return lines(
        "Tasks (--task), a model with its data:",
        [
            f"{name}: {(type(preset.model).__doc__ or '').splitlines()[0]}"
            for name, preset in presets.PRESETS.items()
        ],
    )


def _places() -> str:
    tasks: dict[tuple[str, str], list[str]] = {}
    for task, preset in presets.PRESETS.items():
        for place in preset.model.places.items():
            tasks.setdefault(place, []).append(task)
    return lines(
        "Places of a clip (--clips), as place@name:",
        [
            f"{place}@ ({', '.join(names)}): {meaning}"
            for (place, meaning), names in tasks.items()
        ],
    )


def _epilog() -> str:
    clips = [arms.usage(clip) for clip in arms.clips_by_name().values()]
    cells = presets.RNN.__dataclass_fields__["cell"].metadata["kind"].names
    return "\n\n".join(
        [
            _tasks(),
            _places(),
            listed("Cells (--cell) of --task rnn:", cells),
            listed(
                "Optimizers (--optimizer), as name[:key=number...]:", arms.OPTIMIZERS
            ),
            listed(
                "Clips (--clips), as name[:number or key=number...]; b=1 is a default:",
                ["none", *clips],
            ),
        ]
    )


def _task_option(per_task: Mapping[str, Any]) -> click.Option:
    return click.Option(
        ["--task"],
        type=Setting(Choice(tuple(per_task))),
        default=DEFAULT_TASK,
        metavar="TASK",
        help="model and data, which set the other options' defaults; with --help, "
        f"whose options are shown (default: {DEFAULT_TASK})",
    )


def _named_task(arguments: Sequence[str]) -> str:
    """The task that the arguments name, whose options the help then shows."""
    for name, value in itertools.pairwise([*arguments, ""]):
        if name == "--task" or name.startswith("--task="):
            return name.partition("=")[2] or value
    return DEFAULT_TASK


def make_command(task: str = DEFAULT_TASK) -> click.Group:
    """The whole command line, with the help for a task."""
    comparing = command_of(
        "compare",
        _compare,
        [
            _task_option(presets.PRESETS),
            out_option("clipjax-report", "report.html, results.json and figures"),
            click.Option(
                ["--resume"],
                is_flag=True,
                help="keep the finished arms in DIR and train the missing ones",
            ),
            *task_options(presets.Settings, presets.PRESETS, task),
        ],
        "train the same model under several clips and write a report",
        "Train the same model from the same seeds under several clips, and write a "
        "report with figures. With several learning rates, each clip is shown at its "
        "own best one, too.",
        _epilog(),
    )
    tuning = command_of(
        "tune",
        _tune,
        [
            option(
                "history",
                OptionalPath("a JSONL file of norms"),
                "JSONL file of recorded norms: no training, one table",
            ),
            option("key", Name("a key"), "key of the norm in the lines of --history"),
            _task_option(presets.TUNING),
            out_option(
                "clipjax-tune", "report.html, cells.jsonl, heat_map.json, .csv and .png"
            ),
            *task_options(presets.Tuning, presets.TUNING, task),
        ],
        "find a threshold, from recorded norms or by training",
        "Find a threshold. With --history, from the norms of your own run. Without, "
        "by training a task at every learning rate and threshold: a heat map, with a "
        "column without a clip. What is finished is kept in DIR: the same command goes "
        "on after an interrupt.",
    )
    exploding = command_of(
        "explode",
        _explode,
        options_of(presets.Explosion),
        "work through one exploding gradient",
        "One clipped step of an exploding recurrent network, and one bad time step "
        "followed back through time.",
    )
    probing = command_of(
        "probe",
        _probe,
        [
            click.Argument(["names"], nargs=-1, required=True, metavar="NAME..."),
            out_option(
                "clipjax-probes", "report.html, NAME.json, NAME.md and NAME.png"
            ),
            click.Option(
                ["--resume"],
                is_flag=True,
                help="show the finished probes in DIR and run the missing ones",
            ),
        ],
        "measure one thing that clipping or an architecture does",
        "Run small measurements, each by its name or as name:key=number...; print "
        "what they find, compare it with numbers reported elsewhere, and draw it.",
        _probe_epilog(),
    )
    training = command_of(
        "private",
        _private,
        [
            out_option(
                "clipjax-private", "report.html, results.json, figures and runs"
            ),
            click.Option(
                ["--resume"],
                is_flag=True,
                help="continue the runs in DIR, with the same noise as without a stop",
            ),
            *options_of(Private),
        ],
        "train under differential privacy, with a stated ε and δ",
        "Train a digit classifier by DP-SGD for each ε, a plain one, and one with the "
        "clip alone, and write a report: the guarantee, its cost in accuracy, time and "
        "memory, and which results are not private. The runs are kept in DIR/runs.",
    )
    group = click.Group(
        "clipjax",
        commands=[comparing, tuning, exploding, probing, training],
        help="What gradient clipping does to real training runs.",
        epilog="`clipjax compare --help` lists clips, optimizers, tasks and cells.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    return click.version_option(clipjax.__version__, message="clipjax %(version)s")(
        group
    )


def main(arguments: Sequence[str]) -> int:
    """Run a command line, without the program's name, and return its exit code.

    0: done. 2: a mistake, with one line that says which. 130: interrupted.
    """
    command = shlex.join(["clipjax", *arguments])
    try:
        done = make_command(_named_task(arguments)).main(
            list(arguments) or ["--help"],
            prog_name="clipjax",
            standalone_mode=False,
            obj=command,
        )
    except click.ClickException as error:
        return _fail(error.format_message())
    except (ValueError, OSError) as error:
        return _fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        print("clipjax: interrupted, nothing written", file=sys.stderr)
        return interrupts.EXIT_CODE
    return done or 0


def _fail(message: str) -> int:
    print(f"clipjax: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
