"""The training loop: draws batches, clips gradients, stacks metrics on the device."""

import dataclasses
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import clipjax

from ..jax_internals import device_memory
from .arms import Gradient, of_batch
from .tasks.base import Task

METRICS = (
    "grad_norm_raw",
    "grad_norm_clipped",
    "clip_ratio",
    "threshold",
    "clipped_fraction",
)


class Start(NamedTuple):
    """The start of a run; the same for every arm with the same seed.

    Attributes:
        static: structure of the model and its values that are not parameters.
        params: the initial parameters.
        batches: key that the batch of each step is derived from.
    """

    static: tuple[Any, Any]
    params: Any
    batches: jax.Array


def begin(task: Task, seed: int) -> Start:
    """Return the initial parameters and the batch order of one seed."""
    weights, batches = jax.random.split(jax.random.key(seed))
    graph, params, rest = nnx.split(task.build(weights), nnx.Param, ...)
    return Start((graph, rest), params, batches)


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    static: tuple[Any, Any],
    *,
    learning_rate: float | jax.Array,
    gradient: Gradient = of_batch,
) -> Callable[..., tuple[tuple[Any, Any], dict[str, jax.Array]]]:
    """Return one optimization step, `carry, data, key, index -> carry, log`.

    The carry contains the parameters and the optimizer's state; the index is that of
    the step. The log contains the loss *before* the step and the clip's metrics.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def loss_of(params, batch):
        graph, rest = static
        return task.loss(nnx.merge(graph, params, rest), batch)

    def step(carry, data, key, index):
        params, state = carry
        batch = task.sample(key, index, data)
        loss, grads, seen = gradient(loss_of)(params, batch)
        updates, state = optimizer.update(
            grads, state, params, value=loss, learning_rate=learning_rate
        )
        measured = clipjax.metrics(state, blocks=False)
        log = {"loss": loss} | {name: measured[f"clip/{name}"] for name in METRICS}
        log |= seen
        # A gradient that is not finite has no ratio to average.
        is_finite = log["grad_norm_raw"] < jnp.inf
        log["clip_ratio"] = jnp.where(is_finite, log["clip_ratio"], jnp.nan)
        log = {name: value.astype(jnp.float32) for name, value in log.items()}
        return (optax.apply_updates(params, updates), state), log

    return step


@dataclasses.dataclass(frozen=True)
class History:
    """The results of one run.

    Attributes:
        log: one array of length `steps` for the loss and for each of `METRICS`.
        held_out: scores of the last parameters on the held-out data.
        score_steps: the steps after which the model was scored.
        scores: the scores at these steps, one array per score.
        outcome: the arrays for the task's picture.
        seconds_per_step: median over the logging intervals, without compilation.
        params: the last parameters.
    """

    log: dict[str, np.ndarray]
    held_out: dict[str, float]
    score_steps: np.ndarray
    scores: dict[str, np.ndarray]
    outcome: dict[str, np.ndarray]
    seconds_per_step: float
    params: Any


class Loop:
    """A training loop: compiled once, run for any seed and any hyper-parameters.

    Args:
        task: the task.
        build: returns the clip and all that follows it, given the hyper-parameters as
            keyword arguments; one of them is `learning_rate`, which is also handed to
            the clips that ask for it. They are traced, so that other values need no
            other program.
        names: names of the hyper-parameters.
        gradient: computes the gradient.
        steps: number of optimization steps.
        interval: steps per call into the compiled loop; the host sees the log only
            in between.
        is_scored: whether to score the model after every interval, not only at the end.

    Raises:
        ValueError: if the loop needs more memory than there is.
    """

    def __init__(
        self,
        task: Task,
        build: Callable[..., optax.GradientTransformation],
        *,
        names: Sequence[str] = ("learning_rate",),
        gradient: Gradient = of_batch,
        steps: int,
        interval: int,
        is_scored: bool = True,
    ):
        """Compile the loop."""
        self.task, self.build, self.steps = task, build, steps
        self.interval, self.is_scored = min(interval, steps), is_scored
        shapes = jax.eval_shape(lambda: begin(task, seed=0).params)
        require_memory(
            sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
        )
        static, params, batches = begin(task, seed=0)
        graph, rest = static
        skipped = dict.fromkeys(("loss", *METRICS), jnp.zeros((), jnp.float32))

        def run_interval(carry, data, key, first, values):
            step = make_step(
                task,
                build(**values),
                static,
                learning_rate=values["learning_rate"],
                gradient=gradient,
            )

            def advance(carry, index):
                # The last interval may reach past the last step: leave it out, and
                # one compiled program serves every interval.
                return jax.lax.cond(
                    index < steps,
                    lambda carry: step(carry, data, key, index),
                    lambda carry: (carry, skipped),
                    carry,
                )

            return jax.lax.scan(
                advance, carry, first + jnp.arange(self.interval, dtype=jnp.int32)
            )

        self.begin_state = jax.jit(lambda params, values: build(**values).init(params))
        values = dict.fromkeys(names, jnp.float32(1))
        # Compute shapes only, so that a state that is too large is never allocated.
        carry = (params, jax.eval_shape(self.begin_state, params, values))
        self.run_interval = (
            jax.jit(run_interval)
            .lower(carry, task.train, batches, jnp.int32(0), values)
            .compile()
        )
        if (planned := self.run_interval.memory_analysis()) is not None:
            require_memory(
                planned.temp_size_in_bytes
                + planned.argument_size_in_bytes
                + planned.output_size_in_bytes
            )
        # JAX sorts the keys of a plain dictionary, and the first score has a figure.
        self.evaluate = jax.jit(
            lambda params, data: OrderedDict(
                task.evaluate(nnx.merge(graph, params, rest), data)
            )
        )
        outcome = task.picture.outcome if task.picture else lambda model, data: {}
        self.outcome = jax.jit(
            lambda params, data: outcome(nnx.merge(graph, params, rest), data)
        )

    def run(
        self,
        seed: int,
        report: Callable[[int, dict[str, float]], None] | None = None,
        **values: float,
    ) -> History:
        """Train from one seed.

        Args:
            seed: chooses initial parameters and batches.
            report: called after each interval with the steps done and the last
                finite-or-not values of the log.
            **values: the hyper-parameters, by the names that the loop was made with.
        """
        numbers = {name: jnp.float32(value) for name, value in values.items()}
        _, params, batches = begin(self.task, seed)
        carry = (params, self.begin_state(params, numbers))
        logs, seconds, scores, score_steps = [], [], [], []
        for first in range(0, self.steps, self.interval):
            done = min(first + self.interval, self.steps)
            began = time.perf_counter()
            carry, log = jax.block_until_ready(
                self.run_interval(
                    carry, self.task.train, batches, jnp.int32(first), numbers
                )
            )
            seconds.append((time.perf_counter() - began) / (done - first))
            logs.append(
                {name: np.asarray(row)[: done - first] for name, row in log.items()}
            )
            if self.is_scored or done == self.steps:
                scores.append(self.evaluate(carry[0], self.task.held_out))
                score_steps.append(done)
            if report:
                report(done, {name: float(row[-1]) for name, row in logs[-1].items()})
        along = {
            name: np.array([float(row[name]) for row in scores]) for name in scores[0]
        }
        outcome = self.outcome(carry[0], self.task.held_out)
        return History(
            log={name: np.concatenate([log[name] for log in logs]) for name in logs[0]},
            held_out={name: float(row[-1]) for name, row in along.items()},
            score_steps=np.array(score_steps),
            scores=along,
            outcome={name: np.asarray(array) for name, array in outcome.items()},
            seconds_per_step=float(np.median(seconds)),
            params=carry[0],
        )


def require_memory(size: float) -> None:
    """Raise a ValueError for more bytes than the first device, or the host, has."""
    available = device_memory()
    if available is None and hasattr(os, "sysconf"):  # a CPU, and not on Windows
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = math.inf if available is None else available
    if size > available:
        raise ValueError(
            f"it needs {size / 2**30:.1f} GiB of memory, and there are "
            f"{available / 2**30:.1f} GiB"
        )
