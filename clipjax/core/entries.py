"""A clip of single entries: ``sign(g) · length(|g|, c)``.

It has its own implementation and is not a case of `clip_by`: where every entry is a
block, there is no norm to compute before the clip. Only the report reads the gradient
more often than ``optax.clip`` does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import guards, rules
from ..granularity import Granularity, whole
from ..guards import Guard
from ..norms import l1, l2
from ..rules import Rule
from ..thresholds.base import Context
from ..thresholds.given import ThresholdLike, as_threshold
from .blocks import Blocks, Values
from .checks import require_axis_name, require_bool, require_name, require_part
from .clip import Clip, Clipper, all_valid
from .dtypes import narrow, safe_divisor, widen
from .measure import measure, reread
from .meshes import AxisNames
from .report import Step, next_info, summary_of_thresholds
from .state import ClipState, keep_if


@dataclasses.dataclass(frozen=True, repr=False)
class Entry(Granularity):
    """One block per entry; any norm of one entry is its magnitude."""

    kind = "entry"

    def of(self, leaves, mesh_axes):
        each = range(len(leaves.arrays))
        return Blocks(leaves, mesh_axes, [()] * len(each), [[i] for i in each])


@dataclasses.dataclass(frozen=True, repr=False)
class EntryClipper(Clipper):
    """The parts of a clip of single entries; see `clip_entries`."""

    reports: bool = True

    def update(
        self, updates: Any, state: Any = None, params: Any = None, **extra: Any
    ) -> tuple[Any, ClipState]:
        """Clip a tree, and report the result."""
        leaves, blocks, state = self.begin(updates, state, params)
        context = self.context(blocks, state.clip_steps, params, extra)
        given, memory = self.remembered(state, [], context)
        limits = all_valid(given)

        info, is_finite = state.clip_info, True
        if self.reports and leaves.arrays:
            step, limits = self._measured(blocks, given, limits)
            info, is_finite = next_info(info, step, state.clip_steps), step.is_finite

        def clip(leaf: jax.Array, limit: jax.Array) -> jax.Array:
            if self.reports:
                leaf, limit = reread(leaf, limit)
            return self._clipped(self.nonfinite.admit(leaf), limit)

        clipped = leaves.tree(leaves.map(clip, limits))
        return clipped, ClipState(
            jnp.asarray(optax.safe_increment(state.clip_steps)),
            keep_if(is_finite, memory, state.clip_memory),
            info,
            state.clip_names,
        )

    def context(self, blocks, steps, params, extra) -> Context:
        """Return the threshold's inputs; the norm of an entry is its magnitude."""
        context = super().context(blocks, steps, params, extra)
        dtype = blocks.leaves.dtype
        measure = lambda arrays: [jnp.abs(widen(leaf, dtype)) for leaf in arrays]  # noqa: E731
        return dataclasses.replace(context, measure=measure)

    @property
    def coordinates(self) -> str:
        """The clip's rule and threshold, without their numbers."""
        return f"entry × {self.rule!r} × {self.threshold.kind}"

    def __repr__(self) -> str:
        settings = [f"{self.rule!r} × {self.threshold!r}", *self.other_settings()]
        if not self.reports:
            settings.append("report=False")
        return f"clip_entries({', '.join(settings)})"

    def _clipped(self, leaf: jax.Array, limit: Any) -> jax.Array:
        wide = widen(leaf, jnp.asarray(limit).dtype)
        if jnp.iscomplexobj(wide):
            size = jnp.abs(wide)
            length = self._lengths(size, limit)
            factor = jnp.where(length == size, 1, length / safe_divisor(size))
            return narrow(wide * factor.astype(wide.dtype), leaf)
        if self.rule == rules.hard:
            # A selection propagates NaN, and keeps subnormal entries, which a minimum
            # flushes to zero on CPUs. With >= and not >: CPUs compare subnormal entries
            # as zeros, and a limit of 0 must cut them, too.
            cut = jnp.where(jnp.abs(wide) >= limit, jnp.sign(wide) * limit, wide)
            return narrow(cut, leaf)
        return narrow(jnp.sign(wide) * self._lengths(jnp.abs(wide), limit), leaf)

    def _lengths(self, size: jax.Array, limit: Any) -> jax.Array:
        if self.rule == rules.hard:
            return jnp.minimum(size, limit)
        # An infinite entry is clipped like any large one; NaN stays.
        finite = jnp.minimum(size, jnp.finfo(size.dtype).max)
        return self.rule.lengths(finite, jnp.asarray(limit, size.dtype))

    def _measured(
        self, blocks: Blocks, given: Values, limits: Values
    ) -> tuple[Step, Values]:
        """Return the report of a step, and the limits, scheduled after the report.

        Each of the three sums reads the leaves again, after the previous sum: XLA's CPU
        backend would otherwise materialize what two sums share, an array as large as
        the leaf.
        """
        leaves = blocks.leaves
        whole_tree = whole().of(leaves, blocks.mesh_axes)
        measured = measure(l2, whole_tree, leaves.arrays, self.nonfinite)
        (before,), first_bad = measured.norms, measured.first_bad
        if first_bad is None:  # a single leaf
            first_bad = jnp.where(before < jnp.inf, jnp.int32(-1), jnp.int32(0))
        is_scalar = not any(jnp.ndim(limit) for limit in limits)
        largest = [jnp.minimum(before, c) if is_scalar else before for c in limits]
        inverse = [1 / safe_divisor(size) for size in largest]

        def total(function: Any, known: jax.Array) -> jax.Array:
            sums = []
            for leaf, limit, by in zip(leaves.arrays, limits, inverse, strict=True):
                leaf, (limit, by) = reread(leaf, once_known(known, (limit, by)))
                size = jnp.abs(widen(self.nonfinite.admit(leaf), by.dtype))
                sums.append(jnp.sum(function(size, self._lengths(size, limit), by)))
            return jnp.stack(blocks.over_devices(l1, sums))

        squares = total(lambda size, length, by: jnp.square(length * by), before)
        after = l2.combine([l2.finish(squares, 1) * jnp.stack(largest)], [1])
        # The sign counts changed entries: XLA's CPU backend would materialize the
        # result of a comparison.
        counts = total(
            lambda size, length, by: jnp.sign(jnp.abs(size - length) * by), after
        )
        fraction = jnp.sum(counts) / max(1, whole_tree.sizes[0])
        after = jnp.where(fraction > 0, after, before)  # to the bit
        least, is_valid = _summary(given, blocks)
        is_finite = (before < jnp.inf) & (first_bad < 0)
        step = Step(before, after, least, fraction, is_finite, first_bad, is_valid)
        return step, once_known(jnp.where(is_finite, fraction, 0), limits)


