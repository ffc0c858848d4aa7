"""Each recipe before Adam, beside `clip_by_global_norm` and Optax's clips."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

import clipjax

from ..arms import Shapes, optimizer_arm, size_in_bytes
from ..clips import pairs, without_report
from ..conftest import Bench
from ..gpt2 import shapes
from ..recipes import build, recipes
from ..report import Spread
from ..timing import Arm, ratio, time_arms

ABOUT = """
One step of a recipe and Adam on GPT-2's shapes with one layer of width 768, 8.6M
float32 parameters in 16 leaves, whose gradients are computed as matrix products over a
few tokens. A block is what gets a norm and a threshold of its own: the whole gradient,
a leaf, a group of leaves, a unit (a row or column of a matrix), an entry or a singular
value. "× Optax" compares with Optax's clip of the same kind in the same step. State is
what the recipe adds to Adam's, in bytes. Recipes that run Adam themselves replace it;
`acclip` has a momentum of its own in place of Adam. Quartiles are in brackets.

Recipes that clip Adam's step ("update" in the claims) stand behind Adam or replace it.
Clips of single entries read the gradient again for their report; `report=False` omits
it. Clips of singular values have a table of their own.
"""
COLUMNS = {"recipe": "", "block": "", "ms": ".1f", "× Adam": ".2f"}
COLUMNS |= {"× clip_by_global_norm": ".2f", "× Optax": ".2f", "state": ",.0f"}
COLUMNS |= {"compile s": ".1f"}
GLOBAL = "clip_by_global_norm"
# The largest ratio to a step with clip_by_global_norm, and why it may be missed.
BARS: dict[str, tuple[float, str]] = {
    "whole": (1.1, ""),
    "group": (1.1, ""),
    "leaf": (1.1, ""),
    "update": (
        1.1,
        "The step of Adam, which they measure, or its ratio to the parameters, is "
        "computed or read once more after the norm is known",
    ),
    "unit": (1.5, ""),
    "entry": (
        1.5,
        "acclip, spam_clip and stable_spam_clip have moments or averages of their own "
        "for each entry; the counts at the end of this page tell how many times the "
        "size of the gradient each recipe reads and writes",
    ),
    "entry, no report": (1.0, ""),
}
# Recipes that measure Adam's step in place of the gradient; a kind of their own.
OF_UPDATES = ("clip_update_by_history", "clippy", "stable_update_clip")
NOISE = "The quartiles of this ratio are {0.low:.2f} and {0.high:.2f}"
STATEMENT = "{}: {}, the slowest of {}, relative to clip_by_global_norm"
# With the windows that they have by default, which the accelerator's check shortens.
DEFAULTS: dict[str, Callable[[], Any]] = {
    "autoclip": lambda: clipjax.autoclip(50.0),
    "quantile_clip": lambda: clipjax.quantile_clip(0.5, 3.0, minimum_history=2),
    "clip_update_by_history": clipjax.clip_update_by_history,
}
OPTIMIZERS = ("acclip", "clip_by_momentum", "spam_clip", "stable_update_clip")
AFTER_ADAM = ("clip_update_by_history", "clippy")
SAME_IN_OPTAX = {
    GLOBAL: pairs()["global"].optax,
    "clip_by_value": pairs()["entries"].optax,
    "clip_by_value, no report": pairs()["entries"].optax,
    "clip_by_block_rms": pairs()["block rms"].optax,
    "adaptive_grad_clip": pairs()["AGC"].optax,
    "normalise_by_global_norm": optax.normalize_by_update_norm(),
}


def block(name: str) -> str:
    """Return what a recipe measures, from the coordinates in its docstring."""
    documented = recipes()[name.partition(",")[0]].__doc__ or ""
    found = re.search(r"Coordinates: ``(\w+)", documented)
    return found[1] if found else ""


def with_adam(name: str, clip: Any) -> Any:
    """Return the chain in which a recipe is meant to stand."""
    if name in OPTIMIZERS:
        return optax.chain(clip, optax.scale_by_learning_rate(1e-3))
    adam = optax.adam(1e-3)
    return optax.chain(adam, clip) if name in AFTER_ADAM else optax.chain(clip, adam)


def tree(bench: Bench) -> Shapes:
    """Return the shapes of the leaves."""
    if bench.small:
        return shapes(width=32, layers=1, vocabulary=100)
    return shapes(width=768, layers=1, vocabulary=1000)


def arm(name: str, clip: Any, leaves: Shapes) -> Arm:
    """Compile a step of a recipe and Adam."""
    return optimizer_arm(name, with_adam(name, clip), leaves, jnp.float32)


def clips(leaves: Shapes) -> dict[str, Any]:
    """Return all recipes but those of singular values, by name."""
    names = [name for name in recipes() if block(name) != "spectral"]
    found = {
        name: DEFAULTS[name]() if name in DEFAULTS else build(name, leaves)
        for name in names
    }
    found["clip_by_value, no report"] = without_report(clipjax.clip_by_value, 0.02)
    return dict(sorted(found.items(), key=lambda item: (item[0] != GLOBAL, item[0])))


def test_recipes_cost_about_a_global_clip(bench: Bench) -> None:
    """Compare all recipes whose cost is reads and writes."""
    leaves = tree(bench)
    title = "Every recipe before Adam, 8.6M parameters in float32"
    with bench.table(title, ABOUT, COLUMNS) as table:
        adam, again = (
            arm(n, optax.identity(), leaves) for n in ("Adam", "Adam, again")
        )
        steps = [arm(name, clip, leaves) for name, clip in clips(leaves).items()]
        peers = {
            name: arm(f"Optax's {name}", clip, leaves)
            for name, clip in SAME_IN_OPTAX.items()
        }
        time_arms([adam, again, *steps, *peers.values()], bench.rounds(11))
        base = steps[0]
        of_adam = size_in_bytes(adam.carry[1])
        ratios: dict[tuple[str, str], Spread] = {}
        for step in [adam, again, *steps]:
            name, peer = step.name, peers.get(step.name)
            is_clip = step in steps
            state = size_in_bytes(step.carry[1]) - of_adam
            table.row(
                name,
                block(name) if is_clip else "",
                step.milliseconds.median,
                ratio(step, adam),
                ratio(step, base),
                ratio(step, peer).median if peer else None,
                state if is_clip else None,
                step.compile_seconds,
            )
            if is_clip:
                no_report = ", no report" if name.endswith("no report") else ""
                kind = "update" if name in OF_UPDATES else block(name) + no_report
                ratios[kind, name] = ratio(step, base)
        for kind, (bar, why) in BARS.items():
            found = {name: value for (of, name), value in ratios.items() if of == kind}
            worst = max(found, key=lambda name: found[name].median)
            statement = STATEMENT.format(kind, worst, len(found))
            why = why or NOISE.format(found[worst])
            table.claim(statement, found[worst].median, at_most=bar, why=why)
