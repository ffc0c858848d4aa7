"""Clips combined with an optimizer, whose state they use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core.clip import Clip
from ..core.trees import Leaves, is_clippable
from .inner import (
    as_transformation,
    checked_own_state,
    first_bad_leaf,
    state_before_if,
)

Observe = Callable[[Any, Any], Mapping[str, Any]]


class CompoundState(NamedTuple):
    """The state of a clip and an optimizer together.

    Attributes:
        clip_state: the state of the clip, a `clipjax.ClipState`.
        inner_state: the state of the optimizer, or of the momentum.
    """

    clip_state: Any
    inner_state: Any


class CompoundClip(optax.GradientTransformationExtraArgs):
    """A clip combined with an optimizer; its repr is that of the clip."""

    @property
    def clipper(self) -> Any:
        """The parts of the clip."""
        return self.update.__self__.clip.clipper  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return repr(self.clipper)


@dataclasses.dataclass(frozen=True)
class Compound:
    """A clip before or after an optimizer.

    Attributes:
        clip: the clip.
        inner: the optimizer, with support for extra arguments.
        observe: maps the incoming updates and the optimizer's state to the clip's extra
            arguments: the state before its step if the clip comes first, else the
            state after it.
        clip_first: whether the clip comes before the optimizer.
        holds: whether the optimizer's state is left unchanged on a step with NaN or inf
            in the updates.
    """

    clip: Clip
    inner: optax.GradientTransformationExtraArgs
    observe: Observe
    clip_first: bool
    holds: bool = False

    def init(self, params: Any) -> CompoundState:
        """Return the state before the first step."""
        _refuse_eight_bits(params)
        return CompoundState(self.clip.init(params), self.inner.init(params))

    def update(
        self, updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, CompoundState]:
        """Apply the clip and the optimizer, in their order."""
        _refuse_eight_bits(updates)
        who = f"{self.clip!r} with an optimizer"
        checked_own_state(state, CompoundState, who, CompoundState._fields)
        clip_state, before = state
        if self.clip_first:
            seen = self.observe(updates, before)
            clipped, clip_state = self.clip.update(updates, clip_state, params, **seen)
            steps, after = self.inner.update(clipped, before, params, **extra)
        else:
            moved, after = self.inner.update(updates, before, params, **extra)
            # Optimizers average integers as well; a clip leaves them unchanged.
            moved = jax.tree.map(
                lambda new, old: new if is_clippable(old) else old, moved, updates
            )
            seen = self.observe(updates, after)
            steps, clip_state = self.clip.update(moved, clip_state, params, **seen)
        if self.holds:
            axis_name = self.clip.clipper.axis_name
            is_bad = first_bad_leaf(updates, axis_name, params) >= 0
            after = state_before_if(is_bad, before, after)
        return steps, CompoundState(clip_state, after)


def clip_before(inner: Any, clip: Clip, observe: Observe) -> CompoundClip:
    """Clip an optimizer's input, given its state before the step."""
    inner = as_transformation("inner", inner)
    compound = Compound(clip, inner, observe, clip_first=True)
    return CompoundClip(compound.init, compound.update)


def clip_after(
    inner: Any, clip: Clip, observe: Observe, holds: bool = False
) -> CompoundClip:
    """Clip an optimizer's output, given its state after the step."""
    inner = optax.with_extra_args_support(inner)
    compound = Compound(clip, inner, observe, clip_first=False, holds=holds)
    return CompoundClip(compound.init, compound.update)


def _refuse_eight_bits(tree: Any) -> None:
    """Refuse leaves in a dtype too narrow for an optimizer's averages (0 or NaN)."""
    leaves = Leaves.of(tree)
    for position, leaf in enumerate(leaves.arrays):
        if jnp.finfo(leaf.dtype).bits < 16:
            name = leaves.names[position]
            raise TypeError(
                f"{name or 'the update'} has dtype {leaf.dtype}, too narrow for the "
                "moments that this clip keeps: cast it, or put clipjax.unscale(1.0) "
                "before, and keep parameters in float32"
            )


def second_moment(state: Any) -> Any:
    """Return Adam's average of squares, ``nu``, from an optimizer's state."""
    found = optax.tree_utils.tree_get(state, "nu")
    if found is None:
        raise ValueError(
            "inner must keep a second moment under the name nu, as optax.adam, "
            "optax.adamw and optax.scale_by_rms do"
        )
    return found
