"""A progress bar with a line about the clip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from ..core.checks import require_integer
from .extras import require_extra
from .recorder import Recorder
from .summary import log_line

Step = TypeVar("Step")


def progress(
    steps: Iterable[Step],
    recorder: Recorder,
    *,
    total: int | None = None,
    description: str = "steps",
    rows: int = 1000,
    console: Any = None,
) -> Iterator[Step]:
    """Iterate over steps, and show a bar with `log_line` below it.

    The bar counts the steps that the iterator has returned. The line summarizes the
    last rows that the recorder has fetched, which lag several steps behind; showing it
    does not wait for the device. If the output is not a terminal, nothing is shown.
    Needs the extra ``monitoring``.

    Args:
        steps: an iterable of steps, such as ``range(1000)``.
        recorder: the recorder of the loop.
        total: the number of steps; None for ``len(steps)``, or unknown without one.
        description: the text in front of the bar.
        rows: how many of the latest rows the line summarizes.
        console: a ``rich.console.Console``; None for standard error.

    Returns:
        An iterator over the steps.

    Raises:
        ImportError: rich is not installed.
        TypeError: rows is not an integer.
        ValueError: rows is below 1.

    Example:
        >>> from clipjax.monitoring import Recorder, progress
        >>> recorder = Recorder()
        >>> for step in progress(range(2), recorder):
        ...     recorder.record((), loss=1.0 / (step + 1))
        >>> print(recorder.history["loss"])
        [1.  0.5]
    """
    require_integer("rows", rows, 1)
    rich = {
        name: require_extra(f"rich.{name}", "progress")
        for name in ("console", "live", "progress", "text")
    }
    if total is None and isinstance(steps, Sized):
        total = len(steps)
    console = console or rich["console"].Console(stderr=True)
    columns = rich["progress"]
    bar = columns.Progress(
        columns.TextColumn("{task.description}", markup=False),
        columns.BarColumn(),
        columns.MofNCompleteColumn(),
        columns.TimeRemainingColumn(),
        console=console,
    )
    task = bar.add_task(description, total=total)

    def shown() -> Any:
        line = log_line(recorder.fetched.last(rows))
        return rich["console"].Group(bar, rich["text"].Text(line))

    if not console.is_terminal:
        return iter(steps)
    return _tracked(
        steps, bar, task, rich["live"].Live(console=console, get_renderable=shown)
    )


def _tracked(steps: Iterable[Step], bar: Any, task: Any, live: Any) -> Iterator[Step]:
    with live:
        for step in steps:
            yield step
            bar.advance(task)
