"""Clipping per example grows with batch, length and width like the plain gradient."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import pytest

from ..conftest import Bench
from ..per_example.comparison import (
    OPACUS,
    PLAIN,
    compile_ways,
    norms_by,
    relative_memory,
    relative_time,
    relative_to_peers,
    time_ways,
    torch_arms,
    why_faster,
)
from ..per_example.models import Model, perceptron, transformer
from ..per_example.peers import WAYS
from ..report import Cell, Table
from ..timing import Arm, ratio

ABOUT = """
{model}. Times are relative to the plain gradient of the summed loss in the same rounds;
what takes more than three plain gradients and 0.2 s runs in one round, and is divided
by the median. Opacus in ghost mode is relative to PyTorch's plain gradient. Memory is
XLA's temporary memory, relative to the plain gradient's. What would need more than 4 GB
of it is compiled and not run. "Norms" is the number of parameters of clipjax whose
norms are computed by Gram matrices, directly from the example's gradient where that is
smaller, by equal rows of an embedding, or from gradients per example ("dense"), as for
biases.
"""


class Axis(NamedTuple):
    """Models of growing size.

    Attributes:
        title: of the table.
        model: what they have in common, as a sentence without its period.
        unit: what is counted.
        sizes: how many of it.
        make: from one of them to the function of a model, with its arguments.
        bar: the largest ratio of clipjax to the plain gradient.
    """

    title: str
    model: str
    unit: str
    sizes: tuple[int, ...]
    make: Any
    bar: float


def text(batch: int, length: int, width: int) -> functools.partial[Model]:
    """Return a Transformer of one block."""
    return functools.partial(transformer, batch, length, 1, width)


def images(batch: int, width: int) -> functools.partial[Model]:
    """Return a perceptron with two hidden layers."""
    return functools.partial(perceptron, batch, 784, width, width, 10)


BATCHES, LENGTHS, WIDTHS = (1, 8, 64, 256), (16, 64, 256, 512), (64, 256, 512)
AXES = {
    "transformer_batch": Axis(
        "Per-example clipping over the batch, Transformer",
        "A Transformer of one block of width 64 and 2,000 words, 32 words an example",
        *("examples", BATCHES, lambda size: text(size, 32, 64), 1.3),
    ),
    "transformer_length": Axis(
        "Per-example clipping over the length, Transformer",
        "A Transformer of one block of width 128 and 2,000 words, 8 examples",
        *("words", LENGTHS, lambda size: text(8, size, 128), 1.3),
    ),
    "transformer_width": Axis(
        "Per-example clipping over the width, Transformer",
        "A Transformer of one block and 2,000 words, 8 examples of 32 words",
        *("wide", WIDTHS, lambda size: text(8, 32, size), 1.3),
    ),
    "perceptron_batch": Axis(
        "Per-example clipping over the batch, perceptron",
        "A perceptron of 784 inputs, two hidden layers of 256 and 10 outputs",
        *("examples", BATCHES, lambda size: images(size, 256), 1.5),
    ),
    "perceptron_width": Axis(
        "Per-example clipping over the width, perceptron",
        "A perceptron of 784 inputs, two hidden layers and 10 outputs, 64 examples",
        *("wide", WIDTHS, lambda size: images(64, size), 1.5),
    ),
}
SHOWN = (*WAYS, OPACUS)


@pytest.mark.parametrize("part", AXES)
@pytest.mark.filterwarnings("ignore")  # of PyTorch and Opacus
def test_clipping_per_example_scales_like_the_plain_gradient(
    bench: Bench, part: str
) -> None:
    """Compare clipjax with the plain gradient and its peers, from size to size."""
    axis = AXES[part]
    columns = {axis.unit: "", "plain": ""}
    columns |= {way.replace("jax_privacy, ", "… "): ".2f" for way in SHOWN}
    about = ABOUT.format(model=axis.model)
    with bench.table(axis.title, about, columns, part=part) as table:
        for size in axis.sizes[:2] if bench.small else axis.sizes:
            make = axis.make(size)
            model = make()
            arms = compile_ways(model) | torch_arms(make)
            time_ways(arms, bench.rounds(15), patience=1.0)
            add_rows(table, f"{size} {axis.unit}", model, arms)
            add_claims(table, f"{size} {axis.unit}", arms, axis.bar)
            for arm in arms.values():
                arm.free()


def add_rows(table: Table, name: str, model: Model, arms: dict[str, Arm]) -> None:
    """Add the rows of one size."""
    plain = arms[PLAIN]
    times = [relative_time(arms, way) for way in SHOWN]
    table.row(f"{name}: time", f"{plain.milliseconds.median:.2f} ms", *times)
    memory = [relative_memory(arms, way) for way in SHOWN]
    table.row(f"{name}: memory", f"{plain.temporary_bytes / 1e6:.2f} MB", *memory)
    norms: list[Cell] = [None] * (len(SHOWN) - 1)
    table.row(f"{name}: norms", None, norms_by(model), *norms)


def add_claims(table: Table, name: str, arms: dict[str, Arm], bar: float) -> None:
    """State what one size shows."""
    ours = ratio(arms["clipjax"], arms[PLAIN]).median
    table.claim(f"{name}, relative to the plain gradient", ours, at_most=bar)
    to_peer, peer = relative_to_peers(arms)
    table.claim(
        f"{name}, relative to the fastest peer ({peer})",
        to_peer,
        at_most=1.0,
        why=why_faster(arms, peer),
    )
