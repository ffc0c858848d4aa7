"""A global clip alone takes little longer than a read and a copy of the gradient."""

from __future__ import annotations

import importlib
import math
import os
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clipjax

from ..arms import SHRINKS, copy_arm, gradient, in_place_arm, reduction_arm
from ..conftest import Bench
from ..gpt2 import shapes
from ..timing import Arm, host_arm, ratio, time_arms

ABOUT = """
A global clip of a gradient in memory, which is overwritten by the result, as PyTorch's
`clip_grad_norm_(foreach=True)` does it: fresh memory for every result would add the
time of page faults. The trees have GPT-2's shapes: 10M parameters in 76 leaves, and
124M in 148. The threshold is half the norm of the first gradient and falls by a tenth
from call to call, so that every call clips; or it is never reached: XLA's CPU backend
does not store what it has just read from the same place, and such a call is a read.

The limit is the time of a read of all leaves (sums of squares, in float32) and of a
read and a write of all leaves (a product with a scalar) in the same rounds. GB/s counts
two reads and a write. PyTorch has as many threads as there are cores. Temporaries in
the size of the gradient are a float32 copy that XLA's CPU backend writes before it adds
up the squares of float16 entries, as in "reduction".
"""
COLUMNS = {"step": "", "ms": ".1f", "× limit": ".2f", "× Optax": ".2f"}
COLUMNS |= {"× PyTorch": ".2f", "GB/s": ".1f", "temporary MB": ".1f"}
TREES = {
    "10M": {"width": 320, "layers": 6, "vocabulary": 8000},
    "124M": {},
}
SMALL = {"width": 64, "layers": 1, "vocabulary": 500}
# Optax's clip squares the entries in float16, where squares of 256 and more overflow.
WHY = (
    "XLA's CPU backend converts the leaf in memory before it sums: see the temporaries"
)
# The largest ratio to the limit.
BARS = {"float32": 1.25, "bfloat16": 1.25, "float16": math.inf}


def torch_arms(grads: Any, largest: float) -> list[Arm]:
    """Return PyTorch's clip of a copy of a gradient, if PyTorch is installed."""
    try:  # it is no dependency, and its types are unknown
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError:
        return []
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    parameters = []
    for leaf in grads.values():
        dtype = getattr(torch, leaf.dtype.name)
        parameter = torch.empty(leaf.shape, dtype=dtype)
        parameter.grad = torch.tensor(np.asarray(leaf, np.float32)).to(dtype)
        parameters.append(parameter)

    bound = largest

    def clip(max_norm: float) -> Any:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)

    def clip_more() -> Any:
        nonlocal bound
        bound *= SHRINKS
        return clip(bound)

    return [
        host_arm("torch.nn.utils.clip_grad_norm_", clip_more),
        host_arm("the same, never reached", lambda: clip(math.inf)),
    ]


@pytest.mark.parametrize("dtype", BARS)
def test_clip_alone_is_one_read_and_one_copy(bench: Bench, dtype: str) -> None:
    """Compare clipjax, Optax and PyTorch with a reduction and a copy."""
    title = f"A global clip alone, {dtype}"
    with bench.table(title, ABOUT, COLUMNS, part=dtype) as table:
        for size, settings in TREES.items():
            tree = shapes(**(SMALL if bench.small else settings))
            grads = gradient(tree, jnp.dtype(dtype))
            entries = sum(map(math.prod, tree.values()))
            largest = math.sqrt(entries / 2) / 2
            read, copy = reduction_arm(grads), copy_arm(grads)
            ours = [
                in_place_arm(name, clipjax.clip_by_global_norm, bound, grads)
                for name, bound in {
                    "clipjax.clip_by_global_norm": largest,
                    "the same, never reached": 1e6 * largest,
                }.items()
            ]
            name = "optax.clip_by_global_norm"
            optax_arm = in_place_arm(name, optax.clip_by_global_norm, largest, grads)
            theirs = torch_arms(grads, largest)
            arms = [*ours, optax_arm, *theirs, read, copy]
            time_arms(arms, bench.rounds(11))
            gigabytes = entries * jnp.dtype(dtype).itemsize / 1e9
            for arm in arms:
                passes = {"reduction": 1, "copy": 2}.get(arm.name, 3)
                is_ours = arm in ours
                table.row(
                    f"{size}: {arm.name}",
                    arm.milliseconds.median,
                    ratio(arm, read, copy) if passes == 3 else None,
                    ratio(arm, optax_arm).median if is_ours else None,
                    ratio(arm, theirs[0]).median if is_ours and theirs else None,
                    passes * gigabytes / (arm.milliseconds.median / 1e3),
                    None if arm in theirs else arm.temporary_bytes / 1e6,
                )
            if not theirs:
                table.row(f"{size}: PyTorch: not installed", *[None] * 6)
            if math.isfinite(BARS[dtype]):
                table.claim(
                    f"{size} parameters, clip_by_global_norm relative to the limit",
                    ratio(ours[0], read, copy).median,
                    at_most=BARS[dtype],
                )
            for peer in (optax_arm, *theirs[:1]):
                table.claim(
                    f"{size} parameters, clip_by_global_norm relative to {peer.name}",
                    ratio(ours[0], peer).median,
                    at_most=1.1,
                    why=WHY if dtype == "float16" else "",
                )
            for arm in arms:
                arm.free()
            del grads
