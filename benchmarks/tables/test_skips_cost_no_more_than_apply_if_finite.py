"""Skipping bad steps costs no more than `optax.apply_if_finite`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

import clipjax

from ..arms import optimizer_arm, size_in_bytes
from ..conftest import Bench
from ..gpt2 import shapes
from ..timing import ratio, time_arms

ABOUT = """
One step of a clip and Adam, and the same in each wrapper, on GPT-2's shapes with two
layers of width 640, 11M float32 parameters in 28 leaves, whose gradients are computed
as matrix products over a few tokens. No step is skipped. × without is the time divided
by that of the step without a wrapper; "without, again" shows the noise. State is what
the wrapper adds, in bytes. `skip_on_spike` watches the norm, and not the loss. XLA
counts both branches of a conditional in the bytes that a step accesses.
"""
COLUMNS = {"step": "", "ms": ".1f", "× without": ".2f", "× apply_if_finite": ".2f"}
COLUMNS |= {"GB accessed": ".2f", "temporary MB": ".0f", "state": ",.0f"}
COLUMNS |= {"compile s": ".1f"}
PEER = "optax.apply_if_finite"


def wrappers(optimizer: Any) -> dict[str, Any]:
    """Return an optimizer in each wrapper."""
    on_spike = clipjax.skip_on_spike(optimizer, loss=False)
    skips_both = clipjax.skip_nonfinite(on_spike)
    return {
        "without": optimizer,
        "without, again": optimizer,
        PEER: optax.apply_if_finite(optimizer, 10),
        "skip_nonfinite": clipjax.skip_nonfinite(optimizer),
        "skip_on_spike": on_spike,
        "skip_nonfinite of skip_on_spike": skips_both,
    }


def test_skips_cost_no_more_than_apply_if_finite(bench: Bench) -> None:
    """Compare the wrappers around a global clip and Adam."""
    leaves = shapes(width=640, layers=2, vocabulary=1000)
    if bench.small:
        leaves = shapes(width=32, layers=1, vocabulary=50)
    optimizer = optax.chain(clipjax.clip_by_global_norm(1.0), optax.adam(1e-3))
    title = "Wrappers that skip steps, 11M parameters in float32"
    with bench.table(title, ABOUT, COLUMNS) as table:
        arms = {
            name: optimizer_arm(name, wrapped, leaves, jnp.float32)
            for name, wrapped in wrappers(optimizer).items()
        }
        time_arms(list(arms.values()), bench.rounds(25))
        base, peer = arms["without"], arms[PEER]
        inner = size_in_bytes(base.carry[1])
        for arm in arms.values():
            table.row(
                arm.name,
                arm.milliseconds.median,
                ratio(arm, base),
                ratio(arm, peer).median,
                arm.bytes_accessed / 1e9,
                arm.temporary_bytes / 1e6,
                size_in_bytes(arm.carry[1]) - inner,
                arm.compile_seconds,
            )
        for name in ("skip_nonfinite", "skip_on_spike"):
            table.claim(
                f"a step in {name}, relative to one in {PEER}",
                ratio(arms[name], peer).median,
                at_most=1.0,
            )
