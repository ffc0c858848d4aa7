"""What clipping per example takes of memory, for perceptrons of many widths.

    python -m benchmarks.per_example.widths

prints XLA's temporary memory relative to the plain gradient of the summed loss, and the
same with the gradient itself counted in on both sides: XLA keeps what it needs for a
while in the memory of results that are not there yet, as far as it fits.
"""

from __future__ import annotations

import jax

from benchmarks.timing import compile_arm

from .models import perceptron
from .peers import WAYS, plain

BATCH = 256
WIDTHS = (
    (784, 512, 512, 512, 10),
    (784, 1024, 1024, 10),
    (784, 256, 256, 10),
    (784, 300, 100, 10),
    (784, 128, 10),
    (784, 512, 10),
    (64, 256, 256, 256, 10),
    (512, 512, 512, 512, 512, 10),
    (3072, 2048, 512, 10),
    (100, 2000, 2000, 10),
)


def memory(way, model) -> float:
    """Gives the temporary memory of a step, in bytes."""
    step = way(model.loss, len(model.batch))
    arguments = (model.params, *model.batch)
    return compile_arm("", step, arguments, donate=False).temporary_bytes


def main():
    """Prints a row for each."""
    print("| widths | temporary memory | with the gradient |")
    print("|---|---|---|")
    for widths in WIDTHS:
        model = perceptron(BATCH, *widths)
        ours, theirs = (memory(way, model) for way in (WAYS["clipjax"], plain))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
        ratios = (ours / theirs, (ours + size) / (theirs + size))
        cells = ["-".join(map(str, widths)), *(f"{ratio:.2f}" for ratio in ratios)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
