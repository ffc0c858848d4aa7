"""Runs of one cell, all rates and seeds in one program, and the pilot of a task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import clipjax

from .arms import Arm, kinds, unclipped
from .conditions import (
    EVERY,
    NAMES,
    Condition,
    conditions,
    planted,
    spike_steps,
    structures,
)
from .task import Params, Task

QUANTILE = 0.9  # of the pilot's steps: a threshold there clips one step of ten
SURVIVED = 0.1  # of the progress so far: the loss that a run may lose to a spike
REACHED = 0.7  # of training: the loss of the unclipped arm there is to be reached
CLIPPED = "clip/clipped_steps_fraction"
WITHIN = 15  # steps after a spike in which the loss has to come back


class Grid(NamedTuple):
    """The runs of each cell.

    Attributes:
        rates: number of learning rates, half a decade apart.
        tuning: seeds that the rate is tuned with.
        reported: further seeds that the results are reported for.
    """

    rates: int = 7
    tuning: int = 3
    reported: int = 7

    @property
    def seeds(self) -> int:
        """The number of all seeds."""
        return self.tuning + self.reported

    def exponents(self, task: Task, arm: Arm) -> np.ndarray:
        """Return the learning rates of an arm, as powers of ten."""
        around = (np.arange(self.rates) - (self.rates - 1) / 2) / 2
        return around + task.centers[arm.family] + arm.shift


class Runs(NamedTuple):
    """What one condition gives; arrays over rates and seeds.

    Attributes:
        losses: held-out losses, the initial one first, then one every `EVERY` steps.
        clipped: fraction of the steps that were clipped; zero without a clip.
        modes: a second number of the last model; zero if the task has none.
    """

    losses: Any
    clipped: Any
    modes: Any


class Inputs(NamedTuple):
    """What the runs of a task read; all but `data` have a leading axis of seeds."""

    data: Any
    params: Params
    initial: jax.Array  # the held-out loss of `params`
    batches: Any  # a further axis of steps
    added: Params  # see `conditions.structures`
    spike: Any  # a kind per step, without an axis of seeds


def inputs(task: Task, seeds: int, names: Sequence[str] = NAMES) -> dict[str, Inputs]:
    """Draw the inputs of each condition, the same for all arms."""
    data, steps = task.data(), jnp.arange(task.steps)

    def one(condition: Condition, seed: jax.Array) -> Any:
        key = jax.random.key(seed)
        params = task.initial(key)

        def batch(index: jax.Array) -> Any:
            drawn = jax.random.fold_in(key, index)
            return task.batch(data, drawn, condition.bad[index], condition.noise)

        initial = task.evaluate(params, data)
        return params, initial, jax.vmap(batch)(steps), structures(params, key)

    every = jax.jit(jax.vmap(one, (None, 0)))
    found = conditions(task.steps)

    def drawn(condition: Condition) -> tuple[Any, Any, Any, Any]:
        return every(condition, jnp.arange(seeds))

    return {
        name: Inputs(data, *drawn(found[name]), found[name].spike) for name in names
    }


AXES: Any = Inputs(*cast(Any, (None, 0, 0, 0, 0, None)))


def of_seeds(given: Inputs, chosen: slice | int) -> Inputs:
    """Return the inputs of some seeds."""
    each = given._replace(data=None, spike=None)
    each = jax.tree.map(lambda array: array[chosen], each)
    return each._replace(data=given.data, spike=given.spike)


def stepper(
    task: Task, arm: Arm, rate: jax.Array, given: Inputs
) -> tuple[Any, Callable[[Any, Any], tuple[Any, Params]]]:
    """Return what a run starts from, and its step: a function for `jax.lax.scan`."""
    optimizer = arm.optimizer(rate)

    def step(carry: Any, each: Any) -> tuple[Any, Params]:
        (params, state), (batch, kind) = carry, each
        grads = planted(task.gradient(params, batch), kind, given.added)
        updates, new = optimizer.update(grads, state, params, learning_rate=rate)
        new = jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), new, state)
        return (optax.apply_updates(params, updates), new), grads

    return (given.params, optimizer.init(given.params)), step


def run(task: Task, arm: Arm, given: Inputs, rate: jax.Array) -> Runs:
    """Train once."""
    start, step = stepper(task, arm, rate, given)

    def block(carry: Any, each: Any) -> tuple[Any, jax.Array]:
        carry, _ = jax.lax.scan(lambda *both: (step(*both)[0], None), carry, each)
        return carry, task.evaluate(carry[0], given.data)

    each = given.batches, given.spike
    blocks = jax.tree.map(lambda x: x.reshape(-1, EVERY, *x.shape[1:]), each)
    (params, state), losses = jax.lax.scan(block, start, blocks)
    zero = jnp.zeros(())
    clipped = clipjax.metrics(state, blocks=False).get(CLIPPED, zero)
    modes = zero if task.modes is None else task.modes(params, given.data)
    return Runs(jnp.append(given.initial, losses), clipped, modes)


def simulate(
    task: Task, arm: Arm, exponents: np.ndarray, given: dict[str, Inputs]
) -> dict[str, Runs]:
    """Train with all rates and seeds under each condition; compile once."""
    one = functools.partial(run, task, arm)
    every = jax.jit(jax.vmap(jax.vmap(one, (AXES, None)), (None, 0)))
    rates = jnp.asarray(10.0**exponents, jnp.float32)
    return {
        name: Runs(*map(np.asarray, every(one_condition, rates)))
        for name, one_condition in given.items()
    }


def capped(losses: np.ndarray) -> np.ndarray:
    """Return losses where one that is not finite, or above the first, is the first."""
    first = losses[..., :1]
    return np.where(losses < first, losses, first)  # NaN < first is False


def survived(losses: np.ndarray, steps: int) -> np.ndarray:
    """Return how many of the spikes each run survived.

    A run survives a spike if, within `WITHIN` steps, its loss is back at the lowest
    loss before the spike plus `SURVIVED` times the progress until then. A run that has
    made no progress survives none.
    """
    count = np.zeros(losses.shape[:-1], int)
    for step in spike_steps(steps):
        place = step // EVERY + 1  # of the evaluation just before the spike, plus one
        best = np.fmin.reduce(losses[..., :place], axis=-1)
        after = np.fmin.reduce(losses[..., place : place + WITHIN // EVERY], axis=-1)
        progress = losses[..., 0] - best
        count += (progress > 0) & (after <= best + SURVIVED * progress)
    return count


def measurements(task: Task, grads: Params) -> dict[str, Any]:
    """Return what the recipes measure of one gradient."""
    flat = {name: leaf.astype(jnp.float32) for name, leaf in grads.items()}
    norms = {name: jnp.linalg.norm(leaf.reshape(-1)) for name, leaf in flat.items()}
    entries = {name: jnp.max(jnp.abs(leaf)) for name, leaf in flat.items()}
    spectral = [
        jnp.linalg.norm(leaf, ord=2 if leaf.ndim == 2 else None)
        for leaf in flat.values()
    ]
    means = [norm / np.sqrt(flat[name].size) for name, norm in norms.items()]
    labels = kinds(task)
    groups = {
        label: optax.tree.norm([norms[name] for name in norms if labels[name] == label])
        for label in set(labels.values())
    }
    sizes = jnp.stack(list(norms.values()))
    return {
        "global norm": optax.tree.norm(flat),
        "leaf norm": jnp.max(sizes),
        "typical leaf norm": jnp.exp(jnp.mean(jnp.log(sizes + 1e-20))),
        "norm of each group": groups,
        "entry": jnp.max(jnp.stack(list(entries.values()))),
        "entry of each leaf": entries,
        "leaf root mean square": jnp.max(jnp.stack(means)),
        "spectral norm": jnp.max(jnp.stack(spectral)),
    }


def pilot(task: Task, grid: Grid, given: Inputs) -> dict[str, Any]:
    """Return what all cells of a task need: a loss to reach, and thresholds.

    The unclipped arm runs without a fault with the seeds for tuning, at all rates. At
    the best one, the loss to reach is the lowest after `REACHED` of training, averaged
    over seeds; each threshold is the `QUANTILE` of what a recipe measures, over steps
    and seeds. That is the largest over the blocks of a step, so that a recipe with this
    threshold would have clipped something in one step of ten.
    """
    arm = unclipped(task)[0]
    few = of_seeds(given, slice(grid.tuning))
    exponents = grid.exponents(task, arm)
    losses = capped(simulate(task, arm, exponents, {"clean": few})["clean"].losses)
    best = int(np.argmin(losses[..., -1].mean(1)))
    lowest = np.minimum.accumulate(losses[best], axis=1)
    target = lowest[:, round(REACHED * task.steps / EVERY)].mean()

    def one(given: Inputs) -> Any:
        rate = jnp.asarray(10.0 ** exponents[best], jnp.float32)
        start, step = stepper(task, arm, rate, given)

        def measured(carry: Any, each: Any) -> tuple[Any, Any]:
            carry, grads = step(carry, each)
            return carry, measurements(task, grads)

        return jax.lax.scan(measured, start, (given.batches, given.spike))[1]

    found = jax.jit(jax.vmap(one, (AXES,)))(few)
    thresholds = jax.tree.map(
        lambda values: float(f"{np.quantile(np.asarray(values), QUANTILE):.4g}"), found
    )
    return {
        "exponent": float(exponents[best]),
        "target": float(f"{target:.4g}"),
        "thresholds": thresholds,
    }


def step_flops(task: Task, arm: Arm, given: Inputs) -> float:
    """Return XLA's count of the operations of one train step, before it optimizes."""

    def one(given: Inputs, rate: jax.Array) -> Any:
        start, step = stepper(task, arm, rate, given)
        first = jax.tree.map(lambda x: x[0], (given.batches, given.spike))
        return step(start, first)[0]

    alone = of_seeds(given, 0)
    lowered = jax.jit(one).lower(alone, jnp.ones(()))
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))
