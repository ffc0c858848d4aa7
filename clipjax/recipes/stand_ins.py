"""Arrays that recipes measure instead of the updates: `stand_in` of `clip_by`."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ..core.checks import Scalar
from ..core.dtypes import widen
from ..thresholds.averages import bias_correction
from ..thresholds.base import Context


@dataclasses.dataclass(frozen=True)
class RelativeChange:
    """Each update divided by the change that its parameter is allowed."""

    relative: Scalar
    absolute: Scalar

    def __call__(self, arrays: list[jax.Array], context: Context) -> list[jax.Array]:
        relative, absolute = context.cast(self.relative), context.cast(self.absolute)

        def ratio(update: jax.Array, param: jax.Array) -> jax.Array:
            size, weight = (jnp.abs(widen(x, context.dtype)) for x in (update, param))
            # Where no change is allowed, divide by the smallest normal number.
            least = jnp.finfo(context.dtype).tiny
            allowed = jnp.maximum(relative * weight + absolute, least)
            # An update of zero is always allowed, and NaN stays NaN.
            return jnp.where(size > 0, size / allowed, size)

        return list(map(ratio, arrays, context.parameters("clippy")))


@dataclasses.dataclass(frozen=True)
class Gradient:
    """The extra argument ``gradient``."""

    who: str

    def __call__(self, arrays: list[jax.Array], context: Context) -> list[jax.Array]:
        del arrays
        gradient = context.argument("gradient", self.who)
        return context.blocks.leaves.aligned(gradient, "gradient")


@dataclasses.dataclass(frozen=True)
class Surprise:
    """The gradient, relative to the root of Adam's second moment after this step.

    The gradient and Adam's state are the extra arguments ``gradient`` and ``adam``.
    """

    decay: Scalar
    epsilon: Scalar

    def __call__(self, arrays: list[jax.Array], context: Context) -> list[jax.Array]:
        del arrays
        adam = context.argument("adam", "stable_update_clip")
        gradient = context.argument("gradient", "stable_update_clip")
        leaves = context.blocks.leaves
        correction = bias_correction(self.decay, adam.count, context.dtype)
        least = context.cast(self.epsilon) ** 2

        def ratio(leaf: jax.Array, moment: jax.Array) -> jax.Array:
            unbiased = jnp.real(moment).astype(context.dtype) / correction
            wide = widen(leaf, context.dtype)
            root = jnp.sqrt(jnp.maximum(unbiased, least))
            return wide / root.astype(wide.dtype)

        gradients = leaves.aligned(gradient, "gradient")
        return list(map(ratio, gradients, leaves.aligned(adam.nu, "moments")))
