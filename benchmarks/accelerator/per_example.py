"""The table of clipping per example, beside jax_privacy and Optax."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax

from ..per_example import peers
from ..per_example.models import Model, convolutional, perceptron, transformer
from ..per_example.private_steps import STEPS, peer_adam, train_step
from ..report import Table
from ..timing import Arm, compile_arm, ratio, time_arms
from .job import Job, together

PLAIN, AGAIN = "plain gradient", "plain gradient, again"
PLAIN_STEP = "plain gradient + Adam"
# Of the measurements of one arm: loops over examples take long.
PATIENCE = 2.0
COLUMNS = {"model": "", "way": "", "ms": ".3g", "× plain": ".2f"}
COLUMNS |= {"temporary MB": ".0f", "temporaries × plain": ".2f"}
ABOUT = """
Each example's gradient is clipped, and the clipped ones are summed. × plain is the time
relative to the plain gradient of the summed loss, in the same rounds; "again" shows the
noise. "8 at a time" and "1 at a time" are jax_privacy's microbatches. A private step is
clip, noise and Adam, relative to the plain gradient and Adam. Matrix products have the
device's default precision.
"""


def models(small: bool) -> dict[str, tuple[str, Callable[[], Model]]]:
    """Return a line about each model, and what makes it: small, or for an accelerator.

    The largest gradients of all examples take 4 GB, which vmap keeps at once.
    """
    if small:
        return {
            "transformer": ("2 x 8 words", lambda: transformer(2, 8, 1, 16)),
            "perceptron": ("16 images", lambda: perceptron(16, 784, 16, 10)),
            "convolutional": ("16 images", lambda: convolutional(16)),
        }
    widths = (784, 512, 512, 512, 10)
    return {
        "transformer": ("128 x 128 words", lambda: transformer(128, 128)),
        "perceptron": ("1024 images", lambda: perceptron(1024, *widths)),
        "convolutional": ("512 images", lambda: convolutional(512)),
    }


def fill(job: Job) -> None:
    """Compare the ways to clip per example, and then private steps."""
    chosen = {name: models(job.options.small)[name] for name in job.options.models}
    units = {name: (_ways, name) for name in chosen}
    # XLA compiles the steps of the convolutional net for long, and they say no more.
    units |= {
        f"{name}, private": (_private_steps, name)
        for name in chosen
        if name != "convolutional"
    }
    with job.table("per-example", "Clipping per example", ABOUT, COLUMNS) as table:
        for name, (compare, model) in job.in_time(units):
            size, make = chosen[model]
            try:
                compare(job, table, f"{model}, {size}", make())
            except Exception as error:
                table.row(name, "", job.fail(name, error), None, None, None)


def _compare(
    job: Job, table: Table, title: str, makers: dict[str, Callable[[], Arm]], plain: str
) -> None:
    """Time arms, and add a row for each, relative to the plain one."""
    arms, errors = together(makers, first=plain)
    for way, error in errors.items():
        words = job.fail(f"{title}: {way}", error)
        table.row(title, way, words, None, None, None)
    if plain not in arms:
        return
    if plain == PLAIN:
        again = dataclasses.replace(arms[PLAIN], seconds=[])  # nothing is donated
        arms = {PLAIN: arms[PLAIN], AGAIN: again} | arms
    time_arms(list(arms.values()), job.rounds, calls=2, patience=PATIENCE)
    reference = arms[plain]
    is_counted = reference.temporary_bytes > 0
    for way, arm in arms.items():
        table.row(
            title,
            way,
            arm.milliseconds.median,
            ratio(arm, reference),
            arm.temporary_bytes / 1e6,
            arm.temporary_bytes / reference.temporary_bytes if is_counted else None,
        )


def _ways(job: Job, table: Table, title: str, model: Model) -> None:
    def make(way: str) -> Arm:
        gradient = ways[way](model.loss, len(model.batch))
        return compile_arm(way, gradient, (model.params, *model.batch), donate=False)

    size = len(jax.tree.leaves(model.batch)[0])
    ways = {PLAIN: peers.plain, **peers.WAYS}
    if size % 8 or size == 8:
        ways = {way: ways[way] for way in ways if "8 at a time" not in way}
    makers = {way: functools.partial(make, way) for way in ways}
    _compare(job, table, title, makers, PLAIN)


def _private_steps(job: Job, table: Table, title: str, model: Model) -> None:
    steps = {
        PLAIN_STEP: STEPS["plain"],
        "clipjax, private step": STEPS["private"],
        # The whole batch at once, which suits accelerators.
        "jax_privacy, private step": (peers.jax_privacy, peer_adam),
    }

    def make(way: str) -> Arm:
        return compile_arm(way, *train_step(way, model, steps))

    makers = {way: functools.partial(make, way) for way in steps}
    _compare(job, table, title, makers, PLAIN_STEP)
