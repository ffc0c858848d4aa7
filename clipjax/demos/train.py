"""The training loop: batches drawn, gradients clipped, metrics stacked on device."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import clipjax

from .tasks.base import Task

METRICS = (
    "grad_norm_raw",
    "grad_norm_clipped",
    "clip_ratio",
    "threshold",
    "clipped_fraction",
)


class Start(NamedTuple):
    """Where a run begins; the same for every arm with the same seed.

    Attributes:
        static: structure of the model and what it holds besides parameters.
        params: the initial parameters.
        batches: key that the batch of each step is derived from.
    """

    static: tuple[Any, Any]
    params: Any
    batches: jax.Array


def begin(task: Task, seed: int) -> Start:
    """Initial parameters and batch order of one seed."""
    weights, batches = jax.random.split(jax.random.key(seed))
    graph, params, rest = nnx.split(task.build(weights), nnx.Param, ...)
    return Start((graph, rest), params, batches)


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    static: tuple[Any, Any],
    *,
    learning_rate: float,
) -> Callable[..., tuple[tuple[Any, Any], dict[str, jax.Array]]]:
    """One optimization step, `(params, state), data, key -> (params, state), log`.

    The log holds the loss *before* the step and what the clip measured in it.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def loss_of(params, batch):
        graph, rest = static
        return task.loss(nnx.merge(graph, params, rest), batch)

    def step(carry, data, key):
        params, state = carry
        batch = task.sample(key, data)
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        updates, state = optimizer.update(
            grads, state, params, value=loss, learning_rate=learning_rate
        )
        measured = clipjax.metrics(state, blocks=False)
        log = {"loss": loss} | {name: measured[f"clip/{name}"] for name in METRICS}
        # Without a finite gradient there was no ratio to average.
        is_finite = log["grad_norm_raw"] < jnp.inf
        log["clip_ratio"] = jnp.where(is_finite, log["clip_ratio"], jnp.nan)
        log = {name: value.astype(jnp.float32) for name, value in log.items()}
        return (optax.apply_updates(params, updates), state), log

    return step


@dataclasses.dataclass(frozen=True)
class History:
    """One run.

    Attributes:
        log: one array of length `steps` for the loss and for each of `METRICS`.
        held_out: scores of the last parameters on the held-out data.
        seconds_per_step: median over the logging intervals, without compilation.
        params: the last parameters.
    """

    log: dict[str, np.ndarray]
    held_out: dict[str, float]
    seconds_per_step: float
    params: Any


class Loop:
    """One arm's training loop: compiled once, run for any number of seeds.

    Args:
        task: what to train on.
        optimizer: the clip and all that follows it.
        learning_rate: handed to the clips that ask for it.
        steps: number of optimization steps.
        interval: steps per call into the compiled loop; the host sees the log only
            in between.
    """

    def __init__(
        self,
        task: Task,
        optimizer: optax.GradientTransformation,
        *,
        learning_rate: float,
        steps: int,
        interval: int,
    ):
        """Compile the loop."""
        self.task, self.optimizer, self.steps = task, optimizer, steps
        self.interval = min(interval, steps)
        static, params, batches = begin(task, seed=0)
        step = make_step(task, optimizer, static, learning_rate=learning_rate)
        graph, rest = static
        skipped = dict.fromkeys(("loss", *METRICS), jnp.zeros((), jnp.float32))

        def run_interval(carry, data, key, first):
            def advance(carry, index):
                # The last interval may reach past the last step: leave it out, and
                # one compiled program serves every interval.
                return jax.lax.cond(
                    index < steps,
                    lambda carry: step(carry, data, jax.random.fold_in(key, index)),
                    lambda carry: (carry, skipped),
                    carry,
                )

            return jax.lax.scan(
                advance, carry, first + jnp.arange(self.interval, dtype=jnp.int32)
            )

        carry = (params, optimizer.init(params))
        self.run_interval = (
            jax.jit(run_interval)
            .lower(carry, task.train, batches, jnp.int32(0))
            .compile()
        )
        self.evaluate = jax.jit(
            lambda params, data: task.evaluate(nnx.merge(graph, params, rest), data)
        )

    def run(
        self, seed: int, report: Callable[[int, dict[str, float]], None] | None = None
    ) -> History:
        """Train from one seed.

        Args:
            seed: chooses initial parameters and batches.
            report: called after each interval with the steps done and the last
                finite-or-not values of the log.
        """
        _, params, batches = begin(self.task, seed)
        carry = (params, self.optimizer.init(params))
        logs, seconds = [], []
        for first in range(0, self.steps, self.interval):
            done = min(first + self.interval, self.steps)
            began = time.perf_counter()
            carry, log = jax.block_until_ready(
                self.run_interval(carry, self.task.train, batches, jnp.int32(first))
            )
            seconds.append((time.perf_counter() - began) / (done - first))
            logs.append(
                {name: np.asarray(row)[: done - first] for name, row in log.items()}
            )
            if report:
                report(done, {name: float(row[-1]) for name, row in logs[-1].items()})
        scores = self.evaluate(carry[0], self.task.held_out)
        return History(
            log={name: np.concatenate([log[name] for log in logs]) for name in logs[0]},
            held_out={name: float(score) for name, score in scores.items()},
            seconds_per_step=float(np.median(seconds)),
            params=carry[0],
        )
