"""CPU seconds to trace and compile a clip, beside Optax's clip of the same kind.

    python -m benchmarks.compile [--leaves 148 1000] [--repeats 3] [--only global ...]

The trees are GPT-2's, of as many layers as it takes: mixed shapes take XLA longer than
equal ones. The seconds are those of all threads of the process, XLA's among them. The
clips are compiled in turn, in an order that changes from repeat to repeat, and the
ratio is the median of the ratios within a repeat. Optax has no clip by unit: its
adaptive clip, which measures units, stands beside ours. The exit code is 1 if a gate is
missed.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import optax

import clipjax

from .clips import Pair, pairs
from .gpt2 import shapes
from .options import Parser, positive, table, verdict

FEW, MANY = 148, 1000  # GPT-2 of 12 and of 83 layers
# The largest ratios allowed with up to `FEW` leaves, and with more.
GATES = {
    "global": (2.0, 3.0),
    "entries": (1.5, 1.5),
    "block rms": (2.5, 4.5),
    "AGC": (4.0, 5.0),
    "unit": (4.0, 5.0),
}


def seconds(clip: optax.GradientTransformation, leaves: int) -> float:
    """Return the CPU seconds to trace and compile one update."""
    tree = list(shapes(layers=leaves // 12 + 1).items())[:leaves]
    grads = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in tree}
    state = jax.eval_shape(clip.init, grads)
    jax.clear_caches()  # or the clip that comes second finds what both trace
    start = time.process_time()
    jax.jit(clip.update).lower(grads, state, grads).compile()
    return time.process_time() - start


def compare(names: list[str], leaves: int, repeats: int) -> tuple[str, bool]:
    """Return a table for one number of leaves, and whether all gates hold."""
    by_unit = clipjax.clip_by(1.0, granularity=clipjax.granularity.unit())
    all_pairs = pairs() | {"unit": Pair(by_unit, optax.adaptive_grad_clip(0.01))}
    arms = [(name, peer) for name in names for peer in Pair._fields]
    found: dict[tuple[str, str], list[float]] = {arm: [] for arm in arms}
    shuffle = random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(arms)
        for name, peer in arms:
            clip = getattr(all_pairs[name], peer)
            found[name, peer].append(seconds(clip, leaves))

    rows, holds = [], True
    for name in names:
        ours, theirs = found[name, "clipjax"], found[name, "optax"]
        ratio = statistics.median(
            one / two for one, two in zip(ours, theirs, strict=True)
        )
        gate = GATES[name][leaves > FEW]
        holds = holds and ratio <= gate
        medians = [f"{statistics.median(arm):.2f}" for arm in (ours, theirs)]
        rows.append([name, *medians, f"{ratio:.2f}", verdict(ratio, gate)])
    header = [f"{leaves} leaves", "clipjax s", "Optax s", "ratio", "gate"]
    return table(header, rows), holds


def main(arguments: list[str] | None = None) -> int:
    """Print a table for each number of leaves."""
    parser = Parser("compile", __doc__)
    parser.add_argument("--leaves", type=positive, nargs="+", default=[FEW, MANY])
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--only", nargs="+", choices=GATES, default=list(GATES))
    options = parser.parse_args(arguments)
    seconds(optax.clip(1.0), 1)  # the first compilation also starts LLVM
    all_hold = True
    for leaves in options.leaves:
        text, holds = compare(options.only, leaves, options.repeats)
        print(f"\n{text}", flush=True)
        all_hold = all_hold and holds
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
