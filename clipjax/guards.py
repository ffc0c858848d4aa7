"""Guards: what a clip does about NaN and inf in the gradient.

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
    """What the engine needs of a guard. Parts are frozen dataclasses.

    Attributes:
        hides: `admit` takes NaN and inf away before they can be measured.
    """

    hides: bool = False

    def admit(self, leaf: jax.Array) -> jax.Array:
        """Prepares a leaf before it is measured."""
        return leaf

    def release(self, leaf: jax.Array, step_is_finite: jax.Array) -> jax.Array:
        """Settles a clipped leaf before it leaves the clip."""
        del step_is_finite
        return leaf

    def __repr__(self) -> str:
        """Prints the guard's name."""
        return type(self).__name__.lower()


@dataclasses.dataclass(frozen=True, repr=False)
class Propagate(Guard):
    """Lets a bad entry turn its whole block into NaN; see `guards`."""


@dataclasses.dataclass(frozen=True, repr=False)
class Zero(Guard):
    """Replaces the whole update by zeros; see `guards`."""

    def release(self, leaf: jax.Array, step_is_finite: jax.Array) -> jax.Array:
        """Selects: zero times NaN would be NaN."""
        return jnp.where(step_is_finite, leaf, jnp.zeros_like(leaf))


@dataclasses.dataclass(frozen=True, repr=False)
class Drop(Guard):
    """Replaces the bad entries by zeros; see `guards`."""

    hides = True

    def admit(self, leaf: jax.Array) -> jax.Array:
        """Selects: zero times NaN would be NaN."""
        return jnp.where(jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf))


propagate = Propagate()
zero = Zero()
drop = Drop()
