"""A clip before Adam costs about one more read of the gradient, on GPT-2's shapes."""

from __future__ import annotations

import jax.numpy as jnp
import optax
import pytest

import clipjax

from ..arms import optimizer_arm
from ..clips import pairs, without_report
from ..conftest import Bench
from ..gpt2 import shapes
from ..timing import ratio, time_arms

ABOUT = """
One step of a clip and Adam on the shapes of GPT-2 small, 124M parameters in 148 leaves,
whose gradients are computed as matrix products over a few tokens. × Adam is the time
divided by that of the step without a clip, "Adam, again" shows the noise, and "one more
read" is what a read of the gradient would add if the time were memory traffic.
"""
COLUMNS = {"step": "", "ms": ".0f", "× Adam": ".2f", "× Optax": ".2f"}
COLUMNS |= {"GB accessed": ".2f", "temporary MB": ".0f"}
# The largest ratios of clip_by_global_norm + Adam to Adam.
BARS = {"float32": 1.15, "bfloat16": 1.18}


@pytest.mark.parametrize("dtype", BARS)
def test_clip_and_adam_costs_one_read(bench: Bench, dtype: str) -> None:
    """Compare a global clip, one by leaf and one by entry with none and with Optax."""
    ours, theirs = pairs()["global"]
    clips = {
        "Adam": optax.identity(),
        "Adam, again": optax.identity(),
        "optax.clip_by_global_norm": theirs,
        "clip_by_global_norm": ours,
        "clip_by_leaf_norm": clipjax.clip_by_leaf_norm(1.0),
        "clip_by_value, no report": without_report(clipjax.clip_by_value, 0.01),
    }
    tree = shapes(width=64, layers=1, vocabulary=500) if bench.small else shapes()
    title = f"Clip and Adam, 124M parameters in {dtype}"
    with bench.table(title, ABOUT, COLUMNS, part=dtype) as table:
        arms = {
            name: optimizer_arm(
                name, optax.chain(clip, optax.adam(1e-3)), tree, jnp.dtype(dtype)
            )
            for name, clip in clips.items()
        }
        time_arms(list(arms.values()), bench.rounds(11))
        adam, peer = arms["Adam"], arms["optax.clip_by_global_norm"]
        for arm in arms.values():
            table.row(
                arm.name,
                arm.milliseconds.median,
                ratio(arm, adam),
                ratio(arm, peer).median if "global" in arm.name else None,
                arm.bytes_accessed / 1e9,
                arm.temporary_bytes / 1e6,
            )
        global_clip = arms["clip_by_global_norm"]
        read = sum(leaf.nbytes for leaf in adam.carry[0].values()) / adam.bytes_accessed
        table.row("one more read", None, 1 + read, None, None, None)
        table.claim(
            "clip_by_global_norm + Adam, relative to Adam",
            ratio(global_clip, adam).median,
            at_most=BARS[dtype],
        )
        table.claim(
            "clip_by_global_norm + Adam, relative to Optax's clip + Adam",
            ratio(global_clip, peer).median,
            at_most=1.0,
        )
