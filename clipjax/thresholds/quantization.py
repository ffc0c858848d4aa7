"""Thresholds from the format that the entries are going to be quantized to."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..distributed import beside
from ..floats import format_limits
from ..granularity import Blocks
from ..sums import total
from .base import Context, Threshold, require_number


@dataclasses.dataclass(frozen=True)
class QuantizationRange(Threshold):
    """As wide as a format allows, for typical entries to stay so many steps from 0."""

    dtype: Any
    steps: Any
    kind = "quantization-range"

    def __post_init__(self):
        """Checks the format and the number."""
        format_limits(self.dtype)
        smallest = float(jnp.finfo(jnp.float32).tiny)
        require_number("steps", self.steps, lowest=smallest, infinite=False)

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Takes each leaf's geometric mean, which an outlier hardly moves."""
        if not isinstance(norms, dict):
            raise ValueError(f"threshold {self.kind} needs granularity.element()")
        largest, smallest = format_limits(self.dtype)
        steps = jnp.asarray(self.steps, context.dtype)
        # bfloat16 spans more than float32 can tell.
        span = min(largest / smallest, float(jnp.finfo(context.dtype).max))
        totals = {name: _logarithms(sizes) for name, sizes in norms.items()}
        thresholds = {}
        for name, part in context.joined(totals, jax.lax.psum).items():
            part = beside(part, norms[name])
            typical = jnp.exp(part[0] / jnp.maximum(part[1], 1))
            limit = typical / steps * span
            thresholds[name] = jnp.where(part[1] > 0, limit, jnp.inf)
        return thresholds, state


def _logarithms(sizes: jax.Array) -> jax.Array:
    """Sums log |x| over the entries that are neither zero nor infinite, and counts."""
    info = jnp.finfo(sizes.dtype)
    # The engine gives infinite entries the largest number; XLA takes what is below
    # the smallest normal one for zero.
    counts = (sizes >= info.tiny) & (sizes < info.max)
    logarithm = jnp.where(counts, jnp.log(jnp.where(counts, sizes, 1)), 0)
    return jnp.stack([total(logarithm), total(counts.astype(sizes.dtype))])


def quantization_range(dtype: Any = jnp.int8, steps: Any = 4.0) -> QuantizationRange:
    r"""Gives each leaf the widest range in which a format still resolves its bulk.

    .. math:: c = \frac{m}{k} \cdot \frac{q_\text{max}}{q_\text{min}}, \qquad
        m = \exp \operatorname{mean} \log \lvert x \rvert

    A quantizer that maps c to the largest number :math:`q_\text{max}` of the format
    then puts the geometric mean m of the leaf's entries k times the smallest number
    above zero, :math:`q_\text{min}`, away from zero. An outlier beyond c would push
    them closer. Zeros, NaN and infinite entries do not count. It costs one reduction,
    and no sort. Goes with ``granularity.element()``.

    Args:
        dtype: the format: signed integer or floating, of at most 16 bits.
        steps: k, the steps that typical entries keep from zero, above 0. Of Gaussian
            entries, 4 leave 95 % to a signed integer that is not zero.

    Raises:
        TypeError: dtype is no such format, or steps no number.
        ValueError: steps is not above 0, or infinite.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> source = clipjax.thresholds.quantization_range(jnp.int8)
        >>> clip = clipjax.clip_by(source, granularity=clipjax.granularity.element())
        >>> grads = jnp.append(jnp.full(999, 0.1), 1000.0)
        >>> _, state = clip.update(grads, None)
        >>> print(f"{state.info.threshold:.1f}")
        3.2
    """
    return QuantizationRange(dtype, steps)
