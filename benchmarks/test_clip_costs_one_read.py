"""Measures the claim that a clip costs a train step one read of the gradient.

Run it with ``make benchmark``. It prints a table per dtype and fails where a gate is
missed: the clip and Adam against Adam alone, and against Optax's clip and Adam.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import clipjax

from .gpt2 import gradients, parameters, shapes
from .interleaved import Arm, compile_arm, median_milliseconds, paired_ratio, time_arms

ROUNDS = 21
LARGEST_STEP_RATIO = 1.20
LEAST_SPEEDUP_OF_BFLOAT16_CLIP = 2.0


def train_step(name: str, transformation: Any, dtype: Any) -> Arm:
    """Makes an arm that updates parameters."""
    params = parameters(dtype)

    def step(carry: Any) -> Any:
        params, state, shift = carry
        grads = gradients(params, shift)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, shift

    state = jax.jit(transformation.init)(params)
    return compile_arm(name, step, (params, state, jnp.float32(0.5)))


def clip_step(name: str, transformation: Any, dtype: Any) -> Arm:
    """Makes an arm that clips a gradient that is there already, and keeps it."""
    grads = parameters(dtype)

    def step(carry: Any) -> Any:
        return transformation.update(*carry)[0]

    return compile_arm(name, step, (grads, transformation.init(grads)), donate=False)


def print_table(title: str, arms: list[Arm], base: Arm) -> None:
    """Prints one row per arm, against the first."""
    print(f"\n{title}\n")
    print("| step | median ms | × base | GB accessed | temporary MB |")
    print("|---|---|---|---|---|")
    for arm in arms:
        print(
            f"| {arm.name} | {median_milliseconds(arm):.0f} "
            f"| {paired_ratio(arm, base):.2f} | {arm.bytes_accessed / 1e9:.2f} "
            f"| {arm.temporary_bytes / 1e6:.0f} |"
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_train_step(dtype: str) -> None:
    """Holds clip + Adam to its gate, and to less than Optax needs."""
    adam = optax.adam(1e-3)
    chains = {
        "Adam": adam,
        "optax clip_by_global_norm + Adam": optax.chain(
            optax.clip_by_global_norm(1.0), adam
        ),
        "clipjax clip_by_global_norm + Adam": optax.chain(
            clipjax.clip_by_global_norm(1.0), adam
        ),
        "clipjax clip_by_leaf_norm + Adam": optax.chain(
            clipjax.clip_by_leaf_norm(1.0), adam
        ),
    }
    arms = [train_step(name, chain, jnp.dtype(dtype)) for name, chain in chains.items()]
    base, peer, ours, _ = arms
    time_arms(arms, ROUNDS)
    size = sum(leaf.size for leaf in jax.tree.leaves(parameters(jnp.dtype(dtype))))
    read = size * jnp.dtype(dtype).itemsize
    print_table(f"Train step, {dtype}, {len(shapes())} leaves", arms, base)
    limit = 1 + read / base.bytes_accessed
    print(f"\nOne more read of the gradient: × {limit:.2f} of Adam's traffic.")
    assert paired_ratio(ours, base) <= LARGEST_STEP_RATIO
    assert paired_ratio(ours, peer) < 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_clip_alone(dtype: str) -> None:
    """Compares the bare clips with each other and with reading and writing once."""
    clips = {
        "read and write": optax.scale(0.5),
        "optax clip_by_global_norm": optax.clip_by_global_norm(1.0),
        "clipjax clip_by_global_norm": clipjax.clip_by_global_norm(1.0),
    }
    arms = [clip_step(name, clip, jnp.dtype(dtype)) for name, clip in clips.items()]
    time_arms(arms, ROUNDS)
    base, peer, ours = arms
    print_table(f"Clip alone, {dtype}, {len(shapes())} leaves", arms, base)
    print(f"\nclipjax is {paired_ratio(peer, ours):.2f} × as fast as optax.")
    if dtype == "bfloat16":
        assert paired_ratio(peer, ours) >= LEAST_SPEEDUP_OF_BFLOAT16_CLIP
