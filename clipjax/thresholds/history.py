"""Thresholds learnt from norms: the switches that all of them share.

What is kept of the norms, and what is made of it, is a `Memory`; when a norm enters it,
and which, is for `Learnt` to say.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from ..core.blocks import Blocks, Values
from ..core.checks import (
    Scalar,
    require_bool,
    require_choice,
    require_limits,
    require_number,
)
from ..core.printing import changed_settings, printed
from .base import Context, Threshold

Remembered = Literal["raw", "clipped", "target", "inliers"]


class Memory:
    """What is kept of the norms of a block, for all blocks alike. Frozen dataclasses.

    Methods take and return arrays of shape ``(blocks,)``, or with leading axes where
    several norms are kept. All arrays that `start` returns are zero; norms that
    `observe` lets in are positive and finite.
    """

    def start(self, zeros: jax.Array) -> Any:
        """Return the memory before the first norm."""
        return zeros

    def observe(self, memory: Any, norm: jax.Array, seen: jax.Array) -> Any:
        """Return the memory after one more norm, which comes after ``seen`` others."""
        raise NotImplementedError

    def threshold(self, memory: Any, norm: jax.Array, seen: jax.Array) -> jax.Array:
        """Return the threshold after ``seen`` norms, at least one, for this norm."""
        raise NotImplementedError


class LearntState(NamedTuple):
    """The state of `Learnt`.

    Attributes:
        norms_seen: int32 number of norms let in, per block, shape ``(blocks,)``.
        norms_kept: what the `Memory` keeps of them, per block.
    """

    norms_seen: jax.Array
    norms_kept: Any


@dataclasses.dataclass(frozen=True, repr=False)
class Learnt(Threshold):
    """A threshold made of the norms seen so far.

    NaN and infinity never enter the memory, and neither does a norm of zero, which is
    no measurement of how large gradients are: otherwise a layer whose gradient was zero
    once could stay frozen for good.

    Attributes:
        memory: what is kept, and what is made of it.
        kind: the name in a clip's coordinates.
        include_current: whether today's norm counts for today's threshold.
        remember: which norm enters the memory: the ``raw`` one; the ``clipped`` one,
            not above the threshold; the ``target``, not above the threshold that was
            learnt, whatever floor and cap make of it; or the raw one of ``inliers``
            only, which are not above the learnt threshold.
        minimum_history: how many norms must be known; before, only the cap clips.
        learning_steps: how many norms to learn from, after which the threshold stays;
            None to go on learning.
        floor: the least threshold.
        cap: the largest threshold.
    """

    memory: Memory
    kind: str
    include_current: bool = False
    remember: Remembered = "raw"
    minimum_history: Scalar = 1
    learning_steps: int | None = None
    floor: Scalar = 0.0
    cap: Scalar = math.inf
    remembers = True
    reads = "norms"

    def __post_init__(self):
        require_choice("remember", self.remember, get_args(Remembered))
        require_bool("include_current", self.include_current)
        require_number("minimum_history", self.minimum_history, infinite=False)
        require_limits(self.floor, self.cap)

    def init(self, blocks: Blocks, params: Any) -> LearntState:
        del params
        zeros = jnp.zeros(blocks.count, blocks.leaves.dtype)
        seen = jnp.zeros(blocks.count, jnp.int32)
        return LearntState(seen, self.memory.start(zeros))

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        seen, memory = state
        norm = context.blocks.vector(norms)
        finite = jnp.where(norm < jnp.inf, norm, 0)
        current = self.memory.observe(memory, finite, seen)
        read = (current, seen + 1) if self.include_current else (memory, seen)
        learnt = self.memory.threshold(read[0], finite, jnp.maximum(read[1], 1))
        is_known = (read[1] >= 1) & reached(read[1], self.minimum_history)
        learnt = jnp.where(is_known, learnt, jnp.inf)
        threshold = limited(learnt, self.floor, self.cap)
        entering = {
            "raw": finite,
            "inliers": finite,
            "clipped": jnp.minimum(finite, threshold),
            "target": jnp.minimum(finite, learnt),
        }[self.remember]
        enters = (norm > 0) & (norm < jnp.inf)
        if self.learning_steps is not None:
            enters &= seen < self.learning_steps
        if self.remember == "inliers":
            enters &= norm <= learnt
        later = jax.tree.map(
            lambda new, old: jnp.where(enters, new, old),
            self.memory.observe(memory, entering, seen),
            memory,
        )
        state = LearntState(seen + enters.astype(seen.dtype), later)
        return context.blocks.of_vector(threshold), state

    def __repr__(self) -> str:
        kept = [
            f"{field.name}={printed(getattr(self.memory, field.name))}"
            for field in dataclasses.fields(self.memory)  # type: ignore[arg-type]
        ]
        switches = changed_settings(self, skip=2)
        return f"{self.kind}({', '.join(kept + switches)})"


def reached(seen: jax.Array, count: Scalar) -> jax.Array:
    """Return whether a count, which may be traced as a float, has been reached."""
    return seen >= jnp.asarray(count).astype(seen.dtype)


def complement(decay: Scalar, dtype: Any) -> jax.Array:
    """Return 1 - decay, for a Python number without the rounding of float32."""
    if isinstance(decay, jax.Array):
        return 1 - decay.astype(dtype)
    return jnp.asarray(1 - decay, dtype)


def limited(threshold: jax.Array, floor: Scalar, cap: Scalar) -> jax.Array:
    """Keep a threshold between its limits, in its own dtype."""
    cast = functools.partial(jnp.asarray, dtype=threshold.dtype)
    return jnp.clip(threshold, cast(floor), cast(cap))
