"""What a clip measures where that is not the updates themselves.

Each part gives from the `Context` of a step a tree with the leaves of the updates.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from .casts import widen
from .thresholds.averages import bias_correction
from .thresholds.base import Context
from .trees import NamedLeaves


@dataclasses.dataclass(frozen=True)
class RelativeChange:
    """The updates, each relative to what its parameter may change by."""

    relative: Any
    absolute: Any

    def __call__(self, context: Context) -> NamedLeaves:
        """Divides, entry by entry."""
        params = context.parameters("clippy").arrays
        cast = functools.partial(jnp.asarray, dtype=context.dtype)

        def ratio(update: jax.Array, param: jax.Array) -> jax.Array:
            size, weight = (
                jnp.abs(widen(leaf, context.dtype)) for leaf in (update, param)
            )
            allowed = cast(self.relative) * weight + cast(self.absolute)
            # What may not change at all is divided by the least number there is.
            allowed = jnp.maximum(allowed, jnp.finfo(context.dtype).tiny)
            return jnp.where(size > 0, size / allowed, size)

        return context.leaves.replace(
            {
                name: ratio(update, params[name])
                for name, update in context.leaves.arrays.items()
            }
        )


@dataclasses.dataclass(frozen=True)
class WithoutDecay:
    """The gradient, from updates to which weight decay has been added."""

    decay: Any

    def __call__(self, context: Context) -> NamedLeaves:
        """Takes the decay off again."""
        params = context.parameters("larc_clip").arrays
        decay = jnp.asarray(self.decay, context.dtype)
        return context.leaves.replace(
            {
                name: widen(update, context.dtype)
                - decay * widen(params[name], context.dtype)
                for name, update in context.leaves.arrays.items()
            }
        )


@dataclasses.dataclass(frozen=True)
class Surprise:
    """The gradient, relative to the root of Adam's second moment after this step.

    The gradient and Adam's state come as the extra arguments ``gradient`` and ``adam``.
    """

    decay: Any
    epsilon: Any

    def __call__(self, context: Context) -> NamedLeaves:
        """Corrects the moment for its bias, then divides."""
        adam = context.argument("adam", "stable_update_clip")
        gradient = context.argument("gradient", "stable_update_clip")
        gradients = context.aligned(gradient, "gradient")
        moments = context.aligned(adam.nu, "moments").arrays
        cast = functools.partial(jnp.asarray, dtype=context.dtype)
        correction = bias_correction(self.decay, adam.count, context.dtype)
        least = cast(self.epsilon) ** 2

        def ratio(leaf: jax.Array, moment: jax.Array) -> jax.Array:
            unbiased = jnp.real(moment).astype(context.dtype) / correction
            return widen(leaf, context.dtype) / jnp.sqrt(jnp.maximum(unbiased, least))

        return gradients.replace(
            {
                name: ratio(leaf, moments[name])
                for name, leaf in gradients.arrays.items()
            }
        )
