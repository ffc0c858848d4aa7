"""Thresholds from how fast gradients change: the (L0, L1) model of smoothness.

The model says that the smoothness at a point is at most ``L0 + L1·‖g‖`` there. The step
``1 / (L0 + L1·‖g‖)`` that it asks for is a soft clip at ``γ = L0 / L1`` followed by the
learning rate ``η = 1 / L0``, so that ``ηγ = 1 / L1``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..granularity import Blocks
from .base import Context, Threshold, require_number
from .fixed import Constant
from .history import limited, reached, require_fraction, require_limits


def from_smoothness(l0: Any, l1: Any) -> Constant:
    r"""Takes the threshold γ = L0/L1 from known constants of smoothness.

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
    """The memory of `EstimatedSmoothness`: as large as two copies of the parameters.

    Attributes:
        seen: int32 number of pairs of steps compared, per block.
        gradients: the previous gradients.
        params: the previous parameters.
        norms: the previous norms, per block.
        moments: averages of x, y, x², xy for x the norm and y the local smoothness.
    """

    seen: Blocks
    gradients: dict[str, jax.Array]
    params: dict[str, jax.Array]
    norms: Blocks
    moments: tuple[Blocks, Blocks, Blocks, Blocks]


@dataclasses.dataclass(frozen=True)
class EstimatedSmoothness(Threshold):
    """γ = L0/L1, or the step of the model, by regressing smoothness on the norm."""

    decay: Any
    minimum_history: Any
    floor: Any
    cap: Any
    initial_step: Any = None
    kind = "estimated-smoothness"
    remembers = True

    def init(self, context: Context) -> SmoothnessState:
        """Has compared nothing."""
        zeros = context.zeros()
        seen = jax.tree.map(lambda zero: jnp.full(zero.shape, -1, jnp.int32), zeros)
        still, more = (
            {n: jnp.zeros(x.shape, x.dtype) for n, x in context.leaves.arrays.items()}
            for _ in range(2)
        )
        # Numbers that share a buffer could not be donated.
        norms, *moments = (jax.tree.map(jnp.copy, zeros) for _ in range(5))
        return SmoothnessState(seen, still, more, norms, tuple(moments))

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Compares this step with the one before."""
        leaves = context.leaves
        params = context.parameters("estimated_smoothness")
        turned, moved = (
            context.measure(
                leaves.replace(
                    {
                        name: leaf - before[name].astype(leaf.dtype)
                        for name, leaf in now.items()
                    }
                )
            )
            for now, before in (
                (leaves.arrays, state.gradients),
                (params.arrays, state.params),
            )
        )
        join = functools.partial(self._block, dtype=context.dtype)
        parts = jax.tree.map(
            join, norms, state.norms, turned, moved, state.seen, *state.moments
        )
        pick = lambda i: jax.tree.map(lambda _, part: part[i], norms, parts)  # noqa: E731
        new = SmoothnessState(
            pick(1),
            {
                name: leaf.astype(state.gradients[name].dtype)
                for name, leaf in leaves.arrays.items()
            },
            {
                name: leaf.astype(state.params[name].dtype)
                for name, leaf in params.arrays.items()
            },
            norms,
            (pick(2), pick(3), pick(4), pick(5)),
        )
        return pick(0), new

    def _block(self, norm, before, turned, moved, seen, x, y, xx, xy, *, dtype):
        cast = functools.partial(jnp.asarray, dtype=dtype)
        enters = (seen >= 0) & (moved > 0)
        local = turned / jnp.where(moved > 0, moved, 1)
        # Between two points the model gives L0 + L1 times the mean of the norms there.
        between = (norm + before) / 2
        sample = (between, local, between * between, between * local)
        entered = jnp.maximum(seen + 1, 1).astype(dtype)
        weight = jnp.maximum(1 - cast(self.decay), 1 / entered)
        x, y, xx, xy = (
            jnp.where(enters, old + weight * (value - old), old)
            for old, value in zip((x, y, xx, xy), sample, strict=True)
        )
        count = jnp.where(seen < 0, 0, seen + enters.astype(seen.dtype))
        variance = xx - x * x
        slope = (xy - x * y) / jnp.where(variance > 0, variance, 1)
        offset = y - slope * x
        # A line that falls, or meets zero early, is noise and no model.
        fits = (variance > 0) & (slope > 0) & (offset > 0)
        known = reached(count, self.minimum_history) & fits
        if self.initial_step is None:
            found, unknown = offset / jnp.where(known, slope, 1), jnp.inf
        else:
            found = norm / jnp.where(known, offset + slope * norm, 1)
            unknown = cast(self.initial_step) * norm
        threshold = limited(jnp.where(known, found, unknown), self.floor, self.cap)
        return threshold, count, x, y, xx, xy


def estimated_smoothness(
    *,
    decay: Any = 0.99,
    minimum_history: Any = 10,
    floor: Any = 0.0,
    cap: Any = math.inf,
    initial_step: Any = None,
) -> EstimatedSmoothness:
    r"""Estimates γ = L0/L1 on the way, from successive gradients and parameters.

    The local smoothness :math:`\lVert\Delta g\rVert / \lVert\Delta w\rVert` between
    two steps is regressed on the gradient norm; the line's offset is L0, its slope L1.
    The noise of mini-batches counts as smoothness: expect sense from full batches only,
    or from large ones. The state keeps a copy of the gradients and one of the
    parameters.

    Args:
        decay: weight of the past in the regression, from 0 to 1.
        minimum_history: how many pairs of steps must be known; before, and where the
            line falls or meets zero early, only the cap clips.
        floor: the least threshold, in the gradient's units.
        cap: the largest threshold.
        initial_step: a learning rate; given, the threshold is the length of the whole
            step, ``n / (L0 + L1·n)``, to go with ``rules.normalise`` and a learning
            rate of 1. Before anything is known it is ``initial_step · n``.

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
