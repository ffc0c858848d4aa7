"""The tables of whole train steps of a Transformer, and of a tree of many leaves."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import clipjax

from ..arms import train_arm, update_arm
from ..gpt2 import parameters, shapes
from ..report import Table
from ..timing import Arm, ratio, time_arms
from ..transformer import Sizes, loss, tokens
from ..transformer import parameters as transformer_parameters
from .job import Job, memory, together

# By the memory that they need, in GB. Few wide layers compile in less time than many.
SIZES = {
    40: Sizes(6, width=2048, heads=16, vocabulary=16000, batch=8, context=512),
    12: Sizes(4, width=1024, heads=16, vocabulary=8000, batch=8, context=256),
    0: Sizes(),
}
SMALL = Sizes(0, width=32, vocabulary=50, batch=2, context=16)
BAR_OF_TRAIN_STEP = 1.02
COLUMNS_OF_STEPS = {"step": "", "dtype": "", "ms": ".3g", "× AdamW": ".3f"}
COLUMNS_OF_STEPS |= {"temporary MB": ".0f"}
ABOUT_STEPS = """
One step is `value_and_grad`, the clip, AdamW and `apply_updates`; parameters and state
are donated. Matrix products have the device's default precision. "AdamW, again" shows
the noise.
"""

LEAVES = 1000
BAR_OF_COMPILATION, BAR_OF_TIME = 1.5, 1.2
COLUMNS_OF_LEAVES = {"step": "", "trace s": ".2f", "compile s": ".1f", "ms": ".3g"}
COLUMNS_OF_LEAVES |= {"× Adam": ".2f"}
ABOUT_LEAVES = """
Clip and Adam on a gradient in memory, with the shapes of a narrow GPT-2 of many layers.
The steps are compiled one after the other.
"""


def sizes_of(job: Job) -> Sizes:
    """Return the largest model for the memory of the device."""
    if job.options.small:
        return SMALL
    gigabytes = memory(job.device) / 1e9
    return SIZES[max(least for least in SIZES if least <= gigabytes)]


def train_steps(job: Job) -> None:
    """Compare train steps with and without a clip."""
    sizes = sizes_of(job)
    # Accelerators train in bfloat16 first of all.
    units = {
        f"{d} steps": d for d in ("bfloat16", "float32") if d in job.options.dtypes
    }
    title = f"Train steps of a Transformer (width {sizes.width}, layers {sizes.layers})"
    with job.table("steps", title, ABOUT_STEPS, COLUMNS_OF_STEPS) as table:
        for name, dtype in job.in_time(units):
            try:
                _train_in(job, table, sizes, dtype)
            except Exception as error:
                table.row(name, dtype, job.fail(name, error), None, None)


def _train_in(job: Job, table: Table, sizes: Sizes, dtype: str) -> None:
    params, batch = transformer_parameters(sizes, jnp.dtype(dtype)), (tokens(sizes),)
    clips: dict[str, Any] = {
        "AdamW": optax.identity(),
        "clip_by_global_norm": clipjax.clip_by_global_norm(1.0),
        "optax.clip_by_global_norm": optax.clip_by_global_norm(1.0),
        "zclip": clipjax.zclip(),
    }

    def of_model(params: Any, batch: Any) -> Any:
        return loss(params, batch, sizes.heads)

    def make(name: str) -> Arm:
        transformation = optax.chain(clips[name], optax.adamw(1e-3))
        return train_arm(name, transformation, of_model, params, batch)

    names = list(clips)[: 2 if job.options.small else None]
    makers = {name: functools.partial(make, name) for name in names}
    arms, errors = together(makers, first="AdamW")
    for name, error in errors.items():
        table.row(name, dtype, job.fail(f"{name} in {dtype}", error), None, None)
    if "AdamW" not in arms:
        return
    carry = jax.tree.map(jnp.copy, arms["AdamW"].carry)
    again = dataclasses.replace(arms["AdamW"], carry=carry, seconds=[])
    arms = {"AdamW": arms["AdamW"], "AdamW, again": again} | arms
    time_arms(list(arms.values()), job.rounds, calls=2)
    for name, arm in arms.items():
        over_adamw = ratio(arm, arms["AdamW"])
        megabytes = arm.temporary_bytes / 1e6
        table.row(name, dtype, arm.milliseconds.median, over_adamw, megabytes)
        if name == "clip_by_global_norm":
            what = f"{name} + AdamW in {dtype}, × AdamW"
            table.claim(what, over_adamw.median, at_most=BAR_OF_TRAIN_STEP)


def leaves(job: Job) -> None:
    """Compile and run steps of many leaves."""
    count = 12 if job.options.small else LEAVES
    named = list(shapes(64, layers=count // 12 + 1, vocabulary=500).items())
    params = parameters(dict(named[:count]), jnp.float32)
    ours = "clip_by_global_norm + Adam"
    clips: dict[str, Any] = {
        "Adam": optax.identity(),
        ours: clipjax.clip_by_global_norm(1.0),
        "optax.clip_by_global_norm + Adam": optax.clip_by_global_norm(1.0),
    }
    clips = dict(list(clips.items())[: 2 if job.options.small else None])
    title = f"{count:,} leaves"
    with job.table("leaves", title, ABOUT_LEAVES, COLUMNS_OF_LEAVES) as table:
        arms = {}
        expected = count * job.compile_seconds_per_leaf
        for name, clip in job.in_time(clips, expected):
            chain = optax.chain(clip, optax.adam(1e-3))
            arms[name] = update_arm(name, chain, params, params)
        time_arms(list(arms.values()), job.rounds, calls=job.calls)
        adam = arms.get("Adam")
        for name, arm in arms.items():
            seconds = arm.trace_seconds, arm.compile_seconds
            over_adam = ratio(arm, adam) if adam else None
            table.row(name, *seconds, arm.milliseconds.median, over_adam)
        if adam and ours in arms:
            arm = arms[ours]
            compiling = arm.compile_seconds / adam.compile_seconds
            what = f"{ours}, × Adam"
            table.claim(f"{what}, compiling", compiling, at_most=BAR_OF_COMPILATION)
            running = ratio(arm, adam).median
            table.claim(f"{what}, running", running, at_most=BAR_OF_TIME)
