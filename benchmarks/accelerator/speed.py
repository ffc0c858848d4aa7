"""The tables of bandwidth, and of clips alone and before Adam, beside Optax."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..arms import Shapes, clip_arm, copy_arm, reduction_arm, update_arm
from ..clips import pairs
from ..gpt2 import shapes
from ..report import Table
from ..timing import Arm, ratio, time_arms
from .job import Job, in_words, memory, together

# The reads of a gradient's size that a clip needs before it reads and writes the
# gradient: for its norms; AGC's are those of the parameters too.
READS = {"global": 1, "entries": 0, "block rms": 1, "AGC": 2}
BARS_BESIDE_ADAM = {"float32": 1.15, "bfloat16": 1.18}
BAR_BESIDE_LIMIT = 1.25
WIDTHS = (2048, 1536, 1024, 768, 512)
# Parameters, gradient and two moments of four float32 steps, and what they share.
BYTES_PER_ENTRY = 4 * (4 * 4 + 4)

COLUMNS_OF_BANDWIDTH = {"dtype": "", "MB": ".3g"}
COLUMNS_OF_BANDWIDTH |= {"copy: ms": ".3g", "copy: GB/s": ".3g"}
COLUMNS_OF_BANDWIDTH |= {"reduction: ms": ".3g", "reduction: GB/s": ".3g"}
ABOUT_BANDWIDTH = """
A copy multiplies an array by a number and writes the product over it; a reduction reads
it, for the sum of squares in float32. The array has as many entries as the gradient in
the table of clips.
"""
COLUMNS_OF_CLIPS = {"clip": "", "dtype": "", "ms": ".3g", "× limit": ".2f"}
COLUMNS_OF_CLIPS |= {"× Optax": ".2f", "+ Adam: ms": ".3g", "× Adam": ".2f"}
COLUMNS_OF_CLIPS |= {"+ Adam: × Optax": ".2f"}
ABOUT_CLIPS = """
Clips of a gradient in memory, with the shapes of a wide GPT-2, alone and before Adam.
The limit is the time of a reduction for each read that the norms need, and of a copy,
both of the gradient's bytes and in the same rounds; before Adam it is Adam's time and
that of the reductions. "Adam, again" shows the noise.
"""


def tree_of(job: Job) -> Shapes:
    """Return the shapes of a GPT-2 that is as wide as the memory allows."""
    if job.options.small:
        return shapes(width=64, layers=0, vocabulary=500)
    allowed = 0.8 * memory(job.device) / BYTES_PER_ENTRY
    fitting = [width for width in WIDTHS if entries(shapes(width)) <= allowed]
    return shapes(max(fitting, default=min(WIDTHS)))


def entries(tree: Shapes) -> int:
    """Return the number of entries of all leaves."""
    return sum(math.prod(shape) for shape in tree.values())


@functools.partial(jax.jit, static_argnums=(0, 1))
def leaf(shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Return various entries around zero; compiled once for all leaves of a shape."""
    return jnp.sin(jnp.arange(math.prod(shape))).reshape(shape).astype(dtype)


def bandwidth(job: Job) -> None:
    """Measure what moves memory and does nothing else."""
    count = entries(tree_of(job))
    title = "Bandwidth"
    with job.table("bandwidth", title, ABOUT_BANDWIDTH, COLUMNS_OF_BANDWIDTH) as table:
        for name, dtype in job.in_time({name: name for name in job.options.dtypes}):
            ones = jnp.ones(count, dtype)
            arms = [copy_arm(ones), reduction_arm(ones)]
            time_arms(arms, job.rounds, calls=job.calls)
            size = count * jnp.dtype(dtype).itemsize
            copy, reduction = (arm.milliseconds.median for arm in arms)
            of_copy, of_reduction = 2 * size / 1e6 / copy, size / 1e6 / reduction
            table.row(name, size / 1e6, copy, of_copy, reduction, of_reduction)


def clips(job: Job) -> None:
    """Compare clips with the limit, Adam and Optax, most important first."""
    tree = tree_of(job)
    units = {
        f"{kind} in {dtype}": (kind, dtype)
        for kind in job.options.clips
        for dtype in job.options.dtypes
    }
    title = f"Clips of {entries(tree) / 1e6:.3g}M parameters, {len(tree)} leaves"
    with job.table("clips", title, ABOUT_CLIPS, COLUMNS_OF_CLIPS) as table:
        for name, (kind, dtype) in job.in_time(units):
            try:
                measure(job, table, kind, dtype, tree)
            except Exception as error:
                table.row(kind, dtype, job.fail(name, error), *[None] * 5)


