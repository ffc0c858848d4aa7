"""Check and time clipjax on this machine's GPU or TPU, in one command.

    python -m benchmarks.accelerator [--small] [--out FILE] [--minutes 8]

First it compares the numbers of every recipe on JAX's default device with the CPU's,
for gradients with norms from 0 to 1e20, inf and NaN. A difference is relative to the
largest entry of its leaf, and may be 1e-5 in float32 and two ulps, 2^-6, in bfloat16;
`differences.py` says why three recipes have a wider bar. Then it times clips alone and
before Adam, beside Optax's. "Bandwidth" is the least traffic that the step needs,
relative to what a copy moves in the same time. What the minutes do not suffice for is
listed. The exit code is 1 if a recipe differs, fails, or is left out.

--small takes small trees and few rounds, to try the command on a CPU. --recipes and
--clips choose what is compared and what is timed.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import jax
import optax

from ..options import DTYPES, Parser, positive, table
from . import differences, speed
from .recipes import recipes

# The share of the time that the recipes may take.
SHARE_OF_NUMBERS = 0.6


class Report:
    """Prints lines and writes them to a file, each at once."""

    def __init__(self, file: Any):
        """Take an open file, or None."""
        self._file = file

    def line(self, text: str = "") -> None:
        """Print a line."""
        print(text, flush=True)
        if self._file is not None:
            print(text, file=self._file, flush=True)

    def row(self, cells: list[str]) -> None:
        """Print a row of a table."""
        self.line(f"| {' | '.join(cells)} |")

    def header(self, cells: list[str]) -> None:
        """Print the head of a table."""
        self.line("\n" + table(cells, []))


def cell(name: str, dtype: str, shapes: differences.Shapes) -> tuple[str, bool]:
    """Return what the table says of a recipe, and whether it is within the bar."""
    try:
        found, norm = differences.compare(name, shapes, dtype)
    except Exception as error:  # one recipe that fails must not hide the others
        first_line = str(error).partition("\n")[0]
        return f"{type(error).__name__}: {first_line}", False
    bar = differences.bar(name, dtype)
    text = f"{found:.1e}" + (f" at norm {norm:g}" if found else "")
    if bar > differences.BARS[dtype]:
        text += f", bar {bar:.0e}"
    return text + (", beyond the bar" if found > bar else ""), found <= bar


def check_numbers(report: Report, options: Any, deadline: float) -> bool:
    """Print the differences of all recipes; return whether all are within the bar."""
    shapes = differences.SMALL_SHAPES if options.small else differences.SHAPES
    bars = [f"{dtype} ≤ {differences.BARS[dtype]:.1e}" for dtype in options.dtypes]
    report.header(["recipe", *bars])
    wrong, left_out = [], []
    for name in options.recipes:
        if time.monotonic() > deadline:
            left_out.append(name)
            continue
        found = [cell(name, dtype, shapes) for dtype in options.dtypes]
        report.row([name, *(text for text, _ in found)])
        if not all(within for _, within in found):
            wrong.append(name)
    report.line()
    if left_out:
        report.line(f"Left out for lack of time: {', '.join(left_out)}.")
    report.line(f"Beyond the bar: {', '.join(wrong) or 'none'}.")
    return not wrong and not left_out


def time_clips(report: Report, options: Any, deadline: float) -> None:
    """Print the times of clips, most important first."""
    setting = speed.setting(options.small, jax.devices()[0])
    peak = speed.bandwidth(setting)
    report.line(
        f"\n{setting.entries / 1e6:.3g} million parameters, {len(setting.tree)} leaves;"
        f" a copy moves {peak / 1e9:.4g} GB/s."
    )
    report.header(speed.HEADER)
    adam: dict[str, Any] = {}
    left_out = []
    for kind in options.clips:
        for dtype in options.dtypes:
            if time.monotonic() > deadline:
                left_out.append(f"{kind} in {dtype}")
                continue
            if dtype not in adam:
                adam[dtype] = speed.adam_arm("Adam", optax.identity(), setting, dtype)
            for row in speed.measure(kind, dtype, adam[dtype], setting, peak):
                report.row(row)
    if left_out:
        report.line(f"\nLeft out for lack of time: {', '.join(left_out)}.")


def main(arguments: list[str] | None = None) -> int:
    """Print the report, and return the exit code."""
    start = time.monotonic()
    parser = Parser("accelerator", __doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--minutes", type=positive, default=8)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    names = list(recipes())
    parser.add_argument(
        "--recipes", nargs="+", choices=names, default=names, metavar="NAME"
    )
    kinds = list(speed.LEAST)
    parser.add_argument("--clips", nargs="+", choices=kinds, default=kinds)
    options = parser.parse_args(arguments)
    try:
        jax.devices("cpu")
    except RuntimeError:
        parser.error("JAX has no CPU backend here: add cpu to JAX_PLATFORMS")
    try:
        file = open(options.out, "w") if options.out else None
    except OSError as error:
        parser.error(f"argument --out: {error.strerror}: {options.out}")

    report, device = Report(file), jax.devices()[0]
    report.line(f"{device.device_kind} ({device.platform}), JAX {jax.__version__}")
    if device.platform == "cpu":
        report.line("The default device is a CPU, which is compared with itself.")
    seconds = 60 * options.minutes
    holds = check_numbers(report, options, start + SHARE_OF_NUMBERS * seconds)
    time_clips(report, options, start + seconds)
    report.line(f"\n{time.monotonic() - start:.0f} s in all.")
    if file is not None:
        file.close()
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
