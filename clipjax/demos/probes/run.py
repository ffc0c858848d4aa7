"""Run probes, show what they report, and write it."""

import functools
import io
import pathlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from .. import files, interrupts, terminal
from ..arms import bind, parse_call
from .base import Report, Table
from .catalogue import GROUPS, load


class Call(NamedTuple):
    """A probe with its arguments: `name`, `module` and `arguments`."""

    name: str
    module: ModuleType
    arguments: dict[str, Any]


def read_calls(specs: Sequence[str]) -> list[Call]:
    """The probes that the command line names, `name[:key=number...]` or a group.

    Raises:
        ValueError: for an unknown name or argument, or a probe named twice.
    """
    calls = []
    for spec in specs:
        for one in GROUPS.get(spec, (spec,)):
            name = one.partition(":")[0]
            module = load(name)
            call = parse_call(one, {name: module.measure}, "probe")
            bound = bind(call, one, "probe")
            calls.append(Call(name, module, bound.arguments))
    names = [call.name for call in calls]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"probe {name!r} is there twice; accepted: each once")
    return calls


def run(specs: Sequence[str], out: pathlib.Path, command: str) -> int:
    """Run the probes one by one, and write each when it is finished."""
    calls = read_calls(specs)
    names = [call.name for call in calls]
    files.check_destination(
        out, [f"{name}.{end}" for name in names for end in ("json", "md", "png")]
    )
    done = []
    try:
        with (
            interrupts.deferred() as check,
            terminal.bars({"probes": len(calls)}) as show,
        ):
            for count, call in enumerate(calls):
                show("probes", count, call.name)

                def watch(text: str, name: str = call.name, count: int = count) -> None:
                    show("probes", count, f"{name}: {text}")
                    check()

                measured = _measure(call, watch)
                report = call.module.report(measured)
                files.write(out, _contents(call, measured, report, command))
                done.append((call.name, report))
                check()
            show("probes", len(calls), "")
    except KeyboardInterrupt:
        if not done:
            raise
        print(
            f"clipjax: interrupted; {len(done)} of {len(calls)} probes are finished",
            file=sys.stderr,
        )
        return _show(done, out) or interrupts.EXIT_CODE
    return _show(done, out)


def _measure(call: Call, watch: Callable[[str], None]) -> Any:
    measure = call.module.measure
    if "watch" in measure.__kwdefaults__:
        measure = functools.partial(measure, watch=watch)
    try:
        return measure(**call.arguments)
    except ValueError as error:
        raise ValueError(f"probe {call.name!r}: {error}") from error


def _show(done: Sequence[tuple[str, Report]], out: pathlib.Path) -> int:
    for name, report in done:
        for table in report.tables:
            terminal.show_table(table.title, table.header, table.rows)
        terminal.say(" ".join(report.findings))
        print(f"Figure: {out / name}.png\n")
    return 0


def _contents(
    call: Call, measured: Any, report: Report, command: str
) -> dict[str, bytes]:
    buffer = io.BytesIO()
    report.figure.savefig(buffer, format="png")
    values = measured._asdict() if hasattr(measured, "_asdict") else vars(measured)
    content = {"command": command, "arguments": call.arguments, "measured": values}
    return {
        f"{call.name}.png": buffer.getvalue(),
        f"{call.name}.json": files.to_json(content),
        f"{call.name}.md": _markdown(call, report).encode(),
    }


def _markdown(call: Call, report: Report) -> str:
    given = "".join(f":{name}={value}" for name, value in call.arguments.items())
    parts = [f"## {call.name}", f"`clipjax probe {call.name}{given}`"]
    parts += [_markdown_table(table) for table in report.tables]
    parts.append("\n".join(report.findings))
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return f"{table.title}:\n\n" + "\n".join(lines)
