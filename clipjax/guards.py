"""Guards: what a clip does about NaN and infinity in the gradient.

A guard is the ``nonfinite`` slot of `clipjax.clip_by`. To leave a whole optimizer
untouched by a bad step, wrap it in `clipjax.skip_nonfinite` instead.

| guard | the entries | the rest |
|---|---|---|
| `propagate` | NaN | NaN in the same block, so that nothing is lost silently |
| `zero` | 0 | 0 in the whole tree |
| `drop` | 0 | clipped as if those entries had been 0 |
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


class Guard:
    """The protocol between a guard and the engine. Guards are frozen dataclasses.

    Attributes:
        admits_all: `admit` returns leaves unchanged.
    """

    admits_all: bool = True

    def admit(self, leaf: jax.Array) -> jax.Array:
        """Return what is measured and clipped of a leaf."""
        return leaf

    def release(self, leaf: jax.Array, step_is_finite: jax.Array) -> jax.Array:
        """Return what leaves the clip, whether or not the gradient was finite."""
        del step_is_finite
        return leaf

    def __repr__(self) -> str:
        return type(self).__name__.lower()


@dataclasses.dataclass(frozen=True, repr=False)
class Propagate(Guard):
    """Turn the whole block of a bad entry into NaN; see `guards`."""


@dataclasses.dataclass(frozen=True, repr=False)
class Zero(Guard):
    """Replace the whole update by zeros; see `guards`."""

    def release(self, leaf: jax.Array, step_is_finite: jax.Array) -> jax.Array:
        # A selection, since zero times NaN is NaN.
        return jax.lax.select(step_is_finite, leaf, jnp.zeros_like(leaf))


@dataclasses.dataclass(frozen=True, repr=False)
class Drop(Guard):
    """Replace the bad entries by zeros; see `guards`."""

    admits_all = False

    def admit(self, leaf: jax.Array) -> jax.Array:
        return jax.lax.select(jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf))


propagate = Propagate()
zero = Zero()
drop = Drop()
