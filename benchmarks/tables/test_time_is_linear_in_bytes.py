"""The time of a clip grows linearly with the bytes of the gradient."""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
import optax
import pytest

import clipjax

from ..arms import (
    copy_arm,
    gradient,
    in_place_arm,
    reduction_arm,
    update_arm,
)
from ..conftest import Bench
from ..timing import ratio, time_arms

ABOUT = """
`clip_by_global_norm` alone, which overwrites the gradient, and before Adam with a
gradient in memory, of 32 square leaves. The limit of the clip is a read and a copy of
the gradient, that of clip and Adam two reads and three copies, in the same rounds. The
gradients of 1M and 3M parameters fit into the processor's caches, and calls and threads
take a larger share of so short a time: claims are about 10M parameters and more.
"""
COLUMNS = {"parameters": "", "clip, ms": ".2f", "ns per parameter": ".2f"}
COLUMNS |= {"× limit": ".2f", "clip + Adam, ms": ".2f"}
COLUMNS |= {"clip + Adam, ns per parameter": ".2f", "clip + Adam, × limit": ".2f"}
MILLIONS = (1, 3, 10, 30, 100, 300)
LEAVES = 32
# The largest growth of the time per parameter, from 10M parameters up.
MOST = 1.25


def growth(times: list[float]) -> float:
    """Return the largest ratio of a number to one that stands before it."""
    return max(after / before for before, after in itertools.combinations(times, 2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_time_is_linear_in_bytes(bench: Bench, dtype: str) -> None:
    """Time trees of 1M to 300M parameters."""
    clip = clipjax.clip_by_global_norm(1.0)
    with_adam = optax.chain(clip, optax.adam(1e-3))
    title = f"From 1M to 300M parameters, {dtype}"
    alone, with_optimizer = [], []
    with bench.table(title, ABOUT, COLUMNS, part=dtype) as table:
        for millions in MILLIONS:
            size = 1e4 * millions if bench.small else 1e6 * millions
            side = round(math.sqrt(size / LEAVES))
            tree = {f"layer{number:02d}": (side, side) for number in range(LEAVES)}
            grads = gradient(tree, jnp.dtype(dtype))
            read, copy = reduction_arm(grads), copy_arm(grads)
            norm = math.sqrt(LEAVES * side**2 / 2)
            arm = in_place_arm("clip", clipjax.clip_by_global_norm, norm / 2, grads)
            step = update_arm("clip + Adam", with_adam, grads, grads)
            time_arms([arm, step, read, copy], bench.rounds(11 if millions < 99 else 5))
            nanoseconds = [
                1e6 * each.milliseconds.median / (LEAVES * side**2)
                for each in (arm, step)
            ]
            table.row(
                f"{millions}M",
                arm.milliseconds.median,
                nanoseconds[0],
                ratio(arm, read, copy),
                step.milliseconds.median,
                nanoseconds[1],
                ratio(step, read, read, copy, copy, copy),
            )
            if millions >= 10:
                alone.append(nanoseconds[0])
                with_optimizer.append(nanoseconds[1])
            for each in (arm, step, read, copy):
                each.free()
            del grads
        for name, found in {"clip": alone, "clip + Adam": with_optimizer}.items():
            table.claim(
                f"{name}, growth of the time per parameter from 10M parameters up",
                growth(found),
                at_most=MOST,
            )
