"""The thresholds of AdaGC and AGGC, which differ between warm-up and later."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..granularity import Blocks
from .base import Context, Threshold, require_number
from .history import complement, reached, require_fraction, require_limits

MINIMA = ("raw", "clipped")


class TrackedState(NamedTuple):
    """The state of `AdaptiveTensorwise` and `AdaptiveBand`.

    Attributes:
        seen: int32 number of norms other than zero, per block.
        tracked: the norm that thresholds are multiples of, per block.
    """

    seen: Blocks
    tracked: Blocks


class Tracking(Threshold):
    """What both have in common: one number per block, which zero norms leave alone."""

    remembers = True

    def init(self, context: Context) -> TrackedState:
        """Has seen nothing."""
        zeros = context.zeros()
        seen = jax.tree.map(lambda zero: zero.astype(jnp.int32), zeros)
        return TrackedState(seen, zeros)

    @staticmethod
    def _next(norms: jax.Array, tracked: jax.Array, state: TrackedState):
        enters = norms > 0
        return TrackedState(
            state.seen + enters.astype(jnp.int32),
            jnp.where(enters, tracked, state.tracked),
        )


@dataclasses.dataclass(frozen=True)
class AdaptiveTensorwise(Tracking):
    """A multiple of an average of clipped norms; at first, one clip for the whole."""

    absolute: Any
    relative: Any
    decay: Any
    warmup: Any
    minimum_of: str
    floor: Any
    kind = "adaptive-tensorwise"

    def __post_init__(self):
        """Checks the numbers."""
        require_number("lambda_abs", self.absolute)
        require_number("lambda_rel", self.relative, infinite=False)
        require_fraction("beta", self.decay)
        require_number("warmup_steps", self.warmup, infinite=False)
        require_limits(self.floor, float("inf"))
        if self.minimum_of not in MINIMA:
            raise ValueError(
                f"minimum_of must be 'raw' or 'clipped', got {self.minimum_of!r}"
            )

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Follows the paper's algorithm 1, block by block."""
        cast = functools.partial(jnp.asarray, dtype=context.dtype)
        whole = context.whole(norms)
        shrink = cast(self.absolute) / jnp.where(whole > 0, whole, 1)
        shared = jnp.where(whole <= cast(self.absolute), jnp.inf, shrink * norms)
        own = cast(self.relative) * jnp.maximum(state.tracked, cast(self.floor))
        is_warming = ~reached(context.count, self.warmup)
        threshold = jnp.where(is_warming | (state.seen == 0), shared, own)
        clipped = jnp.minimum(norms, threshold)
        least = norms if self.minimum_of == "raw" else clipped
        least = jnp.where(state.seen == 0, least, jnp.minimum(state.tracked, least))
        fresh = complement(self.decay, context.dtype)
        average = state.tracked + fresh * (clipped - state.tracked)
        average = jnp.where(state.seen == 0, clipped, average)
        tracked = jnp.where(is_warming, least, average)
        return threshold, self._next(norms, tracked, state)


@dataclasses.dataclass(frozen=True)
class AdaptiveBand(Tracking):
    """The length of a norm brought into a band about the average of such lengths."""

    low: Any
    high: Any
    decay: Any
    raises: bool
    floor: Any
    largest_raise: Any
    largest_cut: Any
    kind = "adaptive-band"

    def __post_init__(self):
        """Checks the numbers that are no schedules."""
        for name, value in [("alpha_low", self.low), ("alpha_high", self.high)]:
            if not callable(value):
                require_number(name, value, infinite=False)
        require_fraction("beta", self.decay)
        require_number("min_norm", self.floor, infinite=False)
        require_number("max_up_scale", self.largest_raise, lowest=1.0)
        require_fraction("max_down_scale", self.largest_cut)
        if not isinstance(self.raises, bool):
            raise TypeError(f"raises must be True or False, got {self.raises!r}")

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Gives the length, for the rule that takes the threshold as one."""
        cast = functools.partial(jnp.asarray, dtype=context.dtype)
        low, high = (
            cast(alpha(context.count) if callable(alpha) else alpha)
            for alpha in (self.low, self.high)
        )
        least = jnp.maximum(cast(self.floor), low * state.tracked)
        most = jnp.maximum(high * state.tracked, cast(self.largest_cut) * norms)
        length = jnp.minimum(norms, most)
        if self.raises:
            most_raised = cast(self.largest_raise) * jnp.where(norms > 0, norms, 1)
            raised = jnp.minimum(least, most_raised)
            # The upper end comes first, as in the reference.
            length = jnp.where(norms > most, length, jnp.maximum(norms, raised))
        length = jnp.where(state.seen == 0, norms, length)
        fresh = complement(self.decay, context.dtype)
        average = state.tracked + fresh * (length - state.tracked)
        tracked = jnp.where(state.seen == 0, length, average)
        return length, self._next(norms, tracked, state)
