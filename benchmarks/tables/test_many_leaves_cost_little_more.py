"""With 10,000 leaves, a clip before Adam adds little to compilation and to time."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import clipjax

from ..arms import Shapes, update_arm
from ..conftest import Bench
from ..gpt2 import parameters
from ..timing import Arm, ratio, time_arms

ABOUT = """
A step of a clip and Adam with a float32 gradient in memory, on 10M parameters in 10 to
10,000 equal square leaves. Tracing includes the lowering to StableHLO, whose operations
are counted; "compile × Adam" is the time of tracing and compiling divided by that of
Adam alone. Each step is compiled once.

With 10,000 leaves the steps are traced and not compiled: the CPU backend of XLA in JAX
0.10.2 compares each kernel of a program with every other one, so that its time and
memory grow with the square of the leaves, and Adam alone takes more than the 12 GB that
these tables are meant for.
"""
COLUMNS = {"leaves": "d", "step": "", "operations": ",d", "trace, s": ".2f"}
COLUMNS |= {"compile, s": ".2f", "compile × Adam": ".2f", "ms": ".1f"}
COLUMNS |= {"time × Adam": ".2f"}
LEAVES, TRACED_ONLY = (10, 100, 1000), 10_000
PARAMETERS = 10_000_000
CLIPS = {
    "Adam": optax.identity(),
    "optax.clip_by_global_norm + Adam": optax.clip_by_global_norm(1.0),
    "clip_by_global_norm + Adam": clipjax.clip_by_global_norm(1.0),
}
WHY = (
    "Each leaf is summed twice in the program, the second time in a branch for norms "
    "whose squares leave float32's range, and goes through a barrier each time, which "
    "saves memory. Optax's clip has neither, and its ratio is {optax:.2f}"
)
WHY_TIME = (
    "The sum of a leaf is a kernel, beside Adam's of the same leaf, and the leaves are "
    "so small that the CPU mostly starts kernels: compare Adam with 10 and 1,000 leaves"
)


def tree(leaves: int, small: bool) -> Shapes:
    """Return the shapes of equal square leaves."""
    side = round(math.sqrt(PARAMETERS / leaves / (100 if small else 1)))
    return {f"layer{number:05d}": (side, side) for number in range(leaves)}


def chain(name: str) -> optax.GradientTransformationExtraArgs:
    """Return a clip before Adam."""
    return optax.chain(CLIPS[name], optax.adam(1e-3))


def traced(name: str, shapes: Shapes) -> tuple[int, float]:
    """Return the number of operations of a step, and the seconds to trace it."""
    transformation = chain(name)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = {
        key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in shapes.items()
    }
    state = jax.eval_shape(transformation.init, params)
    jax.clear_caches()  # or the second finds what both trace
    start = time.perf_counter()
    lowered = jax.jit(step).lower(params, state, params)
    seconds = time.perf_counter() - start
    return lowered.as_text().count(" = "), seconds


def compiled(name: str, shapes: Shapes) -> Arm:
    """Compile a step."""
    jax.clear_caches()
    grads = parameters(shapes, jnp.float32)
    return update_arm(name, chain(name), grads, grads)


def test_many_leaves_cost_little_more(bench: Bench) -> None:
    """Compare Adam alone, with Optax's clip and with clipjax's."""
    adam, peer, ours = CLIPS
    with bench.table("From 10 to 10,000 leaves", ABOUT, COLUMNS) as table:
        for leaves in LEAVES[:2] if bench.small else LEAVES:
            shapes = tree(leaves, bench.small)
            operations = {name: traced(name, shapes)[0] for name in CLIPS}
            arms = {name: compiled(name, shapes) for name in CLIPS}
            time_arms(list(arms.values()), bench.rounds(11))
            seconds = {
                name: arm.trace_seconds + arm.compile_seconds
                for name, arm in arms.items()
            }
            for name, arm in arms.items():
                table.row(
                    leaves,
                    name,
                    operations[name],
                    arm.trace_seconds,
                    arm.compile_seconds,
                    seconds[name] / seconds[adam],
                    arm.milliseconds.median,
                    ratio(arm, arms[adam]),
                )
            if leaves == max(LEAVES):
                table.claim(
                    f"{leaves:,} leaves, seconds to trace and compile over Adam's",
                    seconds[ours] / seconds[adam],
                    at_most=1.5,
                    why=WHY.format(optax=seconds[peer] / seconds[adam]),
                )
                table.claim(
                    f"{leaves:,} leaves, time relative to Adam",
                    ratio(arms[ours], arms[adam]).median,
                    at_most=1.2,
                    why=WHY_TIME,
                )
            for arm in arms.values():
                arm.free()
        if bench.small:
            return
        shapes = tree(TRACED_ONLY, bench.small)
        steps = {name: traced(name, shapes) for name in (adam, ours)}
        for name, (count, seconds_to_trace) in steps.items():
            table.row(*(TRACED_ONLY, name, count, seconds_to_trace), *[None] * 4)
        table.claim(
            f"{TRACED_ONLY:,} leaves, operations over Adam's",
            steps[ours][0] / steps[adam][0],
            at_most=1.5,
            why=WHY.format(optax=operations[peer] / operations[adam]),
        )
