"""Thresholds for single entries, learned from all entries of a leaf or from each."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core.blocks import Blocks, Values
from ..core.checks import Scalar, require_fraction, require_number
from ..core.dtypes import format_limits, widen
from ..core.trees import zeros_like
from ..norms import l1, linf
from .averages import average_weight
from .base import Context, Threshold
from .history import complement, reached


class MaximumState(NamedTuple):
    """The memory of `AverageMaximum`.

    Attributes:
        maxima_seen: int32 number of maxima other than zero, per leaf.
        maxima_average: their average, per leaf.
    """

    maxima_seen: jax.Array
    maxima_average: jax.Array


@dataclasses.dataclass(frozen=True, repr=False)
class AverageMaximum(Threshold):
    """Scale a leaf's outliers so that the largest one equals the average maximum.

    Entries above the average T of the leaf's maxima are multiplied by T / max, and so
    keep their proportions.
    """

    decay: Scalar
    kind = "average-maximum"
    remembers = True
    reads = "entries"

    def __post_init__(self):
        require_fraction("gamma3", self.decay)

    def init(self, blocks: Blocks, params: Any) -> MaximumState:
        del params
        count, dtype = len(blocks.leaves.arrays), blocks.leaves.dtype
        return MaximumState(jnp.zeros(count, jnp.int32), jnp.zeros(count, dtype))

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        del norms
        sizes = _sizes(context)
        if not sizes:
            return [], state
        # A maximum may drop NaN, but never inf.
        maxima = [
            jnp.max(jnp.where(jnp.isnan(size), jnp.inf, size), initial=0)
            for size in sizes
        ]
        largest = jnp.stack(context.blocks.over_devices(linf, maxima))
        # Infinite entries are left to the next clip or to the guard.
        enters = (largest > 0) & (largest < jnp.inf)
        seen, average = state
        weight = average_weight(self.decay, seen, average.dtype)
        finite = jnp.where(enters, largest, 1)
        average = jnp.where(enters, average + weight * (finite - average), average)
        seen = seen + enters.astype(jnp.int32)
        scale = average / finite
        is_finite = largest < jnp.inf
        thresholds = [
            jnp.where((size > average[i]) & is_finite[i], scale[i] * size, jnp.inf)
            for i, size in enumerate(sizes)
        ]
        return thresholds, MaximumState(seen, average)


@dataclasses.dataclass(frozen=True, repr=False)
class SecondMoment(Threshold):
    """``√(θ·v)``, for v the optimizer's average of squares before this step.

    v is the extra argument ``second_moment``, a tree like the updates. Entries without
    an average so far (v = 0) are not clipped.
    """

    theta: Scalar
    start: Scalar
    period: Scalar | None
    kind = "second-moment"
    reads = "entries"

    def __post_init__(self):
        require_number("theta", self.theta)
        require_number("warmup_steps", self.start, infinite=False)
        if self.period is not None:
            require_number("period", self.period, lowest=1, infinite=False)

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        del norms
        # At the start and after each reset, v is an average of too few steps.
        step = context.steps + 1
        is_ready = reached(step, self.start)
        if self.period is not None:
            period = jnp.asarray(self.period).astype(step.dtype)
            is_ready &= reached(step % period, self.start)
        moment = context.argument("second_moment", "spam_clip")
        theta = context.cast(self.theta)

        def limit(moment: jax.Array) -> jax.Array:
            # For complex entries Optax keeps the average of |g|² in a complex array.
            square = jnp.real(moment).astype(context.dtype)
            is_known = is_ready & (square > 0)
            root = jnp.sqrt(theta * jnp.where(is_known, square, 1))
            return jnp.where(is_known, root, jnp.inf)

        moments = context.blocks.leaves.aligned(moment, "second_moment")
        return list(map(limit, moments)), state


@dataclasses.dataclass(frozen=True, repr=False)
class PowerAverage(Threshold):
    """``(average of |g|^α)^(1/α)``, entry by entry.

    The gradient g is the extra argument ``gradient``, since this threshold clips a
    momentum. The average starts at zero without a bias correction, as published.
    """

    decay: Scalar
    power: Scalar
    kind = "power-average"
    remembers = True
    reads = "entries"

    def __post_init__(self):
        require_fraction("b2", self.decay)
        require_number("alpha", self.power, lowest=1e-3, infinite=False)

    def init(self, blocks: Blocks, params: Any) -> Any:
        return zeros_like(params, blocks.leaves.dtype)

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        del norms
        leaves = context.blocks.leaves
        gradient = context.argument("gradient", "acclip")
        power = context.cast(self.power)
        fresh = complement(self.decay, context.dtype)
        averages = leaves.aligned(state, "the averages in the state")

        def next_average(average: jax.Array, leaf: jax.Array) -> jax.Array:
            size = jnp.abs(widen(leaf, context.dtype))
            return average + fresh * (size**power - average)

        new = list(map(next_average, averages, leaves.aligned(gradient, "gradient")))
        return [average ** (1 / power) for average in new], leaves.placed(state, new)


@dataclasses.dataclass(frozen=True, repr=False)
class QuantizationRange(Threshold):
    """The widest range in which typical entries stay ``steps`` steps away from 0."""

    dtype: DTypeLike
    steps: Scalar
    kind = "quantization-range"
    reads = "entries"

    def __post_init__(self):
        format_limits(self.dtype)
        smallest = float(jnp.finfo(jnp.float32).tiny)
        require_number("steps", self.steps, lowest=smallest, infinite=False)

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        del norms
        largest, smallest = format_limits(self.dtype)
        steps = context.cast(self.steps)
        # The span of bfloat16 overflows float32.
        span = min(largest / smallest, float(jnp.finfo(context.dtype).max))
        # The geometric mean of each leaf, since outliers hardly change it.
        sums = context.blocks.over_devices(l1, list(map(_logarithms, _sizes(context))))

        def limit(part: jax.Array) -> jax.Array:
            typical = jnp.exp(part[0] / jnp.maximum(part[1], 1))
            return jnp.where(part[1] > 0, typical / steps * span, jnp.inf)

        return list(map(limit, sums)), state


def _sizes(context: Context) -> list[jax.Array]:
    return context.measure(context.blocks.leaves.arrays)


def _logarithms(sizes: jax.Array) -> jax.Array:
    """Return the sum of log |x| over nonzero finite entries, and their number."""
    # XLA flushes subnormal numbers to zero, so that they count as zeros.
    counts = (sizes >= jnp.finfo(sizes.dtype).tiny) & (sizes < jnp.inf)
    logarithm = jnp.where(counts, jnp.log(jnp.where(counts, sizes, 1)), 0)
    return jnp.stack([jnp.sum(logarithm), jnp.sum(counts, dtype=sizes.dtype)])


def quantization_range(
    dtype: DTypeLike = jnp.int8, steps: Scalar = 4.0
) -> QuantizationRange:
    r"""Return the widest range of each leaf in which a format resolves most entries.

    .. math:: c = \frac{m}{k} \cdot \frac{q_\text{max}}{q_\text{min}}, \qquad
        m = \exp \operatorname{mean} \log \lvert x \rvert

    A quantizer that maps c to the largest number :math:`q_\text{max}` of the format
    then maps the geometric mean m of the leaf's entries to k times the smallest number
    above zero, :math:`q_\text{min}`. A larger range, for an outlier beyond c, would map
    them closer to zero. The mean leaves out zeros, NaN and infinite entries. The
    threshold costs one reduction and no sort. Use it with `clipjax.clip_entries`.

    Args:
        dtype: the format: signed integer or floating, of at most 16 bits.
        steps: k, the number of steps between zero and typical entries, above 0. With 4,
            95 % of Gaussian entries round to a nonzero signed integer.

    Raises:
        TypeError: dtype is not such a format, or steps is not a number.
        ValueError: steps is not above 0, or infinite.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> source = clipjax.thresholds.quantization_range(jnp.int8)
        >>> clip = clipjax.clip_entries(source)
        >>> grads = jnp.append(jnp.full(999, 0.1), 1000.0)
        >>> _, state = clip.update(grads, None)
        >>> print(f"{state.clip_info.clip_threshold:.1f}")
        3.2
    """
    return QuantizationRange(dtype, steps)
