"""Skipping bad steps costs about as much as `optax.apply_if_finite`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import clipjax

from .. import transformer
from ..arms import optimizer_arm, size_in_bytes, train_arm
from ..conftest import Bench
from ..gpt2 import shapes
from ..timing import Arm, ratio, time_arms

ABOUT = """
A step without a wrapper, and the same step in each of them. One table is of the clip
and Adam alone, on GPT-2's shapes with two layers of width 640, whose gradients are
matrix products over a few tokens; the other of a whole train step of a small
decoder-only Transformer. No step is skipped. × without is the time divided by that of
the step without a wrapper; "without, again" shows the noise. State is what the wrapper
adds, in bytes. `skip_on_spike` watches the norm, and not the loss. XLA counts both
branches of a conditional in the bytes that a step accesses.
"""
COLUMNS = {"step": "", "ms": ".1f", "× without": ".2f", "× apply_if_finite": ".2f"}
COLUMNS |= {"GB accessed": ".2f", "temporary MB": ".0f", "state": ",.0f"}
COLUMNS |= {"compile s": ".1f"}
PEER = "optax.apply_if_finite"
BAR = 1.1
WHY = (
    "The wrappers select between the old and the new moments of Adam, where Optax "
    "branches. The CPU backend of XLA copies the old moments first, since the kernel "
    "that updates the parameters reads them, too, and the moments are updated in "
    "place: two more reads and two writes in the size of the gradient."
)


def wrappers() -> dict[str, Any]:
    """Return a clip and Adam in each wrapper."""
    optimizer = optax.chain(clipjax.clip_by_global_norm(1.0), optax.adam(1e-3))
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


def update_arms(small: bool) -> list[Arm]:
    """Compile a step of a clip and Adam, on gradients that cost little."""
    tree = shapes(width=640, layers=2, vocabulary=1000)
    if small:
        tree = shapes(width=32, layers=1, vocabulary=50)
    return [
        optimizer_arm(name, wrapped, tree, jnp.float32)
        for name, wrapped in wrappers().items()
    ]


def train_arms(small: bool) -> list[Arm]:
    """Compile a train step of a Transformer."""
    sizes = transformer.Sizes(layers=2)
    if small:
        sizes = transformer.Sizes(1, 32, 4, vocabulary=50, batch=2, context=8)
    params = transformer.parameters(sizes, jnp.float32)
    batch = transformer.tokens(sizes)

    def loss(params: Any) -> jax.Array:
        return transformer.loss(params, batch, sizes.heads)

    return [
        train_arm(name, wrapped, loss, params, ())
        for name, wrapped in wrappers().items()
    ]


KINDS = {
    "update": ("a clip and Adam, 11M parameters", update_arms),
    "train_step": ("a train step of a Transformer, 2.1M parameters", train_arms),
}


@pytest.mark.parametrize("kind", KINDS)
def test_skips_cost_about_as_much_as_apply_if_finite(bench: Bench, kind: str) -> None:
    """Compare the wrappers around a global clip and Adam."""
    named, build = KINDS[kind]
    title = f"Wrappers that skip steps, around {named} in float32"
    with bench.table(title, ABOUT, COLUMNS, part=kind) as table:
        arms = {arm.name: arm for arm in build(bench.small)}
        time_arms(list(arms.values()), bench.rounds(13))
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
                at_most=BAR,
                why=WHY,
            )
