"""Time of clip + Adam over Adam alone, on the shapes of GPT-2 small.

    python -m benchmarks.step [--rounds 21] [--dtypes float32 bfloat16] [--layers 12]

The default tree has 148 leaves and 124 million parameters. The steps run in turn in
one process, in an order that changes from round to round, and a ratio is the median of
the ratios within a round. The limit is what one more read of the gradient would cost if
time were memory traffic. The exit code is 1 if a gate is missed.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

import clipjax

from .clips import pairs, without_report
from .gpt2 import LAYERS, gradients, parameters, shapes
from .interleaved import Arm, compile_arm, median_milliseconds, paired_ratio, time_arms
from .options import DTYPES, Parser, positive, table, verdict

# The largest ratios of clip_by_global_norm + Adam to Adam.
GATES = {"float32": 1.15, "bfloat16": 1.18}
OURS, OPTAX = "clipjax global + Adam", "Optax global + Adam"


def step_arm(name: str, transformation: Any, params: dict[str, jax.Array]) -> Arm:
    """Compile a train step; its carry is donated."""

    def step(carry: Any) -> Any:
        params, state, shift = carry
        grads = gradients(params, shift)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, shift

    state = jax.jit(transformation.init)(params)
    return compile_arm(name, step, (params, state, jnp.float32(0.5)))


def rows(arms: list[Arm], gates: dict[str, float]) -> list[list[str]]:
    """Return a row for each arm, compared with the first one."""
    return [
        [
            arm.name,
            f"{median_milliseconds(arm):.0f}",
            f"{paired_ratio(arm, arms[0]):.2f}",
            verdict(paired_ratio(arm, arms[0]), gates[arm.name])
            if arm.name in gates
            else "",
            f"{arm.bytes_accessed / 1e9:.2f}",
            f"{arm.temporary_bytes / 1e6:.0f}",
        ]
        for arm in arms
    ]


def compare_steps(tree: dict[str, Any], dtype: str, rounds: int) -> bool:
    """Print the table of steps, and return whether the gates hold."""
    ours, theirs = pairs()["global"]
    clips = {
        OPTAX: theirs,
        OURS: ours,
        "clipjax leaf + Adam": clipjax.clip_by_leaf_norm(1.0),
        "clipjax entries + Adam": without_report(clipjax.clip_by_value, 0.01),
    }
    adam = optax.adam(1e-3)
    steps = {"Adam": adam} | {n: optax.chain(c, adam) for n, c in clips.items()}
    arms = [
        step_arm(name, tx, parameters(tree, jnp.dtype(dtype)))
        for name, tx in steps.items()
    ]
    time_arms(arms, rounds)
    header = [f"step, {dtype}", "ms", "× Adam", "gate", "GB accessed", "temporary MB"]
    print("\n" + table(header, rows(arms, {OURS: GATES[dtype]})))
    by_name = {arm.name: arm for arm in arms}
    base, ratio = by_name["Adam"], paired_ratio(by_name[OURS], by_name["Adam"])
    entries = sum(leaf.size for leaf in jax.tree.leaves(base.carry[0]))
    read = entries * jnp.dtype(dtype).itemsize / base.bytes_accessed
    against = paired_ratio(by_name[OURS], by_name[OPTAX])
    print(f"\nLimit by memory traffic, one more read: × {1 + read:.2f}.")
    print(f"Against Optax's step: × {against:.2f}, gate {verdict(against, 1.0)}.")
    return ratio <= GATES[dtype] and against <= 1.0


def compare_alone(tree: dict[str, Any], dtype: str, rounds: int) -> None:
    """Print the table of clips of a gradient in memory, which is kept."""
    ours, theirs = pairs()["global"]
    clips = {
        "read and write": optax.scale(0.5),
        "Optax global": theirs,
        "clipjax global": ours,
    }
    arms = []
    for name, clip in clips.items():
        grads = parameters(tree, jnp.dtype(dtype))

        def update(carry: Any, clip: Any = clip) -> Any:
            return clip.update(*carry)[0]

        arms.append(compile_arm(name, update, (grads, clip.init(grads)), donate=False))
    time_arms(arms, rounds)
    header = [f"alone, {dtype}", "ms", "× first", "gate", "GB accessed", "temporary MB"]
    print("\n" + table(header, rows(arms, {})), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Print two tables for each dtype."""
    parser = Parser("step", __doc__)
    parser.add_argument("--rounds", type=positive, default=21)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--layers", type=positive, default=LAYERS)
    options = parser.parse_args(arguments)
    tree = shapes(layers=options.layers)
    all_hold = True
    for dtype in options.dtypes:
        all_hold = compare_steps(tree, dtype, options.rounds) and all_hold
        compare_alone(tree, dtype, options.rounds)
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
