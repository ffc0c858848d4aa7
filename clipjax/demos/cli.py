"""The `clipjax` command.

Nothing outside the standard library is imported before the arguments are read, so that
help works without the extras and a missing one can be named.
"""

import argparse
import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from . import presets
from .options import OptionalPath, add_argument, converter, flag

EXTRAS = ("flax", "matplotlib", "rich", "mlxtend")
INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C


class Parser(argparse.ArgumentParser):
    """Report a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        raise ValueError(message.removeprefix("argument "))


def make_parser() -> Parser:
    """The command line; only options that were given appear in the result."""
    parser = Parser(
        prog="clipjax",
        description="What gradient clipping does to real training runs.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(
        dest="command", metavar="{compare,explode}", parser_class=Parser
    )
    comparing = commands.add_parser(
        "compare",
        help="train the same model under several clips and write a report",
        description="Train the same model from the same seeds, with the same learning "
        "rate, under several clips, and write a report with figures.",
        allow_abbrev=False,
    )
    comparing.add_argument(
        "--task",
        choices=tuple(presets.PRESETS),
        default="rnn",
        help="model and data, and what the other options start from (default: rnn)",
    )
    comparing.add_argument(
        "--out",
        type=converter(OptionalPath("a directory")),
        default=pathlib.Path("clipjax-report"),
        metavar="DIR",
        help="directory of report.html, results.json and figures "
        "(default: clipjax-report)",
    )
    for field in _fields(presets.Settings):
        add_argument(comparing, field, _defaults(field.name))
    of_tasks = comparing.add_argument_group("options of the tasks")
    for field in _task_fields().values():
        add_argument(of_tasks, field, _defaults(field.name))
    exploding = commands.add_parser(
        "explode",
        help="work through one exploding gradient",
        description="One clipped step of an exploding recurrent network, and one bad "
        "time step followed back through time.",
        allow_abbrev=False,
    )
    for field in _fields(presets.Explosion):
        add_argument(exploding, field, f" (default: {field.default})")
    return parser


def _fields(settings: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(settings) if field.metadata]


def _task_fields() -> dict[str, dataclasses.Field]:
    models = (type(preset.model) for preset in presets.PRESETS.values())
    return {field.name: field for model in models for field in _fields(model)}


def _defaults(name: str) -> str:
    found = {}
    for task, preset in presets.PRESETS.items():
        for part in (preset, preset.model):
            value = getattr(part, name, None)
            if value is not None:
                text = ",".join(value) if isinstance(value, tuple) else f"{value}"
                found[task] = text
    if not found:
        return ""
    if len(set(found.values())) == 1 and len(found) == len(presets.PRESETS):
        return f" (default: {next(iter(found.values()))})"
    return f" (default: {', '.join(f'{v} for {k}' for k, v in found.items())})"


def read_settings(given: dict[str, Any], task: str) -> presets.Settings:
    """The preset of a task with what was given in its place.

    Raises:
        ValueError: for an option that the task does not have, or a refused value.
    """
    preset = presets.PRESETS[task]
    own = {field.name for field in _fields(type(preset.model))}
    for name in given.keys() & _task_fields().keys() - own:
        holders = [
            other
            for other, settings in presets.PRESETS.items()
            if hasattr(settings.model, name)
        ]
        raise ValueError(
            f"{flag(name)} {given[name]}: --task {task} has no such option; "
            f"accepted with --task {' or '.join(holders)}"
        )
    model = {name: value for name, value in given.items() if name in own}
    rest = {name: value for name, value in given.items() if name not in own}
    return dataclasses.replace(
        preset, model=dataclasses.replace(preset.model, **model), **rest
    )


def run_compare(given: dict[str, Any], command: str) -> None:
    """Trains, shows the table and writes the report."""
    task_name, out = given.pop("task"), given.pop("out")
    settings = read_settings(given, task_name)
    from . import compare, report, summary, terminal

    report.check_destination(out)
    optimizers = compare.build_optimizers(settings)
    task = compare.build_task(settings.model)
    with terminal.live(settings) as watch:
        results = compare.compare(settings, task, optimizers, watch=watch)
    rows = [summary.summarise(result) for result in results]
    terminal.show_comparison(settings, rows)
    report.write(out, settings, task, results, rows, command)
    print(f"Report: {out / 'report.html'}")


def run_explode(given: dict[str, Any]) -> None:
    """Show one clipped step, one bad time step and the run that follows."""
    settings = presets.Explosion(**given)
    from . import compare, explode, summary, terminal

    training = settings.training
    optimizers = compare.build_optimizers(training)
    task = compare.build_task(training.model)
    network = explode.build(task)
    step = explode.clipped_step(network, max_norm=settings.max_norm, lr=settings.lr)
    terminal.show_step(settings, step)
    seen = explode.bad_time_step(
        network,
        bad_step=settings.bad_step,
        error=settings.error,
        max_norm=settings.max_norm,
    )
    terminal.show_bad_step(settings, seen)
    with terminal.live(training) as watch:
        results = compare.compare(training, task, optimizers, watch=watch)
    rows = [summary.summarise(result) for result in results]
    terminal.show_comparison(training, rows)


def attach_negative_numbers(arguments: Sequence[str]) -> list[str]:
    """Turn `--lr -1e-3` into `--lr=-1e-3`, which argparse takes for a value."""
    attached: list[str] = []
    for argument in arguments:
        before = attached[-1] if attached else ""
        if before.startswith("--") and "=" not in before and _is_negative(argument):
            attached[-1] = f"{before}={argument}"
        else:
            attached.append(argument)
    return attached


def _is_negative(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.startswith("-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code.

    Args:
        arguments: the command line without the program; by default that of the
            process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parser = make_parser()
        given = vars(parser.parse_args(attach_negative_numbers(arguments)))
        match given.pop("command"):
            case "compare":
                run_compare(given, shlex.join(["clipjax", *arguments]))
            case "explode":
                run_explode(given)
            case _:
                parser.print_help()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        return _fail(f"{error.name} is missing: pip install 'clipjax[demos]'")
    except (ValueError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("clipjax: interrupted, nothing written", file=sys.stderr)
        return INTERRUPTED
    return 0


def _fail(message: str) -> int:
    print(f"clipjax: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
