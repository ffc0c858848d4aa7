"""What the commands show on the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
)
from rich.table import Table
from rich.text import Text

from .compare import Watch
from .explode import BadStep, Step
from .presets import Explosion, Settings
from .summary import Row, findings, table


@contextmanager
def live(settings: Settings) -> Iterator[Watch]:
    """A progress bar per arm, with the last loss and raw norm, on standard error."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[seen]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )
    bars = {
        clip: progress.add_task(
            clip, total=settings.steps * settings.seeds, seen="waiting", start=False
        )
        for clip in settings.clips
    }

    def watch(arm: str, seed: int, step: int, log: Mapping[str, float]) -> None:
        bar = bars[arm]
        if not log:
            progress.update(bar, seen="compiling")
            return
        if not progress.tasks[bar].started:
            progress.start_task(bar)
        seen = f"seed {seed} loss {log['loss']:.3f} norm {log['grad_norm_raw']:.3g}"
        progress.update(bar, completed=seed * settings.steps + step, seen=seen)

    with progress:
        try:
            yield watch
        except BaseException:
            # The one line that says why is all that should remain.
            progress.live.transient = True
            raise


def _show(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    shown = Table(title=title, title_justify="left")
    shown.add_column(header[0])
    for name in header[1:]:
        shown.add_column(name, justify="right")
    for row in cells:
        shown.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width to fit into
        console.width = 200
    console.print(shown)
    console.print()


def show_comparison(settings: Settings, rows: Sequence[Row]) -> None:
    """The table of a comparison and what is seen in it."""
    name = type(settings.model).__name__
    title = f"{name}, {settings.optimizer}, learning rate {settings.lr:g}, "
    title += f"{settings.steps} steps, seeds per arm: {settings.seeds}"
    _show(title, *table(rows))
    Console().print(" ".join(findings(rows)), markup=False, highlight=False)


def show_step(settings: Explosion, step: Step) -> None:
    """One clipped step, worked through."""
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
    _show(title, ("quantity", "value"), cells)


def show_bad_step(settings: Explosion, seen: BadStep) -> None:
    """The way of one wrong output back through time."""
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
    _show(title, header, cells)
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
