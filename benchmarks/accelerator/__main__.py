"""Check and time clipjax on this machine's GPU or TPU, in one command.

    python -m benchmarks.accelerator [--small] [--out FOLDER] [--minutes 5]

The parts, most important first, are the bandwidth; clips alone and before Adam, beside
the bandwidth and Optax's; the numbers of every recipe on JAX's default device, against
the CPU's; train steps of a Transformer; clipping per example, beside jax_privacy and
Optax; and 1,000 leaves. Each has a share of the minutes, and what they do not suffice
for is listed. Rows are shown while they are measured, and the tables are printed as
Markdown. With ``--out`` each is also written to a folder as JSON as soon as it is done,
beside ``report.md`` with all that is printed.

It needs the extra ``bench``. The exit code is 1 if a recipe is beyond the bar, fails,
or is left out, and if anything else fails; a peer that is not installed is left out.

``--parts``, ``--recipes``, ``--clips``, ``--models`` and ``--dtypes`` choose what is
run. ``--small`` takes small trees and few rounds, to try the command on a CPU in a
minute, and if these options are not given one dtype, two clips and one model.
"""

from __future__ import annotations

import pathlib
import sys
import time

import jax

from ..options import Parser, positive
from ..recipes import recipes
from . import numbers, per_example, speed, steps
from .job import Job

# Each part with its share of the time; what a part leaves goes to those that follow.
PARTS = {
    "bandwidth": (speed.bandwidth, 4),
    "clips": (speed.clips, 28),
    "numbers": (numbers.fill, 30),
    "steps": (steps.train_steps, 13),
    "per-example": (per_example.fill, 17),
    "leaves": (steps.leaves, 8),
}
# A unit that has begun is not interrupted.
MARGIN = 0.05
CHOICES = {
    "parts": tuple(PARTS),
    "dtypes": ("float32", "bfloat16", "float16"),
    "recipes": tuple(recipes()),
    "clips": tuple(speed.READS),
    "models": tuple(per_example.models(small=True)),
}
SMALL = {"dtypes": ("float32",), "clips": ("global", "entries")}
SMALL |= {"models": ("perceptron",)}


def parser() -> Parser:
    """Return the parser of the command's options."""
    found = Parser("accelerator", __doc__)
    found.add_argument("--small", action="store_true")
    found.add_argument("--out", metavar="FOLDER", type=pathlib.Path)
    found.add_argument("--minutes", type=positive, default=5)
    for option, choices in CHOICES.items():
        found.add_argument(
            f"--{option}",
            nargs="+",
            choices=choices,
            metavar="NAME",
            help=", ".join(choices),
        )
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, and return the exit code."""
    start = time.monotonic()
    line = parser()
    options = line.parse_args(arguments)
    defaults = CHOICES | SMALL if options.small else CHOICES
    for option, names in defaults.items():
        setattr(options, option, getattr(options, option) or list(names))
    try:
        jax.devices("cpu")
    except RuntimeError:
        line.error("JAX has no CPU backend here: add cpu to JAX_PLATFORMS")
    if options.out:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            line.error(f"argument --out: {error.strerror}: {options.out}")

    job = Job(options)
    about = job.about_device()
    job.print(
        f"{about['kind']} ({about['platform']}, the first of {about['count']}), "
        f"JAX {jax.__version__}."
    )
    if about["platform"] == "cpu":
        job.print("The default device is a CPU, which is compared with itself.")
    if about["platform"] == "tpu" and "float16" in options.dtypes:
        options.dtypes.remove("float16")
        job.print("TPUs do not compute in float16, which is left out.")

    seconds = 60 * options.minutes * (1 - MARGIN)
    chosen = {name: PARTS[name] for name in PARTS if name in options.parts}
    whole, shares = sum(share for _, share in chosen.values()), 0
    for part, share in chosen.values():
        shares += share
        job.deadline = start + seconds * shares / whole
        part(job)
    job.print(f"{time.monotonic() - start:.0f} s in all.")
    failed = "\n".join(f"- {failure}" for failure in job.failures)
    job.print(f"Failed:\n\n{failed}" if failed else "Nothing failed.")
    return 1 if job.failures else 0


if __name__ == "__main__":
    sys.exit(main())
