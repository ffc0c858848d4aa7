"""A sum of clipped gradients takes about as long as the gradient of the summed loss."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import pytest

from ..conftest import Bench
from ..per_example.comparison import (
    ALL,
    OPACUS,
    PLAIN,
    TORCH,
    compile_ways,
    relative_memory,
    relative_time,
    relative_to_peers,
    time_ways,
    torch_arms,
    why_faster,
)
from ..per_example.models import Model, models
from ..report import Cell, Table
from ..timing import Arm, ratio

ABOUT = """
Each model's gradients are clipped example by example and summed. × plain is the time
divided by that of the plain gradient of the summed loss, unclipped, in the same rounds;
"again" shows the noise, and "1 at a time" is a loop over the examples that adds plain
gradients. Memory is XLA's temporary memory, arithmetic its count of floating-point
operations; it counts the body of a loop once, so that the LSTM's loop over time is
counted unrolled, before XLA optimizes it, and no loop over examples has a count. A way
that takes more than three plain gradients and 0.2 s runs in one round, after one that
is not counted, and is divided by the median of the plain gradient's times. Opacus in
ghost mode is divided by PyTorch's plain gradient of the same model; it has no tied
weights, and its LSTM is its own.
"""
COLUMNS = {"model: way": "", "ms": ".1f", "× plain": ".2f", "memory × plain": ".2f"}
COLUMNS |= {"temporary MB": ".1f", "arithmetic × plain": ".2f", "compile s": ".1f"}
COLUMNS |= {"rounds": "d"}
AGAIN = "plain gradient, again"


class Bars(NamedTuple):
    """The largest ratios of clipjax to the plain gradient."""

    time: float
    memory: float


BARS = {
    "transformer, 16 x 128 words": Bars(1.2, 1.1),
    "transformer, 64 x 32 words": Bars(1.2, 1.1),
    "tied transformer, 16 x 128 words": Bars(1.2, 1.1),
    "tied Linen transformer, 16 x 128 words": Bars(1.2, 1.1),
    "perceptron, 256 images": Bars(1.25, 1.1),
    "1024 x 1024 layer, 256 examples": Bars(1.25, 2.1),
    "LSTM, 32 x 64 steps": Bars(1.3, 1.4),
    "convolutional net, 64 images": Bars(1.25, 1.7),
}


@pytest.mark.filterwarnings("ignore")  # of PyTorch and Opacus
def test_clipping_per_example_costs_a_plain_gradient(bench: Bench) -> None:
    """Compare clipjax with the plain gradient, jax_privacy, Optax and Opacus."""
    title = "Clipping per example, eight models"
    with bench.table(title, ABOUT, COLUMNS) as table:
        for name, make in models(small=bench.small).items():
            model = make()
            arms = compile_ways(model)
            arms[AGAIN] = dataclasses.replace(arms[PLAIN], name=AGAIN, seconds=[])
            arms |= torch_arms(make)
            time_ways(arms, bench.rounds(15), patience=1.0)
            for way in dict.fromkeys([PLAIN, AGAIN, *ALL, TORCH, OPACUS]):
                if way in arms or way == OPACUS:
                    table.row(f"{name}: {way}", *cells(model, arms, way))
            claim(table, name, arms)
            for arm in arms.values():
                arm.free()


def cells(model: Model, arms: dict[str, Arm], way: str) -> list[Cell]:
    """Return the numbers of a row."""
    arm, torch = arms.get(way), way in (TORCH, OPACUS)
    if arm is None:
        return [None, relative_time(arms, way), *[None] * 5]
    needed, more = (arithmetic(model, arms[name]) for name in (PLAIN, way))
    return [
        arm.milliseconds.median,
        relative_time(arms, way),
        relative_memory(arms, way),
        None if torch else arm.temporary_bytes / 1e6,
        more / needed if more and needed else None,
        None if torch else arm.compile_seconds,
        len(arm.seconds),
    ]


def arithmetic(model: Model, arm: Arm) -> float | None:
    """Return the floating-point operations, or None where XLA does not count them."""
    if arm.name == AGAIN or "at a time" in arm.name or math.isnan(arm.flops):
        return None
    if model.unrolled is None:
        return arm.flops
    step = ALL[arm.name](model.unrolled, len(model.batch))
    # Not compiled, which takes a minute.
    cost = jax.jit(step).lower((model.params, *model.batch)).cost_analysis()
    return None if cost is None else cost["flops"]


def claim(table: Table, name: str, arms: dict[str, Arm]) -> None:
    """State what the rows of a model show."""
    ours, memory = ratio(arms["clipjax"], arms[PLAIN]), relative_memory(arms, "clipjax")
    bars = BARS[name]
    assert memory is not None
    table.claim(f"{name}, time", ours.median, at_most=bars.time)
    table.claim(f"{name}, temporary memory", memory, at_most=bars.memory)
    to_peer, peer = relative_to_peers(arms)
    table.claim(
        f"{name}, time relative to the fastest peer ({peer})",
        to_peer,
        at_most=1.0,
        why=why_faster(arms, peer),
    )
    if OPACUS in arms:
        theirs = ratio(arms[OPACUS], arms[TORCH])
        table.claim(
            f"{name}, ratio to the plain gradient relative to Opacus's",
            ours.median / theirs.median,
            at_most=1.0,
        )
