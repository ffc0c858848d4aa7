"""Fill the atlas of methods: every recipe on every task, a file for each cell.

    python -m benchmarks.atlas [--tasks ...] [--methods ...] [--out ...] [--small]

A cell whose file has the same settings is not computed again, so that a run that was
stopped goes on where it was. A cell that fails is named, and the others go on; the exit
code is then 1. `--small` takes two rates and two seeds. The page and the figures are
made by `python -m benchmarks.atlas.page --write`.
"""

from __future__ import annotations

import os
import pathlib
import sys

import rich.console
import rich.progress

from ..options import Parser
from ..recipes import recipes
from .arms import OTHERS, TIGHTENED, UNCLIPPED
from .cells import fill
from .engine import Grid
from .tasks import tasks

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "atlas"
# jaxlib 0.10 splits a batch of SVDs over XLA's threads, and the thread that calls it
# waits. Where as many SVDs run at once as there are threads (the leaves, on two cores),
# all of them wait forever: https://github.com/jax-ml/jax/blob/jax-v0.10.2/jaxlib/cpu/
# lapack_kernels.cc, `ParallelBatchMap`. So there are more threads than leaves.
THREADS = 16
ARMS = [UNCLIPPED, *OTHERS.values(), *recipes(), *TIGHTENED]


def main(arguments: list[str] | None = None) -> int:
    """Compute the cells that are missing."""
    os.environ.setdefault("NPROC", str(max(THREADS, os.cpu_count() or 1)))
    parser = Parser("atlas", __doc__)
    every = tasks()
    parser.add_argument("--tasks", nargs="+", choices=every, default=list(every))
    parser.add_argument("--methods", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="two rates, two seeds")
    options = parser.parse_args(arguments)
    grid = Grid(2, 1, 1) if options.small else Grid()
    failed = 0
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.TimeElapsedColumn(),
        console=rich.console.Console(stderr=True),
    ) as progress:
        total = sum(
            len(set(options.methods) - {OTHERS[every[name].family]})
            for name in options.tasks
        )
        bar = progress.add_task("cells", total=total)
        for name in options.tasks:
            for method, outcome in fill(
                every[name], options.methods, grid, options.out
            ):
                progress.update(bar, description=f"{name} {method}", advance=1)
                if isinstance(outcome, Exception):
                    failed += 1
                    progress.console.print(f"{name} {method}: {outcome!r}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