def measure(job: Job, table: Table, kind: str, dtype: str, tree: Shapes) -> None:
    """Add the rows of one kind of clip in one dtype."""
    alone = _alone(job, kind, dtype, tree)
    # In float16 one trains with a loss scale and float32 parameters, not like this.
    with_adam = _with_adam(job, kind, dtype, tree) if dtype != "float16" else {}
    for name in alone | with_adam:
        cells = [*alone.get(name, [None] * 3), *with_adam.get(name, [None] * 3)]
        table.row(f"{kind}: {name}", dtype, *cells)
    if kind != "global" or not with_adam:
        return
    _, over_limit, _ = alone["clipjax"]
    _, over_adam, over_optax = with_adam["clipjax"]
    what = f"clip_by_global_norm in {dtype}"
    table.claim(f"{what}, × limit", over_limit.median, at_most=BAR_BESIDE_LIMIT)
    bar = BARS_BESIDE_ADAM[dtype]
    table.claim(f"{what} + Adam, × Adam", over_adam.median, at_most=bar)
    table.claim(f"{what} + Adam, × Optax", over_optax.median, at_most=1.0)


def _arms(makers: Any) -> dict[str, Arm]:
    """Compile arms, all of which are needed."""
    arms, errors = together(makers)
    for name, error in errors.items():
        raise RuntimeError(f"{name}: {in_words(error)}") from error
    return arms


def _alone(job: Job, kind: str, dtype: str, tree: Shapes) -> dict[str, list[Any]]:
    """Return milliseconds, and the ratios to the limit and to Optax, by name."""
    count, pair = entries(tree), pairs()[kind]
    grads, params = ({k: leaf(tree[k], dtype) for k in tree} for _ in range(2))
    arms = _arms(
        {
            "copy": lambda: copy_arm(jnp.ones(count, dtype)),
            "reduction": lambda: reduction_arm(jnp.ones(count, dtype)),
            "clipjax": lambda: clip_arm("clipjax", pair.clipjax, grads, params),
            "Optax": lambda: clip_arm("Optax", pair.optax, grads, params),
        }
    )
    time_arms(list(arms.values()), job.rounds, calls=job.calls)
    limit = [arms["copy"], *[arms["reduction"]] * READS[kind]]
    found: dict[str, list[Any]] = {
        "limit": [sum(arm.milliseconds.median for arm in limit), 1.0, None]
    }
    for name in ("clipjax", "Optax"):
        arm = arms[name]
        over_optax = ratio(arm, arms["Optax"]).median if name == "clipjax" else None
        found[name] = [arm.milliseconds.median, ratio(arm, *limit), over_optax]
    for arm in arms.values():
        arm.free()
    return found


def _with_adam(job: Job, kind: str, dtype: str, tree: Shapes) -> dict[str, list[Any]]:
    """Return milliseconds, and the ratios to Adam and to Optax's clip + Adam."""
    count, pair = entries(tree), pairs()[kind]
    values = {key: leaf(tree[key], dtype) for key in tree}
    steps = {"Adam": optax.identity(), "clipjax": pair.clipjax, "Optax": pair.optax}
    makers: dict[str, Any] = {
        name: functools.partial(
            *(update_arm, name, optax.chain(clip, optax.adam(1e-3)), values, values)
        )
        for name, clip in steps.items()
    }
    arms = _arms(makers | {"reduction": lambda: reduction_arm(jnp.ones(count, dtype))})
    adam, reduction = arms["Adam"], arms["reduction"]
    job.compile_seconds_per_leaf = adam.compile_seconds / len(tree)
    names = ["clipjax", "Optax", "Adam"]
    if kind == "global":  # the noise is that of the other kinds, too
        names.append("Adam, again")
        carry = jax.tree.map(jnp.copy, adam.carry)
        arms[names[-1]] = dataclasses.replace(adam, carry=carry, seconds=[])
    time_arms(list(arms.values()), job.rounds, calls=job.calls)
    extra = READS[kind] * ratio(reduction, adam).median
    milliseconds = adam.milliseconds.median * (1 + extra)
    found: dict[str, list[Any]] = {"limit": [milliseconds, 1 + extra, None]}
    for name in names:
        arm = arms[name]
        over_optax = ratio(arm, arms["Optax"]) if name == "clipjax" else None
        found[name] = [arm.milliseconds.median, ratio(arm, adam), over_optax]
    for arm in arms.values():
        arm.free()
    return found
