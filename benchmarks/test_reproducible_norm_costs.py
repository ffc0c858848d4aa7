"""Measures what a norm costs that is the same to the bit on any mesh.

Run it with ``make benchmark``. It prints a table, and fails where a gate is missed.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax

import clipjax

from .interleaved import median_milliseconds, paired_ratio, time_arms
from .test_clip_costs_one_read import clip_step, print_table, train_step

ROUNDS = 11
LARGEST_STEP_RATIO = 4.0


def test_reproducible_norm() -> None:
    """Holds Adam with the reproducible clip to its gate, against the plain clip."""
    plain = clipjax.clip_by(1.0)
    exact = clipjax.clip_by(1.0, norm=clipjax.norms.reproducible_l2)
    for title, make in (
        ("Clip alone", clip_step),
        (
            "Clip and Adam",
            lambda name, clip, dtype: train_step(
                name, optax.chain(clip, optax.adam(1e-3)), dtype
            ),
        ),
    ):
        dtype = jnp.dtype("float32")
        arms = [make("l2", plain, dtype), make("reproducible_l2", exact, dtype)]
        time_arms(arms, ROUNDS)
        print_table(title, arms, arms[0])
        assert median_milliseconds(arms[1]) > 0
    assert paired_ratio(arms[1], arms[0]) < LARGEST_STEP_RATIO
