"""Reading a clip's metrics, and recording them, adds at most one per cent to a step."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import clipjax
from clipjax.monitoring import Recorder, tensor_report

from ..conftest import Bench
from ..timing import Arm, compile_arm, ratio, time_arms
from ..transformer import Sizes, loss, parameters, tokens

ABOUT = """
A train step of a decoder-only Transformer of two layers in float32: `value_and_grad`,
a clip, AdamW and `apply_updates`, with parameters and state donated. Each measurement
is several steps without a wait in between, as in training. × without is the time
divided by that of the step whose metrics nobody reads; "without, again" is a second
copy of it, whose true ratio is 1.

"metrics in the step" returns `clipjax.metrics(state)` from the step, "metrics fetched"
also waits for them on the host at each step. "recorder" calls `Recorder.record` after
each step; it fetches {fetch_every} steps at a time (by default 100). `tensor_report`
computes norms and ratios of each parameter in every step, for which it reads
gradients, updates and parameters again; a call every hundred steps costs a hundredth.
Numbers are those of a step, of the clip and its blocks. Host ms is the main thread's
CPU time in `record` or in the fetch, and "of a step" its share of the step's time. The
last column tells how many calls returned while their step was still running, which a
call that waits for the device cannot.
"""
COLUMNS = {"step": "", "ms": ".1f", "× without": ".3f", "numbers": "d"}
COLUMNS |= {"host ms": ".3f", "of a step": ".2%", "returned first": ".0%"}
BAR, HOST_BAR = 1.01, 0.01
WHY = "A second copy of the same step has the quartiles {0.low:.3f} and {0.high:.3f}"
FETCH_EVERY = 10
CLIPS = {
    "global": clipjax.clip_by_global_norm(1.0),
    "leaf": clipjax.clip_by_leaf_norm(0.1),
}
NAMES = {"global": "global clip", "leaf": "clip of each leaf"}
Told = Callable[[Any, Any, Any, Any], dict[str, jax.Array]]


def nothing(grads: Any, updates: Any, params: Any, state: Any) -> dict[str, jax.Array]:
    """Return no numbers."""
    del grads, updates, params, state
    return {}


def metrics(grads: Any, updates: Any, params: Any, state: Any) -> dict[str, jax.Array]:
    """Return the numbers of the clip."""
    del grads, updates
    return dict(clipjax.metrics(state, params))


def report(grads: Any, updates: Any, params: Any, state: Any) -> dict[str, jax.Array]:
    """Return the numbers of each parameter."""
    del state
    return tensor_report(grads, updates, params)


def watched(name: str, optimizer: Any, sizes: Sizes, told: Told = nothing) -> Arm:
    """Compile a train step that also returns the loss and some numbers."""
    batch = tokens(sizes)

    def step(carry: Any) -> Any:
        params, state, _ = carry
        value, grads = jax.value_and_grad(loss)(params, batch, sizes.heads)
        updates, state = optimizer.update(grads, state, params)
        numbers = told(grads, updates, params, state)
        return optax.apply_updates(params, updates), state, (value, numbers)

    params = parameters(sizes, jnp.float32)
    state = jax.jit(optimizer.init)(params)
    shapes = jax.eval_shape(step, (params, state, None))[-1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return compile_arm(name, step, (params, state, zeros))


@dataclasses.dataclass
class Watch:
    """What the main thread does after each step.

    Attributes:
        call: with the step's result.
        seconds: CPU time of each call.
        was_running: whether the step was still running after the call.
    """

    call: Callable[[Any], Any]
    seconds: list[float] = dataclasses.field(default_factory=list)
    was_running: list[bool] = dataclasses.field(default_factory=list)

    def after(self, arm: Arm) -> Arm:
        """Return the arm with the call after each step."""

        def step(carry: Any) -> Any:
            carry = compiled(carry)
            start = time.thread_time()
            self.call(carry)
            self.seconds.append(time.thread_time() - start)
            self.was_running.append(not carry[2][0].is_ready())
            return carry

        compiled = arm.step
        return dataclasses.replace(arm, step=step)


@pytest.mark.parametrize("kind", CLIPS)
def test_metrics_and_recorder_cost_one_percent(bench: Bench, kind: str) -> None:
    """Compare a step with what reads its clip's state."""
    optimizer = optax.chain(CLIPS[kind], optax.adamw(1e-3))
    few = Sizes(layers=1, width=32, vocabulary=50, batch=2, context=8)
    sizes = few if bench.small else Sizes(layers=2, batch=4)
    calls = 4
    title = f"A train step and what reads the metrics of its {NAMES[kind]}"
    about = ABOUT.format(fetch_every=FETCH_EVERY)
    with bench.table(title, about, COLUMNS, part=kind) as table:
        base, again = (
            watched(n, optimizer, sizes) for n in ("without", "without, again")
        )
        params = base.carry[0]
        recorder = Recorder(params, blocks=True, fetch_every=FETCH_EVERY)
        watches = {
            "metrics fetched": Watch(lambda carry: jax.device_get(carry[2][1])),
            "recorder": Watch(lambda carry: recorder.record(carry[1])),
        }
        arms = [
            base,
            again,
            watched("metrics in the step", optimizer, sizes, metrics),
            watches["metrics fetched"].after(
                watched("metrics fetched", optimizer, sizes, metrics)
            ),
            watches["recorder"].after(watched("recorder", optimizer, sizes)),
            watched("tensor_report", optimizer, sizes, report),
        ]
        rounds = bench.rounds(11)
        time_arms(arms, rounds, calls=calls)
        step_seconds = statistics.median(base.seconds)
        shares = {}
        for arm in arms:
            watch = watches.get(arm.name)
            # The first round compiles what `record` dispatches.
            seconds = statistics.mean(watch.seconds[calls:]) if watch else None
            if seconds is not None:
                shares[arm.name] = seconds / step_seconds
            is_recorder = arm.name == "recorder"
            told = recorder.history.keys if is_recorder else arm.carry[2][1]
            table.row(
                arm.name,
                arm.milliseconds.median,
                ratio(arm, base),
                len(told),
                None if seconds is None else 1e3 * seconds,
                shares.get(arm.name),
                statistics.mean(watch.was_running) if watch else None,
            )
        by_name = {arm.name: arm for arm in arms}
        noise = ratio(again, base)
        for name in ("metrics in the step", "recorder"):
            table.claim(
                f"a step with {name}, relative to the step without",
                ratio(by_name[name], base).median,
                at_most=BAR,
                why=WHY.format(noise),
            )
        table.claim(
            "CPU time of `record`, relative to the time of a step",
            shares["recorder"],
            at_most=HOST_BAR,
        )
