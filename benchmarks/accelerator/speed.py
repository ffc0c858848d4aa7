"""Clip alone and clip + Adam beside Optax: milliseconds and share of the bandwidth."""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..clips import Pair, pairs
from ..gpt2 import shapes
from ..timing import Arm, compile_arm, paired_ratio, time_arms

HEADER = ["clip", "dtype", "ms", "bandwidth", "compile s"]
HEADER += ["+ Adam: ms", "bandwidth", "compile s", "× Adam"]
# The least that is moved, in sizes of the gradient: by the clip alone, and with Adam.
# A clip of blocks reads the gradient twice and writes it once, one of entries reads it
# once, AGC also reads the parameters. Adam reads the gradient, and reads and writes the
# parameters and two moments; a clip of blocks before it adds a read.
ADAM = 7
LEAST = {"global": (3, 8), "block rms": (3, 8), "entries": (2, 7), "AGC": (4, 9)}


class Setting(NamedTuple):
    """What is measured, and how often.

    Attributes:
        tree: shapes of the leaves by name.
        rounds: measurements of each step.
        calls: calls in one measurement.
    """

    tree: dict[str, tuple[int, ...]]
    rounds: int
    calls: int

    @property
    def entries(self) -> int:
        """The number of entries of all leaves."""
        return sum(math.prod(shape) for shape in self.tree.values())


def setting(small: bool, device: Any) -> Setting:
    """Return a wide GPT-2 of 148 leaves that fits the device's memory."""
    if small:
        return Setting(shapes(width=64, layers=0, vocabulary=500), 3, 2)
    memory = (device.memory_stats() or {}).get("bytes_limit", 8e9)
    for width in (2048, 1536, 1024):
        fitting = Setting(shapes(width), 15, 10)
        # Parameters, gradient and two moments of three float32 steps and a narrow one.
        if 4 * (3 * 4 + 2) * fitting.entries < 0.8 * memory:
            return fitting
    return Setting(shapes(), 15, 10)


def bandwidth(setting: Setting) -> float:
    """Return the bytes per second that a negated copy of a float32 array moves."""
    array = jnp.ones(setting.entries)
    arm = compile_arm("copy", jnp.negative, array, donate=False)
    time_arms([arm], setting.rounds, calls=setting.calls)
    return 2 * array.nbytes / statistics.median(arm.seconds)


def gradient(setting: Setting, dtype: str) -> Any:
    """Return leaves of various entries around zero, each in its own buffer."""

    @jax.jit
    def make() -> Any:
        return {
            name: jnp.sin(jnp.arange(math.prod(shape)) + 7.0 * number)
            .reshape(shape)
            .astype(dtype)
            for number, (name, shape) in enumerate(setting.tree.items())
        }

    return make()


def clip_arm(name: str, clip: Any, setting: Setting, dtype: str) -> Arm:
    """Compile an update whose donated result is the gradient of the next one."""

    def step(carry: Any) -> Any:
        grads, state, params = carry
        return *clip.update(grads, state, params), params

    grads, params = gradient(setting, dtype), gradient(setting, dtype)
    return compile_arm(name, step, (grads, jax.jit(clip.init)(params), params))


def adam_arm(name: str, clip: Any, setting: Setting, dtype: str) -> Arm:
    """Compile a step of a clip and Adam with a gradient in memory."""
    chain = optax.chain(clip, optax.adam(1e-3))

    def step(carry: Any) -> Any:
        params, state, grads = carry
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads

    params, grads = gradient(setting, dtype), gradient(setting, dtype)
    return compile_arm(name, step, (params, jax.jit(chain.init)(params), grads))


def measure(
    kind: str, dtype: str, adam: Arm, setting: Setting, peak: float
) -> list[list[str]]:
    """Return a row for Adam, clipjax's clip and Optax's, timed in turn.

    Args:
        kind: a name of `pairs`.
        dtype: of parameters and gradient.
        adam: the step without a clip.
        setting: the tree, and how often a step is run.
        peak: bytes per second of a copy.
    """
    clips = {
        f"{peer} {kind}": clip
        for peer, clip in zip(Pair._fields, pairs()[kind], strict=True)
    }
    alone = [clip_arm(name, clip, setting, dtype) for name, clip in clips.items()]
    time_arms(alone, setting.rounds, calls=setting.calls)
    for arm in alone:
        arm.carry = None  # frees its buffers
    steps = [adam_arm(name, clip, setting, dtype) for name, clip in clips.items()]
    adam.seconds.clear()
    time_arms([adam, *steps], setting.rounds, calls=setting.calls)

    size = setting.entries * jnp.dtype(dtype).itemsize

    def cells(arm: Arm, least: int) -> list[str]:
        seconds = statistics.median(arm.seconds)
        share = least * size / peak / seconds
        return [f"{1e3 * seconds:.3g}", f"{share:.0%}", f"{arm.compile_seconds:.1f}"]

    least_alone, least_with_adam = LEAST[kind]
    rows = [["Adam", dtype, "", "", "", *cells(adam, ADAM), "1.00"]]
    for one, two in zip(alone, steps, strict=True):
        ratio = f"{paired_ratio(two, adam):.2f}"
        cells_of_both = cells(one, least_alone) + cells(two, least_with_adam)
        rows.append([one.name, dtype, *cells_of_both, ratio])
    return rows
