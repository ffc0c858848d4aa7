"""The tables per example: what is too large is not run, and each ratio has its base."""

import time

import pytest

from benchmarks.per_example.comparison import (
    OPACUS,
    PLAIN,
    TORCH,
    norms_by,
    relative_memory,
    relative_time,
    relative_to_peers,
    time_ways,
)
from benchmarks.per_example.models import perceptron
from benchmarks.timing import Arm


def arm(name, seconds=(), bytes_=1e6, step=None):
    return Arm(
        *(name, step, None, False), temporary_bytes=bytes_, seconds=list(seconds)
    )


def test_an_arm_of_too_much_memory_is_not_run():
    arms = {
        PLAIN: arm(PLAIN, step=lambda _: time.sleep(0.002)),
        "quick": arm("quick", step=lambda _: time.sleep(0.003)),
        "slow": arm("slow", step=lambda _: time.sleep(0.25)),
        "large": arm("large", bytes_=5.2e9, step=lambda _: pytest.fail("was run")),
    }
    time_ways(arms, 5, patience=10)
    assert [len(one.seconds) for one in arms.values()] == [5, 5, 1, 0]
    assert isinstance(relative_time(arms, "slow"), float)
    assert relative_time(arms, "large") == "out of memory: 5.2 GB"
    assert relative_memory(arms, "large") == 5200


def test_opacus_is_relative_to_pytorch():
    arms = {
        PLAIN: arm(PLAIN, [1.0, 2.0]),
        TORCH: arm(TORCH, [4.0, 8.0]),
        OPACUS: arm(OPACUS, [8.0, 16.0]),
        "clipjax": arm("clipjax", [1.0, 3.0]),
        "jax_privacy": arm("jax_privacy", [9.0, 9.0]),
        "vmap + Optax": arm("vmap + Optax", [2.0, 2.0]),
    }
    assert relative_time(arms, OPACUS).median == 2
    assert relative_time(arms, "clipjax").median == 1.25
    assert relative_to_peers(arms) == (1.0, "vmap + Optax")


def test_the_paths_of_norms_are_counted():
    assert norms_by(perceptron(8, 6, 5, 4)) == "2 Gram, 1 dense"
