"""The clip of singular values, a separate transformation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import guards, rules
from ..core.blocks import Blocks
from ..core.checks import require_name, require_part
from ..core.clip import Clip, Clipper, all_valid
from ..core.dtypes import narrow
from ..core.measure import Measured, first_not_finite
from ..core.meshes import AxisNames, as_tuple
from ..core.report import next_info, summarize
from ..core.shorten import multiplier
from ..core.state import ClipState, keep_if
from ..granularity import Stacked, leaf
from ..guards import Guard
from ..jax_internals import resharded, spec_of
from ..norms import linf
from ..rules import Rule
from ..thresholds.base import Context
from ..thresholds.given import ThresholdLike, as_threshold
from .matrices import as_matrices
from .methods import Method, PowerIteration


@dataclasses.dataclass(frozen=True, repr=False)
class SpectralClipper(Clipper):
    """The parts of a clip of singular values; see `clip_singular_values`."""

    method: Method = PowerIteration()

    def update(
        self, updates: Any, state: Any = None, params: Any = None, **extra: Any
    ) -> tuple[Any, ClipState]:
        """Clip a tree, and report the largest singular value of each leaf."""
        leaves, blocks, state = self.begin(updates, state, params)
        _refuse_shards(blocks)
        context = self.context(blocks, state.clip_steps, params, extra)

        admitted = leaves.map(self.nonfinite.admit)
        matrices = as_matrices(admitted, blocks)
        found = [self.method.measure(matrix) for matrix in matrices]
        raw = [
            value.reshape(s) for (value, _), s in zip(found, blocks.shapes, strict=True)
        ]
        norms = [jnp.where(value < jnp.inf, value, jnp.inf) for value in raw]
        seen = norms if self.nonfinite.admits_all else leaves.arrays
        first_bad = first_not_finite(seen)

        given, memory = self.remembered(state, norms, context)
        limits = [
            jnp.broadcast_to(jnp.asarray(limit, leaves.dtype), shape)
            for limit, shape in zip(all_valid(given), blocks.shapes, strict=True)
        ]
        lengths = blocks.map(self.rule.lengths, norms, limits)
        multipliers = blocks.map(multiplier, norms, lengths)
        measured = Measured(norms, None, first_bad)
        step = summarize(linf, self.rule, blocks, measured, given, lengths, True)

        def clip(position: int, array: jax.Array) -> jax.Array:
            matrix, by, limit = (
                matrices[position],
                multipliers[position],
                limits[position],
            )
            stack = matrix.shape[:-2]
            shaped = jax.tree.map(lambda part: part.reshape(stack), by)
            clipped = self.method.clip(
                matrix, found[position][1], self.rule, limit.reshape(stack), shaped
            )
            clipped = clipped.reshape(array.shape)
            clipped = resharded(clipped, spec_of(array))
            keeps = blocks.shaped(by.keeps, position)
            shorter = jnp.where(keeps, array, narrow(clipped, array))
            return self.nonfinite.release(shorter, step.is_finite)

        clipped = [clip(i, array) for i, array in enumerate(admitted)]
        return leaves.tree(clipped), ClipState(
            jnp.asarray(optax.safe_increment(state.clip_steps)),
            keep_if(step.is_finite, memory, state.clip_memory),
            next_info(state.clip_info, step, state.clip_steps),
            state.clip_names,
        )

    def context(self, blocks, steps, params, extra) -> Context:
        """Return the threshold's inputs; the norms of parameters are their σ₁."""

        def measure(arrays: list[jax.Array]) -> list[jax.Array]:
            found = [self.method.measure(m)[0] for m in as_matrices(arrays, blocks)]
            return [v.reshape(s) for v, s in zip(found, blocks.shapes, strict=True)]

        context = super().context(blocks, steps, params, extra)
        return dataclasses.replace(context, measure=measure)

    @property
    def coordinates(self) -> str:
        """The clip's method, rule and threshold, without their numbers."""
        return f"spectral({self.method!r}) × {self.rule!r} × {self.threshold.kind}"

    def __repr__(self) -> str:
        iterations = getattr(self.method, "iterations", None)
        method = f"{self.method!r}" + ("" if iterations is None else f", {iterations}")
        slots = [f"spectral({method})", repr(self.rule), repr(self.threshold)]
        settings = [" × ".join(slots), *self.other_settings()]
        return f"clip_singular_values({', '.join(settings)})"


def clip_singular_values(
    threshold: ThresholdLike,
    *,
    method: Method = PowerIteration(),  # noqa: B008  a frozen dataclass
    rule: Rule = rules.hard,
    stacked: Stacked = None,
    nonfinite: Guard = guards.propagate,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip the singular values of each leaf: the engine of the spectral recipes.

    .. math:: u_l = U \operatorname{diag}(\ell(\sigma_i, c_l)) V^\top,
        \qquad g_l = U \operatorname{diag}(\sigma_i) V^\top

    | input | result |
    |---|---|
    | σ₁ ≤ threshold, hard rule | that leaf bit-identical |
    | threshold 0 | exact zeros |
    | threshold inf, or None in a table | bit-identical |
    | NaN or inf in a leaf | see `clipjax.guards`; counted |
    | a leaf split by ``shard_map`` or ``pmap`` | ValueError: gather it first |

    Args:
        threshold: the largest singular value allowed, in the gradient's units: one for
            all leaves, or a prefix tree; an array, a schedule or a
            `clipjax.thresholds.Threshold`, which learns from σ₁ of each leaf.
        method: `PowerIteration`, which scales the whole leaf by σ₁; `SVD`; or
            `NewtonSchulz`, for ``rules.sqrt``.
        rule: a map from singular value and threshold to the new singular value; by
            default ``hard``.
        stacked: how many leading axes of a leaf stack separate layers; see
            `clipjax.granularity.leaf`.
        nonfinite: what to do about NaN and inf; see `clipjax.guards`.
        axis_name: () inside ``pmap``, where every device holds whole matrices.
        name: prefix of the clip's metrics.

    Returns:
        A `Clip`, an ``optax.GradientTransformationExtraArgs``. The reported norm is the
        largest σ₁ of all leaves.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a threshold is negative or NaN, or parts cannot be combined.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> from clipjax.spectral import SVD, clip_singular_values
        >>> clip = clip_singular_values(1.0, method=SVD())
        >>> updates, _ = clip.update(jnp.diag(jnp.array([4.0, 0.5])), None)
        >>> print(jnp.diag(updates))
        [1.  0.5]
    """
    require_part("method", method, Method, "SVD()")
    require_part("rule", rule, Rule, "rules.hard")
    require_part("nonfinite", nonfinite, Guard, "guards.zero")
    require_name(name)
    method.check(rule)
    if as_tuple(axis_name):
        raise ValueError(
            f"axis_name must be None or (), since matrices cannot be joined over "
            f"devices, got {axis_name!r}"
        )
    source = as_threshold(threshold)
    if source.reads == "entries":
        raise ValueError(
            f"threshold {source!r} is for single entries: use clipjax.clip_entries"
        )
    parts = (source, leaf(stacked), linf, rule, nonfinite, axis_name, name)
    clipper = SpectralClipper(*parts, method=method)
    return Clip(clipper.init, clipper.update)


def _refuse_shards(blocks: Blocks) -> None:
    split = [i for i, axes in enumerate(blocks.mesh_axes) if axes]
    if split:
        names = ", ".join(blocks.leaves.names[i] for i in split)
        raise ValueError(
            f"singular values cannot be joined over devices, and {names} is split over "
            f"{blocks.mesh_axes[split[0]]}: gather it first"
        )
