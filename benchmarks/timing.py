"""Time compiled steps and host functions side by side.

All arms of a comparison run in turn in one process, in an order that changes from round
to round, and a ratio is taken within a round: on a shared machine the seconds of two
runs cannot be compared, the ratios within one can.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from .report import Spread

LONG = 5.0  # seconds, of an arm that is not run again


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
        trace_seconds: wall-clock time to trace and lower.
        compile_seconds: wall-clock time to compile.
        seconds: one measurement per round.
    """

    name: str
    step: Callable[[Any], Any]
    carry: Any
    donates: bool
    bytes_accessed: float = math.nan
    flops: float = math.nan
    temporary_bytes: float = math.nan
    trace_seconds: float = math.nan
    compile_seconds: float = math.nan
    seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def milliseconds(self) -> Spread:
        """The time of a call, over the rounds."""
        return spread([1e3 * seconds for seconds in self.seconds])

    def free(self) -> None:
        """Let go of the program and its buffers; what was measured stays."""
        self.carry, self.step = None, _freed


def _freed(carry: Any) -> Any:
    raise RuntimeError("this arm was freed")


def compile_arm(
    name: str, step: Callable[[Any], Any], carry: Any, *, donate: bool = True
) -> Arm:
    """Compile a step for its carry, with XLA's counts, NaN where it has none."""
    jitted = jax.jit(step, donate_argnums=0 if donate else ())
    start = time.perf_counter()
    lowered = jitted.lower(carry)
    traced = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return Arm(
        name,
        compiled,
        carry,
        donate,
        cost.get("bytes accessed", math.nan),
        cost.get("flops", math.nan),
        math.nan if memory is None else memory.temp_size_in_bytes,
        traced - start,
        end - traced,
    )


def host_arm(name: str, call: Callable[[], Any]) -> Arm:
    """Make an arm of a function that returns when its work is done, as PyTorch's do."""
    return Arm(name, lambda _: call(), None, donates=False)


def time_arms(
    arms: list[Arm], rounds: int, *, calls: int = 1, patience: float = math.inf
) -> None:
    """Run all arms in each round, after a round that is not counted.

    A measurement is the time of ``calls`` calls, divided by their number: on GPUs and
    TPUs the next call is dispatched while one runs, which hides the dispatch.

    The order changes from round to round: an arm that frees a lot of memory makes the
    next one fetch it from the system again. An arm that has run five times, and for
    more than ``patience`` seconds, takes no part in the rounds that are left. One that
    takes more than `LONG` seconds runs once, and its first round counts.
    """
    order, shuffle = list(arms), random.Random(0).shuffle
    for number in range(rounds + 1):
        shuffle(order)
        for arm in order:
            if len(arm.seconds) >= 5 and sum(arm.seconds) > patience:
                continue
            if arm.seconds and arm.seconds[0] > LONG:
                continue
            start = time.perf_counter()
            for _ in range(calls):
                result = arm.step(arm.carry)
                if arm.donates:
                    arm.carry = result
            jax.block_until_ready(result)
            seconds = (time.perf_counter() - start) / calls
            if number or seconds > LONG:
                arm.seconds.append(seconds)
            del result


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of some measurements."""
    if len(values) < 2:
        return Spread(*[values[0] if values else math.nan] * 3)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high)


def ratio(arm: Arm, *others: Arm) -> Spread:
    """Return an arm's time, divided by the sum of others' times in the same round.

    The rounds are those that all of them ran.
    """
    rounds = zip(arm.seconds, *(other.seconds for other in others), strict=False)
    return spread([one / sum(rest) for one, *rest in rounds])
