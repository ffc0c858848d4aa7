"""Thresholds learnt on the device, beside the same rules on the host."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import clipjax

from ..arms import train_arm
from ..conftest import Bench
from ..timing import Arm, ratio, time_arms
from ..transformer import Sizes, loss, parameters, tokens

ABOUT = """
A train step of a small Transformer ({size:.2f}M parameters) with a learnt threshold and
Adam, in one compiled program by clipjax, and as the papers' rules are usually written:
one program computes the gradient and its norm, the host waits for the norm and computes
the threshold, and a second program scales the gradient and updates the parameters. The
host code is ours, after the rules that the papers state: ZClip's mean and variance in
Python numbers, and AutoClip's percentile by NumPy over all norms so far, in an array
that is allocated beforehand. The history is filled with 100, 1,000 or 10,000 norms when
the timing starts; clipjax's window has that size.

× the same clip, constant, is the time divided by that of `clip_by_global_norm`. "Call
returns" is when the main thread may prepare the next batch, as a share of the step's
time. Fetches are the numbers that a step transfers to the host and waits for.

On a CPU a fetch is a read of memory, and the wait is what is left of the gradient's
computation. The table does not show what a fetch costs on a GPU or TPU: the transfer,
and the time in which the device has no work until the second program arrives. Nor does
it show several processes, which the host code would have to bring to one threshold.
"""
COLUMNS = {"threshold": "", "where": "", "history": ",d", "ms": ".2f"}
COLUMNS |= {"× constant": ".2f", "host / device": ".2f", "call returns": ".0%"}
COLUMNS |= {"fetches": ".0f"}
WHY = "Each step sorts the window, and NumPy's percentile does not sort all of it"
HISTORIES = (100, 1000, 10000)
CALLS = 5
Rule = Callable[[float], float]


def percentile_rule(percentile: float, history: np.ndarray) -> Rule:
    """Return AutoClip's threshold: a percentile of all norms, this one included."""
    norms = np.concatenate([history, np.zeros(10000)])
    count = len(history)

    def threshold(norm: float) -> float:
        nonlocal count
        norms[count] = norm
        count += 1
        return float(np.percentile(norms[:count], percentile))

    return threshold


def zscore_rule(history: np.ndarray, decay: float = 0.97, limit: float = 2.5) -> Rule:
    """Return the threshold of ZClip, after its warm-up: infinite but at an outlier."""
    mean, variance = float(np.mean(history)), float(np.var(history))

    def threshold(norm: float) -> float:
        nonlocal mean, variance
        deviation = math.sqrt(variance)
        score = (norm - mean) / (deviation + 1e-6)
        found = mean + limit**2 * deviation / score if score > limit else math.inf
        value = min(norm, found)
        mean = decay * mean + (1 - decay) * value
        variance = decay * variance + (1 - decay) * (value - mean) ** 2
        return found

    return threshold


@dataclasses.dataclass
class Host:
    """A train step whose threshold is computed on the host.

    Attributes:
        rule: from the norm to the threshold.
        measure: the program that computes the gradient and its norm.
        update: the program that scales the gradient, and updates.
        fetches: how many numbers were waited for.
    """

    rule: Rule
    measure: Callable[..., Any]
    update: Callable[..., Any]
    fetches: int = 0

    def __call__(self, carry: Any) -> Any:
        """Run a step."""
        params, state, _ = carry
        value, grads, norm = self.measure(params)
        threshold = self.rule(self.fetch(norm))
        params, state = self.update(params, state, grads, norm, threshold)
        return params, state, value

    def fetch(self, number: jax.Array) -> float:
        """Wait for a number."""
        self.fetches += 1
        return float(number)


def host_programs(optimizer: Any, objective: Callable[..., Any]) -> Callable[..., Host]:
    """Return a constructor of steps with a rule, which share their two programs."""

    @jax.jit
    def measure(params: Any) -> Any:
        value, grads = jax.value_and_grad(objective)(params)
        return value, grads, optax.tree.norm(grads)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, state: Any, grads: Any, norm: Any, threshold: Any) -> Any:
        factor = jnp.minimum(1.0, threshold / norm)
        grads = jax.tree.map(lambda leaf: leaf * factor, grads)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return functools.partial(Host, measure=measure, update=update)


def share_until_return(arm: Arm, calls: int) -> float:
    """Return the time until a call returns, as a share of the time of the step."""
    shares = []
    for _ in range(calls):
        start = time.perf_counter()
        arm.carry = arm.step(arm.carry)
        returned = time.perf_counter()
        jax.block_until_ready(arm.carry)
        shares.append((returned - start) / (time.perf_counter() - start))
    return statistics.median(shares)


def test_adaptive_thresholds_do_not_wait_for_the_host(bench: Bench) -> None:
    """Compare quantiles and z-scores on the device and on the host."""
    sizes = Sizes(layers=2, width=64, vocabulary=200, batch=4, context=32)
    batch, params = tokens(sizes), parameters(sizes, jnp.float32)
    entries = sum(leaf.size for leaf in jax.tree.leaves(params))
    adam = optax.adam(1e-3)

    def objective(params: Any) -> jax.Array:
        return loss(params, batch, sizes.heads)

    def on_device(name: str, clip: Any) -> Arm:
        return train_arm(name, optax.chain(clip, adam), objective, params, ())

    new_host = host_programs(adam, objective)

    def on_host(name: str, rule: Rule) -> Arm:
        own = jax.tree.map(jnp.copy, params)
        carry = own, jax.jit(adam.init)(own), jnp.float32(0)
        return Arm(name, new_host(rule), carry, donates=True)

    def norms(count: int) -> np.ndarray:
        return np.random.default_rng(0).lognormal(0.0, 0.2, count)

    histories = HISTORIES[:1] if bench.small else HISTORIES
    compared: dict[tuple[str, int | None], tuple[Arm, Arm]] = {
        ("zclip", None): (
            on_device("zclip", clipjax.zclip(max_grad_norm=math.inf)),
            on_host("zclip", zscore_rule(norms(25))),
        )
    }
    for count in histories:
        compared["autoclip", count] = (
            on_device("autoclip", clipjax.autoclip(10.0, count)),
            on_host("autoclip", percentile_rule(10.0, norms(count))),
        )
    title = "Thresholds learnt on the device, and on the host"
    with bench.table(title, ABOUT.format(size=entries / 1e6), COLUMNS) as table:
        constant = on_device("constant", clipjax.clip_by_global_norm(1.0))
        again = on_device("constant, again", clipjax.clip_by_global_norm(1.0))
        arms = [arm for pair in compared.values() for arm in pair]
        rounds = bench.rounds(31)
        time_arms([constant, again, *arms], rounds, calls=CALLS)
        calls = CALLS * (rounds + 1)  # the first round is not counted
        for arm in (constant, again):
            returned = share_until_return(arm, 20)
            cells = arm.milliseconds.median, ratio(arm, constant), None, returned, 0
            table.row(arm.name, "device", None, *cells)
        for (name, count), (device, host) in compared.items():
            for where, arm in {"device": device, "host": host}.items():
                fetches = getattr(arm.step, "fetches", 0) / calls
                table.row(
                    name,
                    where,
                    count,
                    arm.milliseconds.median,
                    ratio(arm, constant),
                    ratio(host, device).median if arm is host else None,
                    share_until_return(arm, 20),
                    fetches,
                )
            of = f", {count:,} norms" if count else ""
            table.claim(
                f"{name} on the device, relative to the host{of}",
                ratio(device, host).median,
                at_most=1.0,
                why=WHY if count else "",
            )
