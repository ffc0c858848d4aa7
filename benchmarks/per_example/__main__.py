"""Per-example clipping against the plain gradient of the summed loss.

    python -m benchmarks.per_example [words of a model's name]

prints, for each model and each way to clip, the time relative to the plain gradient, as
the median of the ratios in rounds of shuffled order, and XLA's temporary memory and
arithmetic. A way that takes long runs in fewer rounds than the others, which the last
column tells. XLA counts the body of a loop once: the arithmetic of a loop over time is
that of the same loop unrolled, before XLA optimises it; none is given for loops over
examples. It needs the extra ``bench``.
"""

from __future__ import annotations

import sys

import jax

from benchmarks.timing import Arm, compile_arm, paired_ratio, time_arms

from .models import MODELS, Model
from .peers import WAYS, plain

ROUNDS, PATIENCE = 9, 5.0
COLUMNS = ("relative to the plain gradient", "time", "memory", "arithmetic", "rounds")


def arithmetic(name: str, arm: Arm, model: Model) -> float | None:
    """Counts floating-point operations, or gives None if XLA cannot."""
    if "at a time" in name:
        return None
    if model.unrolled is None:
        return arm.flops
    step = {"plain": plain, **WAYS}[name](model.unrolled, len(model.batch))
    # Not compiled, which takes a minute.
    cost = jax.jit(step).lower((model.params, *model.batch)).cost_analysis()
    return None if cost is None else cost["flops"]


def compare(model: Model) -> dict[str, list[str]]:
    """Measures one model, and gives the cells of its rows."""
    arguments = (model.params, *model.batch)
    arms = {
        name: compile_arm(
            name, way(model.loss, len(model.batch)), arguments, donate=False
        )
        for name, way in {"plain": plain, **WAYS}.items()
    }
    time_arms(list(arms.values()), ROUNDS, patience=PATIENCE)
    reference = arms.pop("plain")
    needed = arithmetic("plain", reference, model)
    rows = {}
    for name, arm in arms.items():
        memory = arm.temporary_bytes / reference.temporary_bytes
        more = arithmetic(name, arm, model)
        rows[name] = [
            f"{paired_ratio(arm, reference):.2f}",
            f"{memory:.2f}",
            f"{more / needed:.2f}" if more and needed else "",
            f"{len(arm.seconds)}",
        ]
    return rows


def main():
    """Prints a table of the models whose names have all the words given."""
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    summary = {}
    for name, make in MODELS.items():
        if not all(word in name for word in sys.argv[1:]):
            continue
        rows = compare(make())
        summary[name] = [f"{cells[0]} ({cells[1]})" for cells in rows.values()]
        for way, cells in rows.items():
            print(f"| {' | '.join([f'{name}: {way}', *cells])} |", flush=True)
    print(f"\n| time (memory), the plain gradient being 1 | {' | '.join(WAYS)} |")
    print("|---" * (1 + len(WAYS)) + "|")
    for name, cells in summary.items():
        print(f"| {' | '.join([name, *cells])} |")


if __name__ == "__main__":
    main()
