"""Pieces of a command line: options that accept what their kind does, and help."""

import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from .options import Kind, OptionalPath, flag, read

Given = dict[str, Any]
OUT = OptionalPath("a directory")


class Setting(click.ParamType):
    """The values of an option: those that its kind accepts."""

    name = "value"

    def __init__(self, kind: Kind):
        """Keep the kind."""
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Read the text of an option."""
        try:
            return read(self.kind, value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


def option(name: str, kind: Kind, meaning: str) -> click.Option:
    """An option that is None where it is not given."""
    return click.Option(
        [flag(name), name], type=Setting(kind), help=meaning, metavar=name.upper()
    )


def fields_of(settings: type) -> list[dataclasses.Field]:
    """The fields of a class of settings that are options."""
    return [field for field in dataclasses.fields(settings) if field.metadata]


def options_of(settings: type) -> list[click.Parameter]:
    """The options of settings that have one default for each."""
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
    """A list in the help; what goes on in another line is indented by `then`."""
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
    """A list of names in the help, one after the other."""
    return lines(title, [", ".join(names)], then="  ")


def command_of(
    name: str,
    run: Callable[[Given, str], int],
    params: Sequence[click.Parameter],
    summary: str,
    text: str,
    epilog: str | None = None,
) -> click.Command:
    """A command that runs with what was given, and the whole command line."""

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
    """The directory that a command writes to."""
    return click.Option(
        ["--out"],
        type=Setting(OUT),
        default=default,
        metavar="DIR",
        help=f"directory of {holds} (default: {default})",
    )
