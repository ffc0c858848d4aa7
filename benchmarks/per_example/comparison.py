"""Clip per example in every way, beside the plain gradient, in the same rounds."""

from __future__ import annotations

import collections
import functools
import importlib.util
import re

import jax

from ..report import Cell
from ..timing import Arm, compile_arm, host_arm, ratio, time_arms
from .models import Model
from .peers import WAYS, clip_of, plain, plain_in_a_loop

PLAIN, LOOP = "plain gradient", "plain gradient, 1 at a time"
OPACUS, TORCH = "Opacus", "PyTorch's plain gradient"
HAS_OPACUS = all(importlib.util.find_spec(name) for name in ("torch", "opacus"))
ALL = {PLAIN: plain, LOOP: plain_in_a_loop, **WAYS}
# An arm that needs more is compiled only.
MOST_TEMPORARY_BYTES = 4e9
# What takes longer than this many plain gradients, and seconds, runs in one round.
SLOW, SHORT = 3.0, 0.2


def compile_ways(model: Model) -> dict[str, Arm]:
    """Compile the plain gradient and every way that the batch allows."""
    arguments = (model.params, *model.batch)
    size, arity = len(jax.tree.leaves(model.batch)[0]), len(model.batch)
    return {
        name: compile_arm(name, way(model.loss, arity), arguments, donate=False)
        for name, way in ALL.items()
        if not (name.endswith("8 at a time") and (size % 8 or size == 8))
    }


def torch_arms(make: functools.partial[Model]) -> dict[str, Arm]:
    """Return the arms of the model's twin in PyTorch, where there is one."""
    if not HAS_OPACUS:
        return {}
    import torch  # pyright: ignore[reportMissingImports]

    from . import torch_opacus

    twin = getattr(torch_opacus, make.func.__name__, None)
    if twin is None:
        return {}
    torch.manual_seed(0)
    pair = twin(*make.args)
    steps = {
        TORCH: torch_opacus.plain_step(pair.plain, *pair.batch),
        OPACUS: torch_opacus.ghost_step(pair.private, *pair.batch),
    }
    return {name: host_arm(name, step) for name, step in steps.items()}


def time_ways(arms: dict[str, Arm], rounds: int, patience: float) -> None:
    """Time all arms that fit into memory, the slow ones in one round."""
    fitting = [arm for arm in arms.values() if fits(arm)]
    time_arms(fitting, 1)

    def is_slow(arm: Arm) -> bool:
        relative = ratio(arm, reference(arms, arm)).median
        return relative > SLOW and sum(arm.seconds) > SHORT

    others = [arm for arm in fitting if not is_slow(arm)]
    time_arms(others, rounds - 1, patience=patience)


def fits(arm: Arm) -> bool:
    """Return whether an arm may run; of PyTorch's no count is known."""
    return not arm.temporary_bytes > MOST_TEMPORARY_BYTES


def reference(arms: dict[str, Arm], arm: Arm) -> Arm:
    """Return the plain gradient that an arm is compared with."""
    return arms[TORCH if arm.name == OPACUS else PLAIN]


def relative_time(arms: dict[str, Arm], name: str) -> Cell:
    """Return the time relative to the plain gradient, or why there is none."""
    arm = arms.get(name)
    if arm is None:
        return "not installed" if name == OPACUS and not HAS_OPACUS else None
    if not fits(arm):
        return f"out of memory: {arm.temporary_bytes / 1e9:.1f} GB"
    plain = reference(arms, arm)
    if len(arm.seconds) > 1:
        return ratio(arm, plain)
    return arm.milliseconds.median / plain.milliseconds.median


def relative_memory(arms: dict[str, Arm], name: str) -> float | None:
    """Return XLA's temporary memory relative to the plain gradient."""
    if name not in arms or name in (OPACUS, TORCH):
        return None
    return arms[name].temporary_bytes / arms[PLAIN].temporary_bytes


def relative_to_peers(arms: dict[str, Arm]) -> tuple[float, str]:
    """Return clipjax's time relative to that of the fastest peer in JAX, and which."""
    peers = [arms[name] for name in WAYS if name != "clipjax" and name in arms]
    ratios = {
        arm.name: ratio(arms["clipjax"], arm).median for arm in peers if fits(arm)
    }
    fastest = max(ratios, key=ratios.__getitem__)
    return ratios[fastest], fastest


def why_faster(arms: dict[str, Arm], peer: str) -> str:
    """Return why a peer is faster than clipjax, by the plain gradient's own times."""
    loop = ratio(arms[LOOP], arms[PLAIN]).median
    if "1 at a time" in peer and loop < 1:
        return (
            f"The plain gradient itself takes {loop:.2f} of its time when a loop adds "
            "it example by example, so that the gain is the loop's; "
            '`clipped_grad(..., microbatch_size=1, method="vmap")` has it, too'
        )
    if "vmap" in peer and ratio(arms[peer], arms[PLAIN]).median < 1:
        return (
            "Each example's gradient is a product over one axis, which XLA's CPU "
            "backend runs faster than the plain gradient's, over two"
        )
    return ""


def norms_by(model: Model) -> str:
    """Return how clipjax computes the norms, and of how many parameters so."""
    clip = clip_of(model.loss, len(model.batch))
    words = {
        "by Gram matrices": "Gram",
        "from gradients made": "direct",
        "by equal rows": "rows",
        "gradients per example": "dense",
    }
    lines = clip.plan(model.params, *model.batch).splitlines()[:-1]
    found = collections.Counter(
        word
        for line in lines
        for form in set(re.findall("|".join(words), line))
        for word in [words[form]]
    )
    return ", ".join(f"{found[word]} {word}" for word in words.values() if found[word])
