"""A clip compiles in a few times the seconds of Optax's clip of the same kind."""

from __future__ import annotations

import random
import time

import jax
import jax.numpy as jnp
import optax
import pytest

import clipjax

from ..clips import Pair, pairs
from ..conftest import Bench
from ..gpt2 import shapes
from ..timing import spread

ABOUT = """
CPU seconds, of all threads of the process, to trace and compile one update of the first
leaves of GPT-2, of as many layers as it takes. Ratios are those within a repeat; the
first cell of a row is the kind of clip. Optax has no clip by unit: its adaptive clip,
which measures units, stands beside ours. Each of our norms is compiled twice; the
second version is for magnitudes whose squares leave float32's range.
"""
COLUMNS = {"clip": "", "clipjax, s": ".2f", "Optax, s": ".2f", "× Optax": ".2f"}
COLUMNS |= {"at most": ".1f"}
REPEATS = {148: 2, 600: 1}  # GPT-2 of 12 and of 50 layers
# The largest ratios to Optax with 148 leaves, and with more.
BARS = {
    "global": (2.0, 3.0),
    "entries": (1.5, 1.5),
    "block rms": (2.5, 4.5),
    "AGC": (4.0, 5.0),
    "unit": (4.0, 5.0),
}
TWICE = "Each leaf is summed a second time, for extreme magnitudes"
WHY = {
    "global": f"{TWICE}.",
    "entries": "A leaf takes a comparison, a sign and a selection, which keep "
    "subnormal entries on CPUs; in Optax's clip a minimum and a maximum, which do not.",
    "block rms": f"{TWICE}, and has its own scalars: the counts at the end of this "
    "page have the equations per leaf.",
    "AGC": "A unit has its own scalars, and is summed a second time for extreme "
    "magnitudes.",
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


@pytest.mark.parametrize("leaves", REPEATS)
def test_compilation_beside_optax(bench: Bench, leaves: int) -> None:
    """Compile all pairs of clips in turn, in an order that changes."""
    unit = clipjax.clip_by(1.0, granularity=clipjax.granularity.unit())
    clips = pairs() | {"unit": Pair(unit, optax.adaptive_grad_clip(0.01))}
    arms = [(name, peer) for name in BARS for peer in Pair._fields]
    found: dict[tuple[str, str], list[float]] = {arm: [] for arm in arms}
    seconds(optax.clip(1.0), 1)  # the first compilation also starts LLVM
    shuffle = random.Random(0).shuffle
    title = f"Seconds to compile a clip of {leaves} leaves"
    with bench.table(title, ABOUT, COLUMNS, part=str(leaves)) as table:
        for _ in range(1 if bench.small else REPEATS[leaves]):
            shuffle(arms)
            for name, peer in arms:
                clip = getattr(clips[name], peer)
                found[name, peer].append(seconds(clip, 4 if bench.small else leaves))
        for name, bars in BARS.items():
            ours, theirs = found[name, "clipjax"], found[name, "optax"]
            ratio = spread([a / b for a, b in zip(ours, theirs, strict=True)])
            bar = bars[list(REPEATS).index(leaves)]
            table.row(name, spread(ours).median, spread(theirs).median, ratio, bar)
            table.claim(
                f"{name}, relative to Optax",
                ratio.median,
                at_most=bar,
                why=WHY.get(name, ""),
            )
