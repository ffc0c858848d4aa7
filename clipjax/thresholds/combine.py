"""Combinators: thresholds made of other thresholds."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..granularity import Blocks
from .base import Context, Threshold, fill, require_integer, require_number
from .fixed import as_threshold


@dataclasses.dataclass(frozen=True)
class Combined(Threshold):
    """Asks several sources and joins their answers, block by block."""

    sources: tuple[Threshold, ...]

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Tells whether any of the sources does."""
        return any(source.remembers for source in self.sources)

    def init(self, context: Context) -> Any:
        """Starts all sources."""
        return tuple(source.init(context) for source in self.sources)

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Asks all sources, and joins their answers."""
        answers = [
            source.update(norms, memory, context)
            for source, memory in zip(self.sources, state, strict=True)
        ]
        thresholds = [fill(threshold, norms) for threshold, _ in answers]
        return self._join(thresholds, context), tuple(memory for _, memory in answers)

    def _join(self, thresholds: list[Blocks], context: Context) -> Blocks:
        raise NotImplementedError


class Minimum(Combined):
    """The smallest of several thresholds."""

    kind = "minimum"

    def _join(self, thresholds, context):
        del context
        return jax.tree.map(
            lambda *values: functools.reduce(jnp.minimum, values), *thresholds
        )


class Maximum(Combined):
    """The largest of several thresholds."""

    kind = "maximum"

    def _join(self, thresholds, context):
        del context
        return jax.tree.map(
            lambda *values: functools.reduce(jnp.maximum, values), *thresholds
        )


@dataclasses.dataclass(frozen=True)
class Scaled(Combined):
    """A multiple of a threshold."""

    factor: float
    kind = "scaled"

    def _join(self, thresholds, context):
        del context
        return jax.tree.map(lambda value: self.factor * value, thresholds[0])


@dataclasses.dataclass(frozen=True)
class After(Combined):
    """One threshold first, another later."""

    steps: int
    kind = "after"

    def _join(self, thresholds, context):
        later, earlier = thresholds
        started = context.count >= self.steps
        return jax.tree.map(lambda x, y: jnp.where(started, x, y), later, earlier)


def minimum(*sources: Any) -> Minimum:
    """Takes the smallest of several thresholds, block by block.

    Args:
        *sources: anything that `clipjax.clip_by` accepts as a threshold.

    Example:
        >>> import clipjax
        >>> from clipjax import thresholds
        >>> learnt = thresholds.warmup_statistic(100)
        >>> clip = clipjax.clip_by(thresholds.minimum(learnt, 1.0))
    """
    return Minimum(_sources("minimum", sources))


def maximum(*sources: Any) -> Maximum:
    """Takes the largest of several thresholds, block by block; see `minimum`."""
    return Maximum(_sources("maximum", sources))


def scaled(source: Any, factor: float) -> Scaled:
    """Multiplies a threshold, for one proportional to a learning rate say.

    Args:
        source: anything that `clipjax.clip_by` accepts as a threshold.
        factor: a finite number of at least 0.

    Example:
        >>> import clipjax, optax
        >>> rate = optax.cosine_decay_schedule(0.1, 1000)
        >>> clip = clipjax.clip_by(clipjax.thresholds.scaled(rate, 10.0))
    """
    require_number("factor", factor, infinite=False)
    return Scaled((as_threshold(source),), factor)


def after(steps: int, then: Any, before: Any = None) -> After:
    """Uses one threshold for the first steps and another afterwards.

    Both sources are asked at every step, so that one that learns is learning while
    the other is in force.

    Args:
        steps: the number of updates that use ``before``.
        then: the threshold from then on.
        before: the threshold until then; None clips nothing.
    """
    require_integer("steps", steps, 0)
    return After((as_threshold(then), as_threshold(before)), steps)


def _sources(name: str, sources: tuple[Any, ...]) -> tuple[Threshold, ...]:
    if not sources:
        raise TypeError(f"{name} needs at least one threshold")
    return tuple(map(as_threshold, sources))
