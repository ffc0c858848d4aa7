"""Clips that work hand in hand with an optimizer, whose memory they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core.clip import Clip
from ..core.measure import first_nonfinite_leaf
from ..core.meshes import mesh_axes
from ..core.state import keep_if
from ..core.trees import Leaves, is_clippable
from ..granularity import leaf as each_leaf
from .inner import as_transformation

Observe = Callable[[Any, Any], Mapping[str, Any]]


class CompoundState(NamedTuple):
    """The state of a clip and an optimizer together.

    Attributes:
        clip_state: the clip's own state, a `clipjax.ClipState`.
        inner_state: the optimizer's, or the momentum's.
    """

    clip_state: Any
    inner_state: Any


class CompoundClip(optax.GradientTransformationExtraArgs):
    """A gradient transformation that prints the clip in it."""

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
        observe: gives the clip's extra arguments from the incoming updates and the
            optimizer's state: that before its step where the clip comes first, that
            after it otherwise.
        clip_first: whether the clip comes before the optimizer.
        holds: whether the optimizer's state stays as it is where updates are NaN or
            inf.
    """

    clip: Clip
    inner: optax.GradientTransformationExtraArgs
    observe: Observe
    clip_first: bool
    holds: bool = False

    def init(self, params: Any) -> CompoundState:
        """Starts both."""
        _refuse_eight_bits(params)
        return CompoundState(self.clip.init(params), self.inner.init(params))

    def update(
        self, updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, CompoundState]:
        """Runs both, in order."""
        _refuse_eight_bits(updates)
        clip_state, inner = state
        if self.clip_first:
            seen = self.observe(updates, inner)
            clipped, clip_state = self.clip.update(updates, clip_state, params, **seen)
            steps, inner = self.inner.update(clipped, inner, params, **extra)
        else:
            moved, inner = self.inner.update(updates, inner, params, **extra)
            # Optimizers average integers as well, which a clip leaves alone.
            moved = jax.tree.map(
                lambda new, old: new if is_clippable(old) else old, moved, updates
            )
            seen = self.observe(updates, inner)
            steps, clip_state = self.clip.update(moved, clip_state, params, **seen)
        if self.holds:
            leaves = Leaves.of(updates)
            axes = mesh_axes(leaves, self.clip.clipper.axis_name, params)
            is_good = first_nonfinite_leaf(each_leaf().of(leaves, axes)) < 0
            inner = keep_if(is_good, inner, state.inner_state)
        return steps, CompoundState(clip_state, inner)


def clip_before(inner: Any, clip: Clip, observe: Observe) -> CompoundClip:
    """Clips what an optimizer gets, by what its state says before the step."""
    inner = as_transformation("inner", inner)
    compound = Compound(clip, inner, observe, clip_first=True)
    return CompoundClip(compound.init, compound.update)


def clip_after(
    inner: Any, clip: Clip, observe: Observe, holds: bool = False
) -> CompoundClip:
    """Clips what an optimizer gives, by what its state says after the step."""
    inner = optax.with_extra_args_support(inner)
    compound = Compound(clip, inner, observe, clip_first=False, holds=holds)
    return CompoundClip(compound.init, compound.update)


def _refuse_eight_bits(tree: Any) -> None:
    """Refuses leaves in whose dtype an optimizer's averages come out as 0 or NaN."""
    leaves = Leaves.of(tree)
    for position, leaf in enumerate(leaves.arrays):
        if jnp.finfo(leaf.dtype).bits < 16:
            raise TypeError(
                f"{leaves.names[position] or 'the update'} has dtype {leaf.dtype}, too narrow for the "
                "moments that this clip keeps: cast it, or put clipjax.unscale(1.0) "
                "before, and keep parameters in float32"
            )


def second_moment(state: Any) -> Any:
    """Finds Adam's average of squares, ``nu``, in an optimizer's state."""
    found = optax.tree_utils.tree_get(state, "nu")
    if found is None:
        raise ValueError(
            "inner must keep a second moment under the name nu, as optax.adam, "
            "optax.adamw and optax.scale_by_rms do"
        )
    return found
