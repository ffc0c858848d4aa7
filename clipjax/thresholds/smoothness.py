"""Thresholds from how fast gradients change: the (L0, L1) model of smoothness.

The model bounds the smoothness at a point by ``L0 + L1·‖g‖``. Its step size,
``1 / (L0 + L1·‖g‖)``, is a soft clip at ``γ = L0 / L1`` followed by the learning rate
``η = 1 / L0``, so that ``ηγ = 1 / L1``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.blocks import Blocks, Values
from ..core.checks import Scalar, require_fraction, require_limits, require_number
from ..core.trees import zeros_like
from .base import Context, Threshold
from .given import Constant
from .history import limited, reached


def from_smoothness(l0: float, l1: float) -> Constant:
    r"""Return the threshold γ = L0/L1 for known constants of smoothness.

    Args:
        l0: L0, the smoothness at small gradients: loss per parameter squared, a number
            above 0.
        l1: L1, its growth per unit of gradient norm: one per parameter, above 0.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is not above 0.

    Example:
        >>> import clipjax, optax
        >>> gamma = clipjax.thresholds.from_smoothness(l0=2.0, l1=4.0)
        >>> optimizer = optax.chain(
        ...     clipjax.clip_by(gamma, rule=clipjax.rules.soft), optax.sgd(1 / 2.0)
        ... )

    References:
        Zhang, He, Sra, Jadbabaie, `Why gradient clipping accelerates training
        <https://arxiv.org/abs/1905.11881>`_, 2020, for the model; `Methods for convex
        (L0, L1)-smooth optimization <https://arxiv.org/abs/2409.14989>`_, 2024, for the
        soft clip.
    """
    tiny = math.ulp(0.0)
    require_number("l0", l0, lowest=tiny, infinite=False)
    require_number("l1", l1, lowest=tiny, infinite=False)
    return Constant(l0 / l1)


class SmoothnessState(NamedTuple):
    """The memory of `EstimatedSmoothness`, as large as two copies of the parameters.

    Attributes:
        pairs_seen: int32 number of pairs of steps compared, per block; -1 before the
            first step.
        previous_updates: the previous gradients, a tree like the parameters.
        previous_params: the previous parameters.
        previous_norms: the previous norms, per block.
        pairs_moments: averages of x, y, x² and xy per block, shape ``(4, blocks)``, for
            x the norm and y the local smoothness.
    """

    pairs_seen: jax.Array
    previous_updates: Any
    previous_params: Any
    previous_norms: jax.Array
    pairs_moments: jax.Array


@dataclasses.dataclass(frozen=True, repr=False)
class EstimatedSmoothness(Threshold):
    """γ = L0/L1, or the model's step, from a regression of smoothness on the norm."""

    decay: Scalar
    minimum_history: Scalar
    floor: Scalar
    cap: Scalar
    initial_step: Scalar | None = None
    kind = "estimated-smoothness"
    remembers = True
    reads = "norms"

    def init(self, blocks: Blocks, params: Any) -> SmoothnessState:
        count, dtype = blocks.count, blocks.leaves.dtype
        return SmoothnessState(
            jnp.full(count, -1, jnp.int32),
            zeros_like(params),
            zeros_like(params),
            jnp.zeros(count, dtype),
            jnp.zeros((4, count), dtype),
        )

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        leaves, blocks = context.blocks.leaves, context.blocks
        params = context.parameters("estimated_smoothness")
        before = leaves.aligned(state.previous_updates, "the updates in the state")
        place = leaves.aligned(state.previous_params, "the params in the state")
        turned = blocks.vector(context.measure(_differences(leaves.arrays, before)))
        moved = blocks.vector(context.measure(_differences(params, place)))
        norm = blocks.vector(norms)
        norm = jnp.where(norm < jnp.inf, norm, 0)

        seen = state.pairs_seen
        enters = (seen >= 0) & (moved > 0)
        local = turned / jnp.where(moved > 0, moved, 1)
        # Between two points the model predicts L0 + L1 times the mean of their norms.
        between = (norm + state.previous_norms) / 2
        sample = jnp.stack([between, local, between * between, between * local])
        entered = jnp.maximum(seen + 1, 1).astype(context.dtype)
        weight = jnp.maximum(1 - context.cast(self.decay), 1 / entered)
        moments = state.pairs_moments
        moments = jnp.where(
            enters[None], moments + weight[None] * (sample - moments), moments
        )
        count = jnp.where(seen < 0, 0, seen + enters.astype(seen.dtype))
        threshold = self._threshold(norm, count, moments, context)
        state = SmoothnessState(
            count,
            leaves.placed(state.previous_updates, _cast_each(leaves.arrays, before)),
            leaves.placed(state.previous_params, _cast_each(params, place)),
            norm,
            moments,
        )
        return blocks.of_vector(threshold), state

    def _threshold(self, norm, count, moments, context: Context) -> jax.Array:
        x, y, xx, xy = moments
        variance = xx - x * x
        slope = (xy - x * y) / jnp.where(variance > 0, variance, 1)
        offset = y - slope * x
        # A line with a negative slope or a negative offset contradicts the model: the
        # estimate is noise.
        fits = (variance > 0) & (slope > 0) & (offset > 0)
        known = reached(count, self.minimum_history) & fits
        if self.initial_step is None:
            found, unknown = offset / jnp.where(known, slope, 1), jnp.inf
        else:
            found = norm / jnp.where(known, offset + slope * norm, 1)
            unknown = context.cast(self.initial_step) * norm
        return limited(jnp.where(known, found, unknown), self.floor, self.cap)


