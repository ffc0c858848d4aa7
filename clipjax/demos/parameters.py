"""Parts of a command line: options that their kind checks, and lists in the help."""

import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from .options import Kind, OptionalPath, flag, read

Given = dict[str, Any]
OUT = OptionalPath("a directory")


class Setting(click.ParamType):
    """The click type of an option, which accepts the values of a kind."""

    name = "value"

    def __init__(self, kind: Kind):
        """Keep the kind."""
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Parse the text of an option."""
        try:
            return read(self.kind, value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


def option(name: str, kind: Kind, meaning: str) -> click.Option:
    """Return an option whose value is None if it is not given."""
    return click.Option(
        [flag(name), name], type=Setting(kind), help=meaning, metavar=name.upper()
    )


def fields_of(settings: type) -> list[dataclasses.Field]:
    """Return the fields of a settings class that are options."""
    return [field for field in dataclasses.fields(settings) if field.metadata]


def options_of(settings: type) -> list[click.Parameter]:
    """Return the options of settings, each with its default."""
    options: list[click.Parameter] = []
    for field in fields_of(settings):
        default, meaning = field.default, field.metadata["meaning"]
        if isinstance(default, tuple):
            default = ",".join(f"{entry:g}" for entry in default)
        if default is not None:
            meaning += f" (default: {default})"
        options.append(option(field.name, field.metadata["kind"], meaning))
    return options


def lines(title: str, entries: Iterable[str], then: str = "    ") -> str:
    """Return a list for the help; continued lines are indented by `then`."""
    wrapped = [
        textwrap.fill(
            line,
            76,
            initial_indent="  ",
            subsequent_indent=then,
            break_on_hyphens=False,
        )
        for line in entries
    ]
    return "\n".join(["\b", title, *wrapped])  # "\b" keeps click from joining them


def listed(title: str, names: Iterable[str]) -> str:
    """Return a list of names for the help, separated by commas."""
    return lines(title, [", ".join(names)], then="  ")


def command_of(
    name: str,
    run: Callable[[Given, str], int],
    params: Sequence[click.Parameter],
    summary: str,
    text: str,
    epilog: str | None = None,
) -> click.Command:
    """Return a command that calls `run` with the options and the whole command line."""

    def callback(**values: Any) -> int:
        given = {key: value for key, value in values.items() if value is not None}
        context = click.get_current_context()
        return run(given, context.obj)

    return click.Command(
        name,
        callback=callback,
        params=list(params),
        short_help=summary,
        help=text,
        epilog=epilog,
    )


def out_option(default: str, holds: str) -> click.Option:
    """Return the option for the directory that a command writes to."""
    return click.Option(
        ["--out"],
        type=Setting(OUT),
        default=default,
        metavar="DIR",
        help=f"directory of {holds} (default: {default})",
    )
