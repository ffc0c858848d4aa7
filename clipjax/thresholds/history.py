"""Thresholds learnt from norms: the switches that all of them share.

What is kept of the norms, and what is made of it, is a `Memory`; when a norm enters it,
and which, is for `Learnt` to say.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..granularity import Blocks
from .base import Context, Threshold, require_integer, require_number

REMEMBERED = ("raw", "clipped", "target", "inliers")


class Memory:
    """What is kept of the norms of a block, for all blocks alike. Frozen dataclasses.

    Methods take and give arrays of one shape, the norms' own, or with leading axes
    for what is kept of several norms.
    """

    def start(self, zeros: jax.Array) -> Any:
        """Makes the memory of no norm."""
        return zeros

    def observe(self, memory: Any, norm: jax.Array, seen: jax.Array) -> Any:
        """Lets in a norm that comes after ``seen`` others."""
        raise NotImplementedError

    def threshold(self, memory: Any, norm: jax.Array, seen: jax.Array) -> jax.Array:
        """Gives the threshold after ``seen`` norms, at least one, for this norm."""
        raise NotImplementedError


class LearntState(NamedTuple):
    """The state of `Learnt`.

    Attributes:
        seen: int32 number of norms let in, per block.
        memory: what the `Memory` keeps of them, per block.
    """

    seen: Blocks
    memory: Any


@dataclasses.dataclass(frozen=True)
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
    remember: str = "raw"
    minimum_history: Any = 1
    learning_steps: int | None = None
    floor: Any = 0.0
    cap: Any = math.inf
    remembers = True

    def __post_init__(self):
        """Checks the switches."""
        if self.remember not in REMEMBERED:
            raise ValueError(
                f"remember must be one of {', '.join(map(repr, REMEMBERED))}, got "
                f"{self.remember!r}"
            )
        if not isinstance(self.include_current, bool):
            raise TypeError(
                f"include_current must be True or False, got {self.include_current!r}"
            )
        require_number("minimum_history", self.minimum_history, infinite=False)
        require_limits(self.floor, self.cap)

    def init(self, context: Context) -> LearntState:
        """Has seen nothing."""
        zeros = context.zeros()
        seen = jax.tree.map(lambda zero: zero.astype(jnp.int32), zeros)
        return LearntState(seen, jax.tree.map(self.memory.start, zeros))

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Reads the memory, then lets the norm in."""
        del context
        return by_block(self._update_block, norms, state)

    def _update_block(
        self, norm: jax.Array, state: LearntState
    ) -> tuple[jax.Array, LearntState]:
        seen, memory = state
        current = self.memory.observe(memory, norm, seen)
        read = (current, seen + 1) if self.include_current else (memory, seen)
        learnt = self.memory.threshold(read[0], norm, jnp.maximum(read[1], 1))
        is_known = (read[1] >= 1) & reached(read[1], self.minimum_history)
        learnt = jnp.where(is_known, learnt, jnp.inf)
        threshold = limited(learnt, self.floor, self.cap)
        entering = {
            "raw": norm,
            "inliers": norm,
            "clipped": jnp.minimum(norm, threshold),
            "target": jnp.minimum(norm, learnt),
        }[self.remember]
        enters = norm > 0
        if self.learning_steps is not None:
            enters &= seen < self.learning_steps
        if self.remember == "inliers":
            enters &= norm <= learnt
        later = jax.tree.map(
            lambda new, old: jnp.where(enters, new, old),
            self.memory.observe(memory, entering, seen),
            memory,
        )
        return threshold, LearntState(seen + enters.astype(seen.dtype), later)


def by_block(
    update: Callable[[jax.Array, Any], tuple[jax.Array, Any]], norms: Blocks, state: Any
) -> tuple[Blocks, Any]:
    """Updates the state of each array of blocks; `unit` and `element` have several.

    Args:
        update: gives the threshold and the new state from a norm and its state.
        norms: the norms, in either form of `clipjax.granularity`.
        state: a named tuple whose entries have the norms' form, or are trees in which
            each array of blocks has its own memory.
    """
    if not isinstance(norms, dict):
        return update(norms, state)
    names = list(norms)
    kind = type(state)
    thresholds, states = {}, {}
    for name in names:
        one = kind(*(entry[name] for entry in state))
        thresholds[name], states[name] = update(norms[name], one)
    absent = {name for entry in state for name in entry} - set(names)
    merged = kind(
        *(
            {name: states[name][i] for name in names}
            | {name: entry[name] for name in absent}
            for i, entry in enumerate(state)
        )
    )
    return thresholds, merged


def reached(seen: jax.Array, count: Any) -> jax.Array:
    """Tells whether a count, which may be traced as a float, has been reached."""
    return seen >= jnp.asarray(count).astype(seen.dtype)


def complement(decay: Any, dtype: Any) -> jax.Array:
    """Gives 1 - decay, of a Python number without the rounding of float32."""
    if isinstance(decay, jax.Array):
        return 1 - decay.astype(dtype)
    return jnp.asarray(1 - decay, dtype)


def limited(threshold: jax.Array, floor: Any, cap: Any) -> jax.Array:
    """Keeps a threshold between its limits, in its own dtype."""
    cast = functools.partial(jnp.asarray, dtype=threshold.dtype)
    return jnp.clip(threshold, cast(floor), cast(cap))


def require_limits(floor: Any, cap: Any) -> None:
    """Checks that floor and cap are numbers, and in order."""
    require_number("floor", floor, infinite=False)
    lowest = 0.0 if isinstance(floor, jax.Array) else float(floor)
    require_number("cap", cap, lowest=lowest)


def require_steps(name: str, value: Any) -> None:
    """Checks a number of steps that fixes shapes."""
    hint = "; with optax.inject_hyperparams, name it in static_args"
    require_integer(name, value, 1, hint)


def require_fraction(name: str, value: Any) -> None:
    """Checks a number from 0 to 1."""
    require_number(name, value, infinite=False)
    if not isinstance(value, jax.Array) and value > 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")
