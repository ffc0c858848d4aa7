"""The thresholds of AdaGC and of AGGC, which track one number per block."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from ..core.blocks import Blocks, Values
from ..core.checks import (
    Scalar,
    require_bool,
    require_choice,
    require_fraction,
    require_limits,
    require_number,
)
from ..core.dtypes import scaling_power
from .base import Context, Threshold
from .history import complement, reached

MinimumOf = Literal["raw", "clipped"]


class TrackedState(NamedTuple):
    """The state of `AdaptiveTensorwise` and `AdaptiveBand`.

    Attributes:
        norms_seen: int32 number of norms other than zero, per block.
        norms_tracked: the norm that thresholds are multiples of, per block.
    """

    norms_seen: jax.Array
    norms_tracked: jax.Array


class Tracking(Threshold):
    """A threshold that tracks one number per block; norms of zero do not change it."""

    remembers = True
    reads = "norms"

    def init(self, blocks: Blocks, params: Any) -> TrackedState:
        del params
        tracked = jnp.zeros(blocks.count, blocks.leaves.dtype)
        return TrackedState(jnp.zeros(blocks.count, jnp.int32), tracked)

    @staticmethod
    def enter(norms: jax.Array, tracked: jax.Array, state: TrackedState):
        """Return the state after a step."""
        enters = norms > 0
        return TrackedState(
            state.norms_seen + enters.astype(jnp.int32),
            jnp.where(enters, tracked, state.norms_tracked),
        )


@dataclasses.dataclass(frozen=True, repr=False)
class AdaptiveTensorwise(Tracking):
    """A multiple of an average of clipped norms; in the warm-up, one global norm."""

    absolute: Scalar
    relative: Scalar
    decay: Scalar
    warmup: Scalar
    minimum_of: MinimumOf
    floor: Scalar
    kind = "adaptive-tensorwise"

    def __post_init__(self):
        require_number("lambda_abs", self.absolute)
        require_number("lambda_rel", self.relative, infinite=False)
        require_fraction("beta", self.decay)
        require_number("warmup_steps", self.warmup, infinite=False)
        require_limits(self.floor, float("inf"))
        require_choice("minimum_of", self.minimum_of, get_args(MinimumOf))

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        # Algorithm 1 of the paper, for all blocks at once.
        cast, blocks = context.cast, context.blocks
        norm, (seen, before) = _finite(blocks.vector(norms)), state
        # Relative to the largest, since squares of norms can leave the range.
        power = scaling_power(jnp.max(norm, initial=0))
        whole, absolute = context.whole(norm * power), cast(self.absolute)
        share = norm * power / jnp.where(whole > 0, whole, 1)
        shared = jnp.where(whole <= absolute * power, jnp.inf, absolute * share)
        own = cast(self.relative) * jnp.maximum(before, cast(self.floor))
        is_warming = ~reached(context.steps, self.warmup)
        threshold = jnp.where(is_warming | (seen == 0), shared, own)
        clipped = jnp.minimum(norm, threshold)
        least = norm if self.minimum_of == "raw" else clipped
        least = jnp.where(seen == 0, least, jnp.minimum(before, least))
        fresh = complement(self.decay, context.dtype)
        average = before + fresh * (clipped - before)
        average = jnp.where(seen == 0, clipped, average)
        tracked = jnp.where(is_warming, least, average)
        return blocks.of_vector(threshold), self.enter(norm, tracked, state)


@dataclasses.dataclass(frozen=True, repr=False)
class AdaptiveBand(Tracking):
    """The norm, moved into a band around the average of such lengths."""

    low: optax.ScalarOrSchedule
    high: optax.ScalarOrSchedule
    decay: Scalar
    raises: bool
    floor: Scalar
    largest_raise: Scalar
    largest_cut: Scalar
    kind = "adaptive-band"

    def __post_init__(self):
        for name, value in [("alpha_low", self.low), ("alpha_high", self.high)]:
            if not callable(value):
                require_number(name, value, infinite=False)
        require_fraction("beta", self.decay)
        require_number("min_norm", self.floor, infinite=False)
        require_number("max_up_scale", self.largest_raise, lowest=1.0)
        require_fraction("max_down_scale", self.largest_cut)
        require_bool("raises", self.raises)

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        # The threshold is the length itself, for rules.normalise or rules.hard.
        cast, blocks = context.cast, context.blocks
        norm, (seen, before) = _finite(blocks.vector(norms)), state
        low, high = (
            cast(alpha(context.steps) if callable(alpha) else alpha)
            for alpha in (self.low, self.high)
        )
        least = jnp.maximum(cast(self.floor), low * before)
        most = jnp.maximum(high * before, cast(self.largest_cut) * norm)
        length = jnp.minimum(norm, most)
        if self.raises:
            most_raised = cast(self.largest_raise) * jnp.where(norm > 0, norm, 1)
            raised = jnp.minimum(least, most_raised)
            # The upper end comes first, as in the reference.
            length = jnp.where(norm > most, length, jnp.maximum(norm, raised))
        length = jnp.where(seen == 0, norm, length)
        fresh = complement(self.decay, context.dtype)
        average = before + fresh * (length - before)
        tracked = jnp.where(seen == 0, length, average)
        return blocks.of_vector(length), self.enter(norm, tracked, state)


def _finite(norm: jax.Array) -> jax.Array:
    """Replace an infinite norm by 0; its block becomes NaN whatever the threshold."""
    return jnp.where(norm < jnp.inf, norm, 0)
