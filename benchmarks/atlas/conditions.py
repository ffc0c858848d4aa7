"""The four conditions, as arrays: one compiled program runs all of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from .task import Params

NAMES = ("clean", "spikes", "bad batches", "label noise")
EVERY = 5  # steps between two evaluations
SPIKES = (0.4, 0.55, 0.7, 0.85)  # of training, each with its own structure
SIZE = 1000.0  # of a spike, in norms of the gradient
ENTRIES = 3  # that the last structure makes huge
BURST = 8  # consecutive bad batches, in the middle of training
NOISE = 0.3  # fraction of random targets


class Condition(NamedTuple):
    """What happens to a run; the first two have one entry per step."""

    spike: jax.Array  # 0 for none, 1 to 4 for the structure
    bad: jax.Array
    noise: jax.Array


def spike_steps(steps: int) -> list[int]:
    """Return the steps with a spike; an evaluation comes just before each."""
    return [round(part * steps / EVERY) * EVERY for part in SPIKES]


def conditions(steps: int) -> dict[str, Condition]:
    """Return the conditions by name."""
    spike, bad = jnp.zeros(steps, jnp.int32), jnp.zeros(steps, bool)
    clean = Condition(spike, bad, jnp.asarray(0.0, jnp.float32))
    spikes = clean.spike.at[jnp.array(spike_steps(steps))].set(jnp.arange(1, 5))
    start = steps // 2
    bad = clean.bad.at[start : start + BURST].set(True)
    return {
        "clean": clean,
        "spikes": clean._replace(spike=spikes),
        "bad batches": clean._replace(bad=bad),
        "label noise": clean._replace(noise=jnp.asarray(NOISE, jnp.float32)),
    }


def structures(params: Params, key: jax.Array) -> Params:
    """Return, for each leaf, what spikes of the second and fourth structure add.

    Both in norms of the gradient, stacked: a random direction of the length `SIZE`, and
    `ENTRIES` random entries of the largest leaf of `SIZE` each.
    """
    largest = max(params, key=lambda name: params[name].size)
    total = sum(leaf.size for leaf in params.values())
    found = {}
    for one, (name, leaf) in zip(
        jax.random.split(key, len(params)), params.items(), strict=True
    ):
        direction = jax.random.normal(one, leaf.shape) * SIZE / math.sqrt(total)
        entries = jnp.zeros(leaf.size)
        if name == largest:
            entries = entries.at[jax.random.randint(key, (ENTRIES,), 0, leaf.size)].set(
                SIZE
            )
        found[name] = jnp.stack([direction, entries.reshape(leaf.shape)])
    return found


def planted(grads: Params, kind: jax.Array, added: Params) -> Params:
    """Return the gradient with the spike of this kind.

    1: the whole gradient times `SIZE`. 3: the largest leaf times `SIZE`. 2 and 4: what
    `structures` returns, times the gradient's norm.
    """
    largest = max(grads, key=lambda name: grads[name].size)
    length = optax.tree.norm(grads)
    spiked = {}
    for name, leaf in grads.items():
        is_scaled = (kind == 1) | ((kind == 3) & (name == largest))
        one, two = (length * added[name][place] for place in (0, 1))
        more = jnp.where(kind == 2, one, jnp.where(kind == 4, two, 0))
        spiked[name] = leaf * jnp.where(is_scaled, SIZE, 1) + more
        spiked[name] = spiked[name].astype(leaf.dtype)
    return spiked
