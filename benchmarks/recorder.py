"""A train step with and without a recorder of its metrics.

    python -m benchmarks.recorder [--rounds 21] [--calls 10] [--model gpt2]

The step is that of `benchmarks.train_step`: value_and_grad of a small Transformer,
chain(clip, adamw) and apply_updates, with parameters and state donated. With `--model
gpt2` it is clip + Adam alone, on the 148 leaves and 124 million parameters of GPT-2
small: a whole step would take longer, and the recorder would not. Each measurement is
several steps without a wait in between, as in training. Without and with the recorder
run in turn in one process; a ratio is the median of the ratios within a round, and that
of the step once more, whose true ratio is 1, shows how busy the machine was.

The last lines tell what `record` took of the main thread's CPU time, fetches included,
which a busy machine changes little; and how often it returned while its step was still
running, which it could not if it waited for the device. The exit code is 1 if the gate
is missed.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import clipjax
from clipjax.monitoring import Recorder

from .gpt2 import gradients, shapes
from .gpt2 import parameters as gpt2_parameters
from .options import Parser, positive, table, verdict
from .timing import Arm, compile_arm, median_milliseconds, time_arms
from .transformer import Sizes, loss, parameters, tokens

GATE = 1.01
WITH = "with a recorder"
FETCH_EVERY = 50


def transformer_arm(optimizer: optax.GradientTransformation) -> Arm:
    """Compile a train step of the small Transformer; its carry is donated."""
    sizes = Sizes()
    batch = tokens(sizes)

    def step(carry: Any) -> Any:
        params, state, _ = carry
        value, grads = jax.value_and_grad(loss)(params, batch, sizes.heads)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = parameters(sizes, jnp.float32)
    state = jax.jit(optimizer.init)(params)
    return compile_arm("without", step, (params, state, jnp.float32(0)))


def gpt2_arm(optimizer: optax.GradientTransformation) -> Arm:
    """Compile clip + Adam on GPT-2's shapes; its carry is donated."""

    def step(carry: Any) -> Any:
        params, state, shift = carry
        updates, state = optimizer.update(gradients(params, shift), state, params)
        return optax.apply_updates(params, updates), state, shift

    params = gpt2_parameters(shapes(), jnp.float32)
    state = jax.jit(optimizer.init)(params)
    return compile_arm("without", step, (params, state, jnp.float32(0.5)))


@dataclasses.dataclass
class Watch:
    """What is seen of a recorder.

    Attributes:
        recorder: the recorder.
        seconds: CPU time of the main thread in each call of `record`.
        was_running: whether the step was running after the call.
    """

    recorder: Recorder
    seconds: list[float] = dataclasses.field(default_factory=list)
    was_running: list[bool] = dataclasses.field(default_factory=list)


def recorded(arm: Arm, watch: Watch) -> Arm:
    """Return the arm with a recorder."""

    def step(carry: Any) -> Any:
        carry = arm.step(carry)
        start = time.thread_time()
        watch.recorder.record(carry[1], loss=carry[2])
        watch.seconds.append(time.thread_time() - start)
        watch.was_running.append(not carry[2].is_ready())
        return carry

    return dataclasses.replace(again(arm), name=WITH, step=step)


def again(arm: Arm) -> Arm:
    """Return the same program with a carry of its own."""
    carry = jax.tree.map(jnp.copy, arm.carry)
    return dataclasses.replace(arm, name="without, once more", carry=carry, seconds=[])


MODELS: dict[str, Callable[[optax.GradientTransformation], Arm]] = {
    "transformer": transformer_arm,
    "gpt2": gpt2_arm,
}


def main(arguments: list[str] | None = None) -> int:
    """Print a table, and return 1 if the gate is missed."""
    parser = Parser("recorder", __doc__)
    parser.add_argument("--rounds", type=positive, default=21)
    parser.add_argument("--calls", type=positive, default=10)
    parser.add_argument("--model", choices=list(MODELS), default="transformer")
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error("argument --rounds: quartiles take at least 2")

    clip = clipjax.clip_by_global_norm(1.0)
    base = MODELS[options.model](optax.chain(clip, optax.adamw(1e-3)))
    watch = Watch(Recorder(fetch_every=FETCH_EVERY))
    arms = [base, again(base), recorded(base, watch)]
    time_arms(arms, options.rounds, calls=options.calls)

    rows, ratio = [], 1.0
    for arm in arms:
        pairs = zip(arm.seconds, base.seconds, strict=True)
        ratios = [one / other for one, other in pairs]
        ratio = statistics.median(ratios)
        low, _, high = statistics.quantiles(ratios, n=4)
        rows.append(
            [
                arm.name,
                f"{median_milliseconds(arm):.1f}",
                f"{ratio:.4f}",
                f"{low:.3f} to {high:.3f}",
                verdict(ratio, GATE) if arm.name == WITH else "",
            ]
        )
    print(table([options.model, "ms", "× without", "quartiles", "gate"], rows))
    # Without the first round, which compiles.
    seconds = statistics.mean(watch.seconds[options.calls :])
    print(
        f"record took {1e3 * seconds:.2f} ms of CPU time a step, "
        f"{1e2 * seconds / statistics.median(base.seconds):.2f} % of a step's time\n"
        "record returned while the step was still running: "
        f"{sum(watch.was_running)} of {len(watch.was_running)} steps; "
        f"{len(watch.recorder.history)} rows recorded"
    )
    return 0 if ratio <= GATE else 1


if __name__ == "__main__":
    sys.exit(main())
