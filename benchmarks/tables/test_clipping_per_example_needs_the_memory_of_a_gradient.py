"""Clipping per example takes less temporary memory than the plain gradient's total."""

from __future__ import annotations

import jax

from ..conftest import Bench
from ..per_example.models import perceptron
from ..per_example.peers import ours, plain
from ..timing import compile_arm

ABOUT = """
XLA's temporary memory for clipped gradients of perceptrons, for a batch of 256, beside
that of the plain gradient of the summed loss. XLA keeps what it needs for a while in
the memory of results that are not there yet, as far as it fits, so that the last column
counts the gradient itself on both sides. Nothing is run. A copy of the gradient for
each example would take 256 gradients.
"""
COLUMNS = {"widths": "", "gradient MB": ".2f", "plain MB": ".2f", "clipjax MB": ".2f"}
COLUMNS |= {"× plain": ".2f", "× plain, with the gradient": ".2f"}
BATCH, BAR = 256, 2.0
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


def test_clipping_per_example_needs_the_memory_of_a_gradient(bench: Bench) -> None:
    """Compare XLA's counts for perceptrons of many widths."""
    ratios = []
    title = "Memory of clipping per example, perceptrons"
    with bench.table(title, ABOUT, COLUMNS) as table:
        for widths in WIDTHS[:3] if bench.small else WIDTHS:
            model = perceptron(BATCH, *widths)
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
            arguments = (model.params, *model.batch)
            clipped, unclipped = (
                compile_arm(
                    "", way(model.loss, len(model.batch)), arguments, donate=False
                ).temporary_bytes
                for way in (ours, plain)
            )
            ratios.append((clipped + size) / (unclipped + size))
            table.row(
                "-".join(map(str, widths)),
                size / 1e6,
                unclipped / 1e6,
                clipped / 1e6,
                clipped / unclipped,
                ratios[-1],
            )
        table.claim(
            "clipjax relative to the plain gradient, with the gradient, at most",
            max(ratios),
            at_most=BAR,
        )
