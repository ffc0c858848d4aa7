"""Guards: what a clip does about NaN and infinity in the gradient.

A guard fills the ``nonfinite`` slot of `clipjax.clip_by`. To keep a bad step away from
the whole optimizer, wrap it in `clipjax.skip_nonfinite` instead.

| guard | NaN and infinite entries become | the other entries become |
|---|---|---|
| `propagate` | NaN | NaN in the same block, so that nothing is lost silently |
| `zero` | 0 | 0 in the whole tree |
| `drop` | 0 | clipped as if the non-finite entries had been 0 |
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


class Guard:
    """The protocol between a guard and the engine. Guards are frozen dataclasses.

    Attributes:
        admits_all: whether `admit` returns leaves unchanged.
    """

    admits_all: bool = True

    def admit(self, leaf: jax.Array) -> jax.Array:
        """Return the leaf that is measured and clipped."""
        return leaf

    def release(self, leaf: jax.Array, step_is_finite: jax.Array) -> jax.Array:
        """Return the leaf that leaves the clip, given whether the step was finite."""
        del step_is_finite
        return leaf

    def __repr__(self) -> str:
        return type(self).__name__.lower()


@dataclasses.dataclass(frozen=True, repr=False)
class Propagate(Guard):
    """Turn the whole block of a non-finite entry into NaN; see `guards`."""


@dataclasses.dataclass(frozen=True, repr=False)
class Zero(Guard):
    """Replace the whole update by zeros; see `guards`."""

    def release(self, leaf: jax.Array, step_is_finite: jax.Array) -> jax.Array:
        # A selection, since zero times NaN is NaN.
        return jax.lax.select(step_is_finite, leaf, jnp.zeros_like(leaf))


@dataclasses.dataclass(frozen=True, repr=False)
class Drop(Guard):
    """Replace the non-finite entries by zeros; see `guards`."""

    admits_all = False

    def admit(self, leaf: jax.Array) -> jax.Array:
        return jax.lax.select(jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf))


propagate = Propagate()
zero = Zero()
drop = Drop()
