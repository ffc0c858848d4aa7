"""How the four parts of a clip work together at a step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import rules
from .casts import accumulation_dtype, narrow, widen
from .distributed import (
    AxisNames,
    Split,
    beside,
    recorded,
    reduce_over_devices,
    split_over,
)
from .granularity import Block, Blocks, Granularity
from .guards import Guard
from .measurement import Measurement, count, first_nonfinite_leaf, measure
from .norms import Norm
from .order import Make, after, anew, at_hand, together
from .report import (
    ClipState,
    Outcome,
    describe,
    empty_info,
    next_info,
    summarise,
)
from .rules import Rule
from .thresholds.base import Context, Threshold, fill
from .trees import NamedLeaves

Measured = Callable[[Context], NamedLeaves]


@dataclasses.dataclass(frozen=True)
class Clipper:
    """The parts of one clip, and how they work together; see `clip_by`."""

    threshold: Threshold
    granularity: Granularity
    norm: Norm
    rule: Rule
    nonfinite: Guard
    axis_name: AxisNames
    name: str
    measured: Measured | None = None

    @property
    def coordinates(self) -> str:
        """Gives the clip's place on the four axes."""
        parts = (self.granularity, self.norm, self.rule)
        return " × ".join([*map(repr, parts), self.threshold.kind])

    def init(self, params: Any) -> ClipState:
        """Makes the state for a tree of arrays or of ``ShapeDtypeStruct``."""
        leaves = NamedLeaves.of(params)
        names = self.granularity.names(leaves)
        count = jnp.zeros((), jnp.int32)
        return ClipState(
            count=count,
            threshold=self.threshold.init(self._context(leaves, names, count, {})),
            info=empty_info(self.name, names, leaves, accumulation_dtype(leaves)),
        )

    def update(
        self, updates: Any, state: Any = None, params: Any = None, **extra: Any
    ) -> tuple[Any, ClipState]:
        """Clips a tree of updates."""
        leaves = NamedLeaves.of(updates)
        make = at_hand(leaves)
        state = self._checked(state, updates, leaves)
        names = state.block_names
        split = self._split(leaves, params)
        context = self._context(leaves, names, state.count, split, params, extra)

        admitted = self._admitted(make, context)
        measurement = self._measure(admitted, names, split)
        norms = self.granularity.limit(measurement.norms)
        summary = measurement
        if self.granularity.summarised:
            blocks = measurement.norms
            summary = summarise(
                self.granularity, self.norm, admitted, 1, blocks, names, split
            )
        joined = measurement if self.granularity.joins_devices else summary
        nonfinite_leaf = joined.nonfinite_leaf
        if self.nonfinite.hides or self.measured is not None:
            nonfinite_leaf = first_nonfinite_leaf(make(copy=5), split, self.norm)
        is_finite = self._is_finite(norms, nonfinite_leaf)

        once, repeated = recorded(context.joined)
        context = dataclasses.replace(context, joined=once)
        unfilled, memory = self.threshold.update(norms, state.threshold, context)
        threshold = fill(unfilled, norms)

        def in_order(threshold: Blocks) -> Blocks:
            # At extreme magnitudes a tree's norm takes a second read: what is donated
            # must not be written over before, or it is copied.
            first = None if self.granularity.joins_devices else summary.norms
            return jax.tree.map(lambda limit: after(limit, first), threshold)

        def clip(made_before: jax.Array | None, copy: int) -> NamedLeaves:
            source = make(made_before, copy)
            there = _read_again(context, source, made_before, copy)
            there = dataclasses.replace(there, joined=repeated())
            guarded = source.map(self.nonfinite.admit)
            norms = self._measure(at_hand(guarded), names, split).norms
            norms = self.granularity.limit(norms)
            threshold, _ = self.threshold.update(norms, state.threshold, there)
            if made_before is None:
                threshold = in_order(threshold)
            return self._clip(guarded, norms, fill(threshold, norms), names)

        # Magnitudes, and their thresholds, are soon made. Of other norms, and of a
        # memory for each entry, it takes less to read what was made of them.
        is_remade = not self.granularity.joins_devices and all(
            jnp.size(entry) == 1 for entry in jax.tree.leaves(state.threshold)
        )
        if is_remade:
            clipped = anew(clip)
        else:
            # Not the leaves that were measured: XLA would share casts with that, and
            # keep a float32 copy of every narrow leaf in memory for it.
            guarded = make(copy=4).map(self.nonfinite.admit)
            limits = in_order(threshold)
            clipped = at_hand(self._clip(guarded, norms, limits, names))
        outcome = Outcome(
            norms,
            unfilled if self.granularity.summarised else threshold,
            self._lengths(norms, threshold),
            summary.norms,
            is_finite,
            nonfinite_leaf,
        )
        step = describe(
            self.granularity, self.norm, admitted, clipped, outcome, names, split
        )
        # What is donated must have been read by all sums before it is written over.
        is_read = together(
            step.norm, step.clipped_norm, step.clipped_fraction, nonfinite_leaf
        )
        released = clipped(is_read).map(
            lambda leaf: self.nonfinite.release(leaf, beside(is_finite, leaf))
        )
        memory = self._remembered(memory, state.threshold, is_finite)
        new_state = ClipState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            threshold=memory,
            info=next_info(state.info, step, outcome),
        )
        return released.tree(), new_state

    def _admitted(self, make: Make, context: Context) -> Make:
        """Makes the leaves to measure."""

        def admit(made_before: jax.Array | None, copy: int) -> NamedLeaves:
            source = make(made_before, copy)
            if self.measured is not None:
                source = self.measured(_read_again(context, source, made_before, copy))
            return source.map(self.nonfinite.admit)

        is_raw = self.measured is None and not self.nonfinite.hides
        return make if is_raw else anew(admit)

    def _checked(self, state: Any, updates: Any, leaves: NamedLeaves) -> ClipState:
        """Gives the state to work from, or says what is wrong with it."""
        if not isinstance(state, ClipState):
            if self.threshold.remembers:
                raise ValueError(
                    f"threshold {self.threshold!r} has a memory, so update needs the "
                    f"state that init made, got {state!r}"
                )
            return self.init(updates)
        known = set(state.block_names)
        unknown = [n for n in self.granularity.names(leaves) if n not in known]
        if unknown:
            raise ValueError(
                f"updates have blocks that init did not see: {', '.join(unknown)}; "
                "call init with parameters of the same structure"
            )
        return state

    def _remembered(self, new: Any, old: Any, is_finite: jax.Array) -> Any:
        """Forgets a step with NaN or infinity."""
        if not self.threshold.remembers:
            return new
        return jax.tree.map(
            lambda new, old: jnp.where(beside(is_finite, new), new, old), new, old
        )

    def _context(
        self,
        leaves: NamedLeaves,
        names: tuple[str, ...],
        count: jax.Array,
        split: Split,
        params: Any = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Context:
        dtype = accumulation_dtype(leaves)

        def measure_tree(tree: NamedLeaves) -> Blocks:
            norms = self._measure(at_hand(tree), names, split).norms
            return jax.tree.map(lambda norm: norm.astype(dtype), norms)

        def whole_norm(norms: Blocks) -> jax.Array:
            if isinstance(norms, dict):
                raise ValueError(
                    f"threshold {self.threshold.kind} needs granularity whole, leaf or "
                    f"group, got {self.granularity!r}"
                )
            return self.norm.combine(norms, self.granularity.sizes(names, leaves))

        return Context(
            count=count,
            leaves=leaves,
            zeros=lambda: self.granularity.zeros(names, leaves, dtype),
            table=lambda prefix: self.granularity.table(prefix, names, leaves, dtype),
            measure=measure_tree,
            whole=whole_norm,
            aligned=lambda tree, what: self._alike(leaves, tree, what),
            joined=lambda parts, how: reduce_over_devices(parts, split, how),
            params=params,
            extra=extra or {},
            dtype=dtype,
        )

    @staticmethod
    def _alike(leaves: NamedLeaves, tree: Any, what: str) -> NamedLeaves:
        """Reads from another tree the leaves that the updates have."""
        theirs = NamedLeaves.of(tree).arrays
        missing = [name for name in leaves.arrays if name not in theirs]
        if missing:
            raise ValueError(f"{what} have no leaf {', '.join(missing)}")
        return leaves.replace({name: theirs[name] for name in leaves.arrays})

    def _split(self, leaves: NamedLeaves, params: Any) -> Split:
        split = split_over(leaves, self.axis_name, params)
        self.granularity.require_shards(leaves, split)
        shards = [name for name, axes in split.items() if axes]
        if shards and self.norm.per_leaf_only:
            raise ValueError(
                f"norm={self.norm!r} cannot be joined over devices, and "
                f"{', '.join(shards)} is split over {split[shards[0]]}: gather it first"
            )
        return split

    def _measure(
        self, leaves: Make, names: tuple[str, ...], split: Split
    ) -> Measurement:
        norm = self.granularity.block_norm(self.norm)
        return measure(norm, self.granularity, leaves, names, split)

    def _is_finite(self, norms: Blocks, nonfinite_leaf: jax.Array) -> jax.Array:
        is_finite = nonfinite_leaf < 0
        # Finite entries can have a norm beyond the dtype, if more than one is summed.
        if self.granularity.block_norm(self.norm).needs_rescaling:
            infinite = jax.tree.map(lambda norm: ~jnp.isfinite(norm), norms)
            is_finite &= count(infinite) == 0
        return is_finite

    def _lengths(self, norms: Blocks, threshold: Blocks) -> Blocks:
        lengths = functools.partial(rules.lengths, self.rule)
        return jax.tree.map(lengths, norms, threshold)

    def _clip(
        self,
        leaves: NamedLeaves,
        norms: Blocks,
        threshold: Blocks,
        names: tuple[str, ...],
    ) -> NamedLeaves:
        lengths = self._lengths(norms, threshold)
        kept = jax.tree.map(
            lambda norm, length, limit: (length == norm) | (limit == jnp.inf),
            norms,
            lengths,
            threshold,
        )
        blocks = norms, lengths, threshold, kept
        spread = [self.granularity.spread(values, names, leaves) for values in blocks]
        return leaves.replace(
            {
                name: self._rescale_leaf(
                    leaf, *(beside(values[name], leaf) for values in spread)
                )
                for name, leaf in leaves.arrays.items()
            }
        )

    def _rescale_leaf(
        self,
        leaf: jax.Array,
        norm: jax.Array,
        length: jax.Array,
        threshold: jax.Array,
        kept: jax.Array,
    ) -> jax.Array:
        """Rescales in the accumulation dtype and rounds once, to the leaf's own."""
        measurable = (norm > 0) & (norm < jnp.inf)
        divisor = jnp.where(measurable, norm, jnp.ones_like(norm))
        scaled = self.granularity.rescale(
            widen(leaf, norm.dtype), Block(divisor, length, threshold, self.rule)
        )
        # Selecting, not multiplying by one, keeps every bit: subnormals, and -0.0.
        return narrow(jnp.where(kept, leaf, scaled.astype(leaf.dtype)), leaf)


def _read_again(
    context: Context, leaves: NamedLeaves, made_before: jax.Array | None, copy: int
) -> Context:
    """Gives a reader of its own all leaves that a part may look at."""

    def aligned(tree: Any, what: str) -> NamedLeaves:
        return at_hand(context.aligned(tree, what))(made_before, copy)

    return dataclasses.replace(context, leaves=leaves, aligned=aligned)
