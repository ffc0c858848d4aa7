"""Thresholds that combine other thresholds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.blocks import Blocks, Values
from ..core.checks import require_integer, require_number
from .base import Context, Threshold
from .given import ThresholdLike, as_threshold


@dataclasses.dataclass(frozen=True, repr=False)
class Combined(Threshold):
    """Several thresholds, combined block by block."""

    sources: tuple[Threshold, ...]

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Whether any of the sources has a memory."""
        return any(source.remembers for source in self.sources)

    @property
    def reads(self) -> str:  # type: ignore[override]
        """The part of the gradient that the sources use."""
        found = {source.reads for source in self.sources} - {"nothing"}
        if len(found) > 1:
            raise ValueError(f"{self!r} joins thresholds of blocks and of entries")
        return found.pop() if found else "nothing"

    def init(self, blocks: Blocks, params: Any) -> Any:
        return tuple(
            {source.kind: source.init(blocks, params)} if source.remembers else ()
            for source in self.sources
        )

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        thresholds, memories = [], []
        before: Any = state or [()] * len(self.sources)
        for source, memory in zip(self.sources, before, strict=True):
            kept = memory[source.kind] if source.remembers else ()
            threshold, kept = source.update(norms, kept, context)
            thresholds.append(threshold)
            memories.append({source.kind: kept} if source.remembers else ())
        joined = [self.join(each, context) for each in zip(*thresholds, strict=True)]
        return joined, tuple(memories)

    def join(self, limits: Sequence[jax.Array], context: Context) -> jax.Array:
        """Return a block's threshold from those of the sources."""
        raise NotImplementedError


class Minimum(Combined):
    """The smallest of several thresholds."""

    kind = "minimum"

    def join(self, limits, context):
        del context
        return functools.reduce(jnp.minimum, limits)


class Maximum(Combined):
    """The largest of several thresholds."""

    kind = "maximum"

    def join(self, limits, context):
        del context
        return functools.reduce(jnp.maximum, limits)


@dataclasses.dataclass(frozen=True, repr=False)
class Scaled(Combined):
    """A multiple of a threshold."""

    factor: float
    kind = "scaled"

    def join(self, limits, context):
        return context.cast(self.factor) * limits[0]


@dataclasses.dataclass(frozen=True, repr=False)
class After(Combined):
    """One threshold first, another later."""

    steps: int
    kind = "after"

    def join(self, limits, context):
        later, earlier = limits
        return jnp.where(context.steps >= self.steps, later, earlier)


def minimum(*sources: ThresholdLike) -> Minimum:
    """Return the smallest of several thresholds, block by block.

    Args:
        *sources: anything that `clipjax.clip_by` accepts as a threshold.

    Example:
        >>> import clipjax
        >>> from clipjax import thresholds
        >>> learnt = thresholds.warmup_statistic(100)
        >>> clip = clipjax.clip_by(thresholds.minimum(learnt, 1.0))
    """
    return Minimum(_sources("minimum", sources))


def maximum(*sources: ThresholdLike) -> Maximum:
    """Return the largest of several thresholds, block by block; see `minimum`."""
    return Maximum(_sources("maximum", sources))


def scaled(source: ThresholdLike, factor: float) -> Scaled:
    """Return a multiple of a threshold, such as one proportional to a learning rate.

    Args:
        source: anything that `clipjax.clip_by` accepts as a threshold.
        factor: a finite number of at least 0.

    Example:
        >>> import clipjax, optax
        >>> rate = optax.cosine_decay_schedule(0.1, 1000)
        >>> clip = clipjax.clip_by(clipjax.thresholds.scaled(rate, 10.0))
    """
    require_number("factor", factor, infinite=False)
    return Scaled((as_threshold(source, "source"),), factor)


def after(
    steps: int, then: ThresholdLike, before: ThresholdLike | None = None
) -> After:
    """Use one threshold for the first steps and another afterwards.

    Both sources are updated at every step, so that one with a memory learns also while
    the other one is used.

    Args:
        steps: the number of updates that use ``before``.
        then: the threshold from then on.
        before: the threshold until then; None clips nothing.
    """
    require_integer("steps", steps, 0)
    return After((as_threshold(then, "then"), as_threshold(before, "before")), steps)


def _sources(name: str, sources: tuple[Any, ...]) -> tuple[Threshold, ...]:
    if not sources:
        raise TypeError(f"{name} needs at least one threshold")
    return tuple(map(as_threshold, sources))
