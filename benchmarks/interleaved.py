"""Times several jitted steps in turn, so that a noisy machine is noisy for all."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass
class Arm:
    """One step to be timed.

    Attributes:
        name: what the table calls it.
        step: a compiled function of its carry to its next carry.
        carry: what it is called with.
        donates: whether the carry is donated, and replaced by the result.
        bytes_accessed: what XLA counts, both branches of conditionals included.
        flops: what XLA counts; the body of a scan only once.
        temporary_bytes: the memory that XLA allocates beside arguments and results.
        compile_seconds: wall-clock time to trace and compile.
        seconds: one measurement per round.
    """

    name: str
    step: Callable[[Any], Any]
    carry: Any
    donates: bool
    bytes_accessed: float
    flops: float
    temporary_bytes: float
    compile_seconds: float
    seconds: list[float] = dataclasses.field(default_factory=list)


def compile_arm(
    name: str, step: Callable[[Any], Any], carry: Any, *, donate: bool = True
) -> Arm:
    """Compile a step for its carry, with XLA's counts, NaN where it has none."""
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0 if donate else ()).lower(carry).compile()
    compile_seconds = time.perf_counter() - start
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return Arm(
        name,
        compiled,
        carry,
        donate,
        cost.get("bytes accessed", math.nan),
        cost.get("flops", math.nan),
        math.nan if memory is None else memory.temp_size_in_bytes,
        compile_seconds,
    )


def time_arms(
    arms: list[Arm], rounds: int, *, calls: int = 1, patience: float = math.inf
) -> None:
    """Run all arms in each round, after a round that is not counted.

    A measurement is the time of ``calls`` calls, divided by their number: on GPUs and
    TPUs the next call is dispatched while one runs, which hides the dispatch.

    The order changes from round to round: an arm that frees a lot of memory makes the
    next one fetch it from the system again. An arm that has run five times, and for
    more than ``patience`` seconds, takes no part in the rounds that are left.
    """
    order, shuffle = list(arms), random.Random(0).shuffle
    for number in range(rounds + 1):
        shuffle(order)
        for arm in order:
            if len(arm.seconds) >= 5 and sum(arm.seconds) > patience:
                continue
            start = time.perf_counter()
            for _ in range(calls):
                result = arm.step(arm.carry)
                if arm.donates:
                    arm.carry = result
            jax.block_until_ready(result)
            if number:
                arm.seconds.append((time.perf_counter() - start) / calls)
            del result


def median_milliseconds(arm: Arm) -> float:
    """Gives the median over the rounds."""
    return 1e3 * statistics.median(arm.seconds)


def paired_ratio(arm: Arm, other: Arm) -> float:
    """Gives the median of the ratio within a round, over the rounds that both ran."""
    pairs = zip(arm.seconds, other.seconds, strict=False)
    return statistics.median(one / two for one, two in pairs)