def _summary(thresholds: Values, blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    """Return the threshold to report, and whether all thresholds are valid.

    Of thresholds that differ from entry to entry, the mean of the finite ones.
    """
    dtype = blocks.leaves.dtype
    if not any(jnp.ndim(limit) for limit in thresholds):
        return summary_of_thresholds(thresholds, dtype)

    def sums(limit: Any) -> jax.Array:
        is_finite = limit < jnp.inf
        parts = [jnp.where(is_finite, limit, 0), is_finite, ~(limit >= 0)]
        return jnp.stack([jnp.sum(part, dtype=dtype) for part in parts])

    each = blocks.over_devices(l1, list(map(sums, thresholds)))
    total, count, invalid = sum(each[1:], each[0])
    mean = jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.inf)
    return mean, invalid == 0


def once_known(number: jax.Array, value: Any) -> Any:
    """Return ``value`` unchanged, scheduled after ``number``, which is at least 0.

    An optimization barrier has no effect on CPUs with JAX 0.10, where XLA removes it
    before it schedules, and schedules a constant without waiting for anything.
    """
    return jax.tree.map(
        lambda x: jnp.where(number < 0, jnp.zeros_like(x), jnp.asarray(x)), value
    )


def clip_entries(
    threshold: ThresholdLike,
    *,
    rule: Rule = rules.hard,
    nonfinite: Guard = guards.propagate,
    report: bool = True,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip every entry by itself: the engine of `clip_by_value` and its relatives.

    .. math:: u_i = \operatorname{sign}(g_i) \, \ell(\lvert g_i \rvert, c_i)

    Complex entries keep their phase. The clip may turn the direction of the update.

    | input | result |
    |---|---|
    | entries within the bounds, hard rule | bit-identical |
    | ±inf | ±c; counted as non-finite |
    | NaN | NaN, in that entry only |
    | threshold 0 | exact zeros |
    | threshold inf, or None in a table | bit-identical |
    | threshold negative or NaN, a Python or NumPy number | ValueError |
    | threshold negative or NaN, a JAX array or a schedule's value | zero update,
      counted in the state |
    | integer, float0, PRNG-key, None leaves | unchanged, and not measured |

    Args:
        threshold: the allowed magnitude, in the gradient's units: a number, an array,
            an Optax schedule, a prefix tree of numbers or arrays, or a
            `clipjax.thresholds.Threshold` that does not learn from norms.
        rule: a map from magnitude and threshold to the new magnitude; by default
            ``hard``.
        nonfinite: ``propagate`` or ``drop``; see `clipjax.guards`. Wrap the optimizer
            in `clipjax.skip_nonfinite` to skip such steps.
        report: whether to measure the norm before and after the clip, and the fraction
            of clipped entries. That takes about four further reads of the gradient.
            Without it the clip costs as much as ``optax.clip``, and the report in the
            state keeps its initial values.
        axis_name: mesh or pmap axes that leaves are split over; see `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        A `Clip`, an ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a threshold is negative or NaN, or parts cannot be combined.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.clip_entries(1.0, rule=clipjax.rules.soft)
        >>> clip
        clip_entries(soft × constant(1))
        >>> updates, _ = clip.update(jnp.array([3.0, -1.0]), None)
        >>> print(updates)
        [ 0.75 -0.5 ]
    """
    require_part("rule", rule, Rule, "rules.hard")
    require_part("nonfinite", nonfinite, Guard, "guards.drop")
    require_bool("report", report)
    require_name(name)
    require_axis_name(axis_name)
    if nonfinite not in (guards.propagate, guards.drop):
        raise ValueError(
            f"nonfinite must be guards.propagate or guards.drop, got {nonfinite!r}; "
            "clipjax.skip_nonfinite skips whole steps"
        )
    source = as_threshold(threshold)
    if source.reads == "norms":
        raise ValueError(
            f"threshold {source!r} learns from the norms of blocks, and entries have "
            "none: use it with clipjax.clip_by"
        )
    if source.remembers and not report:
        raise ValueError(
            f"report must be True with the threshold {source!r}, whose memory "
            "needs the report's check for NaN and inf"
        )
    parts = (source, Entry(), l2, rule, nonfinite, axis_name, name)
    clipper = EntryClipper(*parts, reports=report)
    return Clip(clipper.init, clipper.update)