def _differences(now: list[jax.Array], before: list[jax.Array]) -> list[jax.Array]:
    earlier = _cast_each(before, now)
    return [new - old for new, old in zip(now, earlier, strict=True)]


def _cast_each(arrays: list[jax.Array], like: list[jax.Array]) -> list[jax.Array]:
    return [one.astype(other.dtype) for one, other in zip(arrays, like, strict=True)]


def estimated_smoothness(
    *,
    decay: Scalar = 0.99,
    minimum_history: Scalar = 10,
    floor: Scalar = 0.0,
    cap: Scalar = math.inf,
    initial_step: Scalar | None = None,
) -> EstimatedSmoothness:
    r"""Return a threshold that estimates γ = L0/L1 during training.

    The estimate comes from successive gradients and parameters: the local smoothness
    :math:`\lVert\Delta g\rVert / \lVert\Delta w\rVert` between two steps is regressed
    on the gradient norm; the line's offset is L0, its slope L1. The noise of
    mini-batches counts as smoothness, so that estimates are meaningful only for full or
    large batches. The state keeps a copy of the gradients and one of the parameters.

    Args:
        decay: weight of the past in the regression, from 0 to 1.
        minimum_history: how many pairs of steps to observe before the threshold
            applies; until then, and where the line has a negative slope or offset, only
            the cap clips.
        floor: the least threshold, in the gradient's units.
        cap: the largest threshold.
        initial_step: a learning rate. If given, the threshold is the length of the
            whole step, ``n / (L0 + L1·n)``, for use with ``rules.normalise`` and a
            learning rate of 1. Until there is an estimate, it is ``initial_step · n``.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range; or, in ``update``, params are not
            given.

    Example:
        >>> import clipjax
        >>> source = clipjax.thresholds.estimated_smoothness(cap=10.0)
        >>> clip = clipjax.clip_by(source, rule=clipjax.rules.soft)

    References:
        Zhang, He, Sra, Jadbabaie, `Why gradient clipping accelerates training
        <https://arxiv.org/abs/1905.11881>`_, 2020, section 5, measures smoothness so.
    """
    require_fraction("decay", decay)
    require_number("minimum_history", minimum_history, lowest=2, infinite=False)
    require_limits(floor, cap)
    if initial_step is not None:
        require_number("initial_step", initial_step, infinite=False)
    return EstimatedSmoothness(decay, minimum_history, floor, cap, initial_step)
