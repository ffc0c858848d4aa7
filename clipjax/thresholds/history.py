"""Thresholds learned from norms: the settings that all of them share.

A `Memory` defines the statistic: the numbers that are stored about the norms, and the
threshold that is computed from them. `Learnt` decides when a norm enters the memory,
and which norm.
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
    """The protocol of a statistic of the norms of each block.

    Memories are frozen dataclasses. Their methods take and return arrays of shape
    ``(blocks,)``, with leading axes where several norms are stored. All arrays that
    `start` returns are zero. Norms that enter through `observe` are positive and
    finite.
    """

    def start(self, zeros: jax.Array) -> Any:
        """Return the memory before the first norm."""
        return zeros

    def observe(self, memory: Any, norm: jax.Array, seen: jax.Array) -> Any:
        """Return the memory after one more norm, given the number of earlier ones."""
        raise NotImplementedError

    def threshold(self, memory: Any, norm: jax.Array, seen: jax.Array) -> jax.Array:
        """Return the threshold after ``seen`` norms, at least one, for this norm."""
        raise NotImplementedError


class LearntState(NamedTuple):
    """The state of `Learnt`.

    Attributes:
        norms_seen: int32 number of norms that entered, per block, shape ``(blocks,)``.
        norms_kept: the state of the `Memory`.
    """

    norms_seen: jax.Array
    norms_kept: Any


@dataclasses.dataclass(frozen=True, repr=False)
class Learnt(Threshold):
    """A threshold learned from the norms so far.

    NaN and infinity never enter the memory. Neither does a norm of zero, which says
    nothing about how large gradients are: if it entered, a layer whose gradient was
    zero once could stay frozen forever.

    Attributes:
        memory: the statistic of the norms.
        kind: the name in a clip's coordinates.
        include_current: whether the current norm counts for the current threshold.
        remember: which norm enters the memory: the ``raw`` norm; the ``clipped`` norm,
            which is at most the threshold; the ``target``, the raw norm but at most the
            learned threshold, before floor and cap apply; or the raw norm of
            ``inliers`` only, which are at most the learned threshold.
        minimum_history: how many norms to observe before the threshold applies; until
            then only the cap clips.
        learning_steps: how many norms to learn from before the threshold is fixed; None
            to keep learning.
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
    """Return 1 - decay; for a Python number, subtracted in double precision."""
    if isinstance(decay, jax.Array):
        return 1 - decay.astype(dtype)
    return jnp.asarray(1 - decay, dtype)


def limited(threshold: jax.Array, floor: Scalar, cap: Scalar) -> jax.Array:
    """Return a threshold clipped to its limits, in its own dtype."""
    cast = functools.partial(jnp.asarray, dtype=threshold.dtype)
    return jnp.clip(threshold, cast(floor), cast(cap))
