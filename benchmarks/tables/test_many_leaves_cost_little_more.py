"""With 10,000 leaves, a clip before Adam adds little to compilation and to time."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

import clipjax

from ..arms import update_arm
from ..conftest import Bench
from ..gpt2 import parameters
from ..timing import ratio, time_arms

ABOUT = """
A step of a clip and Adam with a float32 gradient in memory, on 10M parameters in 10 to
10,000 equal square leaves. Tracing includes the lowering to StableHLO. Each step is
compiled once, and compile × Adam is the time of tracing and compiling divided by that
of Adam alone. Optax's clip is left out at 10,000 leaves, to save minutes of
compilation.
"""
COLUMNS = {"leaves": "d", "step": "", "trace, s": ".2f", "compile, s": ".2f"}
COLUMNS |= {"compile × Adam": ".2f", "ms": ".1f", "time × Adam": ".2f"}
LEAVES = (10, 100, 1000, 10_000)
PARAMETERS = 10_000_000


def test_many_leaves_cost_little_more(bench: Bench) -> None:
    """Compare Adam alone, with Optax's clip and with clipjax's."""
    clips = {
        "Adam": optax.identity(),
        "optax.clip_by_global_norm + Adam": optax.clip_by_global_norm(1.0),
        "clip_by_global_norm + Adam": clipjax.clip_by_global_norm(1.0),
    }
    with bench.table("From 10 to 10,000 leaves", ABOUT, COLUMNS) as table:
        for leaves in LEAVES[:2] if bench.small else LEAVES:
            side = round(math.sqrt(PARAMETERS / leaves / (100 if bench.small else 1)))
            tree = {f"layer{number:05d}": (side, side) for number in range(leaves)}
            grads = parameters(tree, jnp.float32)
            arms = []
            for name, clip in clips.items():
                if "optax" in name and leaves == max(LEAVES):
                    continue
                jax.clear_caches()  # or the second finds what both trace
                chain = optax.chain(clip, optax.adam(1e-3))
                arms.append(update_arm(name, chain, grads, grads))
            time_arms(arms, bench.rounds(11))
            adam, ours = arms[0], arms[-1]
            compiled = {
                arm.name: arm.trace_seconds + arm.compile_seconds for arm in arms
            }
            for arm in arms:
                table.row(
                    leaves,
                    arm.name,
                    arm.trace_seconds,
                    arm.compile_seconds,
                    compiled[arm.name] / compiled["Adam"],
                    arm.milliseconds.median,
                    ratio(arm, adam),
                )
            if leaves == max(LEAVES):
                table.claim(
                    "10,000 leaves, seconds to trace and compile, relative to Adam",
                    compiled[ours.name] / compiled["Adam"],
                    at_most=1.5,
                )
                table.claim(
                    "10,000 leaves, time relative to Adam",
                    ratio(ours, adam).median,
                    at_most=1.2,
                )
            for arm in arms:
                arm.free()
