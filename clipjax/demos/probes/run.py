"""Run probes, print their reports, and write them to files."""

import html
import io
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax

import clipjax

from .. import files, interrupts, pages, terminal
from ..arms import bind, parse_call
from .base import Report, Table
from .catalogue import GROUPS, load


class Call(NamedTuple):
    """A probe with its arguments: `name`, `module` and `arguments`."""

    name: str
    module: ModuleType
    arguments: dict[str, Any]


class Kept(NamedTuple):
    """The report of an earlier run, whose figure is in a file."""

    tables: Sequence[Table]
    findings: Sequence[str]


def read_calls(specs: Sequence[str]) -> list[Call]:
    """Parse the probes on the command line, `name[:key=number...]` or a group.

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
            raise ValueError(f"probe {name!r} is given twice; accepted: each once")
    return calls


def run(specs: Sequence[str], out: pathlib.Path, *, command: str, resume: bool) -> int:
    """Run the probes one by one, and write the report of each when it is finished."""
    calls = read_calls(specs)
    files.check_destination(
        out,
        ["report.html"]
        + [f"{call.name}.{end}" for call in calls for end in ("json", "md", "png")],
    )
    done: list[tuple[Call, Report | Kept]] = []
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

                kept = _kept(call, out) if resume else None
                done.append((call, kept or _run_one(call, out, command, watch)))
                check()
            show("probes", len(calls), "")
    except KeyboardInterrupt:
        if not done:
            raise
        _show(done, out, command)
        print(
            f"clipjax: interrupted; {len(done)} of {len(calls)} probes are finished; "
            f"to run the others: {command}{'' if resume else ' --resume'}",
            file=sys.stderr,
        )
        return interrupts.EXIT_CODE
    _show(done, out, command)
    return 0


def _run_one(
    call: Call, out: pathlib.Path, command: str, watch: Callable[[str], None]
) -> Report:
    began = time.monotonic()
    try:
        measure = call.module.measure
        takes_watch = "watch" in measure.__kwdefaults__
        more = {"watch": watch} if takes_watch else {}
        measured = measure(**call.arguments, **more)
    except (ValueError, MemoryError, jax.errors.JaxRuntimeError) as error:
        # A number that is too large for the memory is only detected here.
        raise ValueError(f"probe {call.name!r}: {error}") from error
    report = call.module.report(measured)
    seconds = time.monotonic() - began
    values = measured._asdict() if hasattr(measured, "_asdict") else vars(measured)
    content = {
        "command": command,
        "clipjax": clipjax.__version__,
        "arguments": call.arguments,
        "seconds": seconds,
        "tables": [list(table) for table in report.tables],
        "findings": report.findings,
        "measured": values,
    }
    buffer = io.BytesIO()
    report.figure.savefig(buffer, format="png")
    files.write(
        out,
        {
            f"{call.name}.png": buffer.getvalue(),
            f"{call.name}.json": files.to_json(content),
            f"{call.name}.md": _markdown(call, report, seconds).encode(),
        },
    )
    return report


def _kept(call: Call, out: pathlib.Path) -> Kept | None:
    """Return the report of an earlier run of the probe with the same arguments."""
    try:
        content = json.loads((out / f"{call.name}.json").read_bytes())
        now = (clipjax.__version__, files.plain(call.arguments))
        if (content["clipjax"], content["arguments"]) != now:
            return None
        tables = [Table(*table) for table in content["tables"]]
        return Kept(tables, content["findings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _show(
    done: Sequence[tuple[Call, Report | Kept]], out: pathlib.Path, command: str
) -> None:
    for call, report in done:
        for table in report.tables:
            terminal.show_table(table.title, table.header, table.rows)
        terminal.say(" ".join(report.findings))
        print(f"Figure: {out / call.name}.png\n")
    files.write(out, {"report.html": _page(done, out, command)})
    print(f"Report: {out / 'report.html'}")


def _page(
    done: Sequence[tuple[Call, Report | Kept]], out: pathlib.Path, command: str
) -> bytes:
    """Return the page: the findings of each probe, its figure and its numbers."""
    parts = []
    for call, report in done:
        alt = f"Figure of the probe {call.name}. {report.findings[0]}"
        png = (out / f"{call.name}.png").read_bytes()
        tables = "\n".join(
            f"<p>{html.escape(table.title)}</p>\n"
            + pages.table(table.header, table.rows)
            for table in report.tables
        )
        parts.append(
            f"<h2>{html.escape(call.name)}</h2>\n{pages.verdict(report.findings)}\n"
            f"{pages.figures([pages.figure(alt, png, '', is_chart=False)])}\n{tables}"
        )
    names = ", ".join(call.name for call, _ in done)
    body = (
        f"<h1>Probes</h1>\n{''.join(parts)}\n<h2>Setup</h2>\n"
        f"<pre>{html.escape(command)}</pre>"
    )
    return pages.page(f"clipjax probe: {names}", body)


def _markdown(call: Call, report: Report, seconds: float) -> str:
    given = "".join(f":{name}={value}" for name, value in call.arguments.items())
    parts = [f"## {call.name}", f"`clipjax probe {call.name}{given}` ({seconds:.0f} s)"]
    parts += [_markdown_table(table) for table in report.tables]
    parts.append(" ".join(report.findings))
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return f"{table.title}:\n\n" + "\n".join(lines)
