"""Terminal output of the commands: progress bars, tables and findings."""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.table import Column, Table
from rich.text import Text

from .compare import Moment, Result, Watch
from .explode import BadStep, Step
from .presets import Explosion, Settings
from .summary import Row, at_best_rate, findings, table
from .verdict import verdict

SECONDS_BETWEEN_LINES = 10


class LastColumn(ProgressColumn):
    """The text at the end of a bar, the part that is cut if the line is too long."""

    def get_table_column(self) -> Column:
        """Return a column that may shrink; the other columns keep their width."""
        return Column(no_wrap=False)

    def render(self, task: Task) -> Text:
        return Text(task.fields["seen"], no_wrap=True, overflow="ellipsis")


@contextmanager
def bars(totals: Mapping[str, int]) -> Iterator[Callable[[str, int, str], None]]:
    """Show progress on standard error: a bar each, or lines where it is no terminal.

    Args:
        totals: the number of steps of each bar, by its name.

    Yields:
        A function of the name of a bar, the steps done, and the text at its end.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(totals)
        return
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        LastColumn(),
        console=console,
    )
    tasks = {
        name: progress.add_task(name, total=total, seen="waiting", start=False)
        for name, total in totals.items()
    }

    def show(name: str, done: int, seen: str) -> None:
        if done and not progress.tasks[tasks[name]].started:
            progress.start_task(tasks[name])
        progress.update(tasks[name], completed=done, seen=seen)

    with progress:
        try:
            yield show
        except BaseException:
            # The one line that says why is all that should remain.
            progress.live.transient = True
            raise


def _lines(totals: Mapping[str, int]) -> Callable[[str, int, str], None]:
    """Print progress as lines, for a file or a pipe, at some steps of each bar."""
    printed = -math.inf
    begun = set()

    def show(name: str, done: int, seen: str) -> None:
        nonlocal printed
        now = time.monotonic()
        is_between = (name, done > 0) in begun and done < totals[name]
        if is_between and now - printed < SECONDS_BETWEEN_LINES:
            return
        printed = now
        begun.add((name, done > 0))
        print(f"{name}: {done}/{totals[name]} {seen}", file=sys.stderr, flush=True)

    return show


@contextmanager
def live(settings: Settings, done: Sequence[Result] = ()) -> Iterator[Watch]:
    """Progress of a comparison by arm, with the last loss and norm before clipping."""
    per_rate = settings.steps * settings.seeds
    before = Counter(result.label for result in done)
    totals = {
        clip: per_rate * (len(settings.lr) - before[clip])
        for clip in settings.clips
        if before[clip] < len(settings.lr)
    }
    order: dict[str, list[float]] = {clip: [] for clip in totals}
    with bars(totals) as show:

        def watch(moment: Moment) -> None:
            arm, rate, seed, step, log = moment
            if not log:
                return show(arm, 0, "compiling")
            if rate not in order[arm]:
                order[arm].append(rate)
            at = per_rate * order[arm].index(rate) + seed * settings.steps + step
            several = f"lr {rate:g} " if len(settings.lr) > 1 else ""
            seen = f"loss {log['loss']:.3f} norm {log['grad_norm_raw']:.3g}"
            show(arm, at, f"{several}seed {seed} {seen}")

        yield watch


def show_table(
    title: str, header: Sequence[str], cells: Sequence[Sequence[str]]
) -> None:
    """Print a table; columns that do not fit continue below, and no cell is cut.

    Each part starts with the first column, the names.
    """
    console = Console()
    widths = [
        max(map(cell_len, column)) + 3 for column in zip(header, *cells, strict=True)
    ]
    # A file or a pipe has no width to fit into.
    space = console.width if console.is_terminal else sum(widths) + 1
    console.width = max(console.width, sum(widths) + 1)
    parts: list[list[int]] = [[]]
    for index in range(1, len(header)):
        taken = 1 + sum(widths[other] for other in (0, *parts[-1], index))
        if parts[-1] and taken > space:
            parts.append([])
        parts[-1].append(index)
    console.print(title, style="italic", markup=False, highlight=False, width=space)
    for part in parts:
        shown = Table(Column(header[0], no_wrap=True))
        for index in part:
            shown.add_column(header[index], justify="right", no_wrap=True)
        for row in cells:
            shown.add_row(*(Text(row[index]) for index in (0, *part)))
        console.print(shown)
    console.print()


def show_comparison(settings: Settings, rows: Sequence[Row], unit: str) -> None:
    """Print the table of a comparison, the first lines of its report, and its notes."""
    name = settings.task.upper()
    rates = ", ".join(f"{rate:g}" for rate in settings.lr)
    title = f"{name}, {settings.optimizer}, learning rate {rates}, "
    title += f"{settings.steps} steps, seeds per arm: {settings.seeds}"
    show_table(title, *table(rows))
    best = at_best_rate(rows)
    if len(best) < len(rows):
        show_table("Each arm at its own best learning rate", *table(best))
    for sentence in verdict(rows, unit):
        say(sentence)
    print()
    say(" ".join(findings(best, settings.lr)))


def say(text: str) -> None:
    """Print sentences, wrapped at the width of the terminal."""
    Console().print(text, markup=False, highlight=False)


def show_step(settings: Explosion, step: Step) -> None:
    """Print the quantities of one clipped step."""
    cells = [
        ("loss before the step", f"{step.loss:.4g}"),
        ("gradient norm before clipping", f"{step.before:.4g}"),
        ("threshold", f"{step.threshold:.4g}"),
        ("factor = min(1, threshold / norm)", f"{step.factor:.4g}"),
        ("gradient norm after clipping", f"{step.after:.4g}"),
        (
            f"length of the update = {settings.lr:g} x norm after",
            f"{step.update:.4g}",
        ),
        ("length of the update without the clip", f"{step.unclipped:.4g}"),
    ]
    title = f"One step of a tanh network with recurrent gain {settings.gain:g}"
    show_table(title, ("quantity", "value"), cells)


def show_bad_step(settings: Explosion, seen: BadStep) -> None:
    """Print the gradient norms of one wrong output, step by step back through time."""
    title = (
        f"The loss of time step t = {settings.bad_step} multiplied by "
        f"{settings.error:g}, seen from time step k"
    )
    last = len(seen.hidden) - 1
    stride = max(1, last // 12)
    cells = [
        (
            f"{back}",
            f"{seen.hidden[back]:.4g}",
            f"{seen.hidden[back] / seen.hidden[0]:.4g}",
            f"{seen.bound[back]:.4g}",
        )
        for back in sorted({*range(0, last + 1, stride), last})
    ]
    header = ("t-k", "||dL_t/dh_k||", "relative to t-k = 0", "upper bound")
    show_table(title, header, cells)
    Console().print(
        f"The bound multiplies by the largest singular value {seen.singular:.4g} per "
        f"step (spectral radius {seen.radius:.4g}); above 1 it permits growth and does "
        "not cause it, because tanh shrinks on the way.\n"
        f"Norm of the whole gradient: {seen.normal:.4g} without the error, "
        f"{seen.bad:.4g} with it, {seen.clipped:.4g} after "
        f"clip_by_global_norm({settings.max_norm:g}).",
        markup=False,
        highlight=False,
    )
