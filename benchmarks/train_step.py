"""A whole train step of a small Transformer, with and without the clip.

    python -m benchmarks.train_step [--rounds 21] [--dtypes float32 bfloat16]

A step is value_and_grad, chain(clip, adamw) and apply_updates, with parameters and
state donated. The steps run in turn in one process, in an order that changes from round
to round; a ratio is the median of the ratios within a round, and its quartiles show how
busy the machine was. So does the second AdamW, whose true ratio is 1. The exit code is
1 if the gate is missed.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .clips import pairs
from .options import DTYPES, Parser, positive, table, verdict
from .timing import Arm, compile_arm, median_milliseconds, time_arms
from .transformer import Sizes, loss, parameters, tokens

GATE = 1.02
OURS = "clipjax global + AdamW"


def step_arm(name: str, transformation: Any, sizes: Sizes, dtype: str) -> Arm:
    """Compile a train step; its carry is donated."""
    batch = tokens(sizes)

    def step(carry: Any) -> Any:
        params, state, _ = carry
        value, grads = jax.value_and_grad(loss)(params, batch, sizes.heads)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = parameters(sizes, jnp.dtype(dtype))
    return compile_arm(
        name, step, (params, jax.jit(transformation.init)(params), jnp.float32(0))
    )


def compare(sizes: Sizes, dtype: str, rounds: int) -> bool:
    """Print a table, and return whether the gate holds."""
    ours, theirs = pairs()["global"]
    adamw = optax.adamw(1e-3)
    steps = {
        "AdamW": adamw,
        "AdamW once more": adamw,
        "Optax global + AdamW": optax.chain(theirs, adamw),
        OURS: optax.chain(ours, adamw),
    }
    arms = [step_arm(name, tx, sizes, dtype) for name, tx in steps.items()]
    time_arms(arms, rounds)

    rows, holds = [], True
    for arm in arms:
        ratios = [
            one / base for one, base in zip(arm.seconds, arms[0].seconds, strict=True)
        ]
        ratio = statistics.median(ratios)
        low, _, high = statistics.quantiles(ratios, n=4)
        gate = verdict(ratio, GATE) if arm.name == OURS else ""
        holds = holds and (arm.name != OURS or ratio <= GATE)
        rows.append(
            [
                arm.name,
                f"{median_milliseconds(arm):.1f}",
                f"{ratio:.3f}",
                f"{low:.3f} to {high:.3f}",
                gate,
                f"{arm.temporary_bytes / 1e6:.1f}",
            ]
        )
    header = [dtype, "ms", "× AdamW", "quartiles", "gate", "temporary MB"]
    print("\n" + table(header, rows), flush=True)
    return holds


def main(arguments: list[str] | None = None) -> int:
    """Print a table for each dtype."""
    parser = Parser("train_step", __doc__)
    parser.add_argument("--rounds", type=positive, default=21)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error("argument --rounds: quartiles take at least 2")
    holds = [compare(Sizes(), dtype, options.rounds) for dtype in options.dtypes]
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
