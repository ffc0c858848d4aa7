"""The engine: every clip is four parts put together by `clip_by`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import guards, rules
from .casts import accumulation_dtype, apart, narrow, widen
from .distributed import (
    AxisNames,
    Split,
    as_tuple,
    beside,
    reduce_over_devices,
    split_over,
)
from .granularity import Block, Blocks, Granularity, Leaf, whole
from .guards import Guard
from .measurement import count, first_nonfinite_leaf, measure
from .norms import Norm, l2
from .order import after
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
from .thresholds.fixed import as_threshold
from .trees import NamedLeaves

WHOLE = whole()
Measured = Callable[[Context], NamedLeaves]


class Clip(optax.GradientTransformationExtraArgs):
    """A gradient transformation that prints its coordinates, and compares by them."""

    @property
    def clipper(self) -> Clipper:
        """The parts it is made of."""
        return self.update.__self__  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        """Compares the parts."""
        return isinstance(other, Clip) and self.clipper == other.clipper

    def __hash__(self) -> int:
        """Hashes the parts."""
        return hash(self.clipper)

    def __repr__(self) -> str:
        """Prints granularity × norm × rule × threshold."""
        return f"clip_by({self.clipper.coordinates})"


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
        state = self._checked(state, updates, leaves)
        names = state.block_names
        split = self._split(leaves, params)
        context = self._context(leaves, names, state.count, split, params, extra)
        guarded = leaves.map(self.nonfinite.admit)
        observed = guarded
        if self.measured is not None:
            observed = self.measured(context).map(self.nonfinite.admit)
        measurement = self._measure(observed, names, split)
        norms = self.granularity.limit(measurement.norms)
        summary = measurement
        if self.granularity.summarised:
            summary = summarise(
                self.granularity, self.norm, observed, measurement.norms, names, split
            )

        joined = measurement if self.granularity.joins_devices else summary
        nonfinite_leaf = joined.nonfinite_leaf
        if self.nonfinite.hides or self.measured is not None:
            nonfinite_leaf = first_nonfinite_leaf(leaves, split, self.norm)
        is_finite = nonfinite_leaf < 0
        # Finite entries can have a norm beyond the dtype, if more than one is summed.
        if self.granularity.block_norm(self.norm).needs_rescaling:
            is_finite &= (
                count(jax.tree.map(lambda norm: ~jnp.isfinite(norm), norms)) == 0
            )

        threshold, memory = self.threshold.update(norms, state.threshold, context)
        if self.threshold.remembers:
            memory = jax.tree.map(
                lambda new, old: jnp.where(beside(is_finite, new), new, old),
                memory,
                state.threshold,
            )
        unfilled, threshold = threshold, fill(threshold, norms)
        if not self.granularity.joins_devices:
            # At extreme magnitudes the tree's norm takes a second read: a donated leaf
            # must not be written over before, or it is copied.
            threshold = jax.tree.map(lambda c: after(c, summary.norms), threshold)
        lengths = jax.tree.map(
            functools.partial(rules.lengths, self.rule), norms, threshold
        )
        kept = jax.tree.map(
            lambda norm, length, limit: (length == norm) | (limit == jnp.inf),
            norms,
            lengths,
            threshold,
        )
        clipped = self._rescale(guarded, (norms, lengths, threshold, kept), names)
        released = clipped.map(
            lambda leaf: self.nonfinite.release(leaf, beside(is_finite, leaf))
        )
        limits = unfilled if self.granularity.summarised else threshold
        outcome = Outcome(
            norms, limits, lengths, summary.norms, is_finite, nonfinite_leaf
        )
        trees = observed, clipped
        step = describe(self.granularity, self.norm, trees, outcome, names, split)
        new_state = ClipState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            threshold=memory,
            info=next_info(state.info, step, outcome),
        )
        return released.tree(), new_state

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
            norms = self._measure(tree, names, split).norms
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

    def _measure(self, leaves: NamedLeaves, names: tuple[str, ...], split: Split):
        norm = self.granularity.block_norm(self.norm)
        return measure(norm, self.granularity, leaves, names, split)

    def _rescale(
        self,
        leaves: NamedLeaves,
        blocks: tuple[Blocks, ...],
        names: tuple[str, ...],
    ) -> NamedLeaves:
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
        is_narrow = jnp.finfo(leaf.dtype).bits < jnp.finfo(norm.dtype).bits
        # Without the barrier XLA shares the cast between the norm and the scaling, and
        # keeps a float32 copy of every narrow leaf in memory for it.
        source = apart(leaf) if is_narrow else leaf
        scaled = self.granularity.rescale(
            widen(source, norm.dtype), Block(divisor, length, threshold, self.rule)
        )
        # Selecting, not multiplying by one, keeps every bit: subnormals, and -0.0.
        return narrow(jnp.where(kept, source, scaled.astype(leaf.dtype)), leaf)


def clip_by(
    threshold: Any,
    *,
    granularity: Granularity = WHOLE,
    norm: Norm = l2,
    rule: Rule = rules.hard,
    nonfinite: Guard = guards.propagate,
    axis_name: AxisNames = None,
    name: str = "clip",
    measured: Measured | None = None,
) -> Clip:
    r"""Clips updates: the engine that every recipe is a special case of.

    Each block of entries is measured, and brought from its norm :math:`n` to the
    length that the rule allows under the threshold :math:`c`, keeping its direction:

    .. math::
        u = \frac{g}{n} \, \ell(n, c), \qquad
        \ell_\text{hard}(n, c) = \min(n, c).

    Norms are accumulated in float32, or float64 where any leaf is, and the result is
    rounded once to each leaf's own dtype. ``init`` works on arrays and on
    ``ShapeDtypeStruct``; the state keeps its structure, shapes and dtypes.

    | input | result |
    |---|---|
    | norm ≤ threshold, hard rule | bit-identical |
    | norm > threshold, bounded rule | norm ≤ threshold, to an ulp of the leaf's dtype |
    | squares that overflow or underflow | the right norm, by measuring at a scale |
    | zero gradient | zero |
    | threshold 0 | exact zeros |
    | threshold inf, or None in a table | bit-identical, the norm still reported |
    | threshold negative or NaN, known now | ValueError |
    | threshold negative or NaN, traced | zero update, counted in the state |
    | NaN or inf in the gradient | see `guards`; memories frozen, counted |
    | finite entries with a norm beyond the dtype | treated as non-finite |
    | integer, float0, PRNG-key, None leaves | as they came, and not measured |
    | ``shard_map``, a gradient that is not reduced over workers | ValueError |
    | ``pmap`` or ``check_vma=False``, no ``axis_name`` | ValueError |

    Args:
        threshold: the allowed norm, in the gradient's units: a number, an array, an
            Optax schedule, a `clipjax.thresholds.Threshold`, or for ``leaf``,
            ``group`` and ``unit`` a prefix tree of numbers. Numbers are kept in the
            state and can be edited there; arrays are read at every update.
        granularity: which entries share one norm; by default ``whole()``.
        norm: how a block is measured; by default ``l2``.
        rule: norm and threshold to length; by default ``hard``.
        nonfinite: what to do about NaN and inf; by default ``propagate``.
        axis_name: the mesh or pmap axes that leaves are split over. Not needed under
            ``jit``, nor in ``shard_map`` if params are passed to update: leaves are
            split as their parameters are, by their types. Needed otherwise in
            ``shard_map`` and always in ``pmap``; () to clip on each device by itself.
            With ``unit()``, leaves may be split there only along the axes that a unit
            spans.
        name: prefix of the clip's metrics.
        measured: gives the leaves to measure where they are not the updates' own, from
            a `clipjax.thresholds.Context`; the updates are then scaled as those norms
            are.

    Returns:
        An ``optax.GradientTransformationExtraArgs``. Unknown extra arguments are
        ignored. ``update(updates, None)`` works unless the threshold has a memory.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a threshold is negative or NaN, or parts do not go together.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.clip_by(5.0, rule=clipjax.rules.soft)
        >>> clip
        clip_by(whole × l2 × soft × constant)
        >>> grads = {"w": jnp.array([3.0, 4.0])}
        >>> updates, state = clip.update(grads, clip.init(grads))
        >>> print(updates["w"], state.info.norm)
        [1.5 2. ] 5.0

    References:
        Pascanu, Mikolov, Bengio, `On the difficulty of training recurrent neural
        networks <https://arxiv.org/abs/1211.5063>`_, 2013, for the hard rule.
    """
    _require_part("granularity", granularity, Granularity, "granularity.leaf()")
    _require_part("norm", norm, Norm, "norms.l2")
    _require_part("rule", rule, Rule, "rules.hard")
    _require_part("nonfinite", nonfinite, Guard, "guards.zero")
    if norm.per_leaf_only and not isinstance(granularity, Leaf):
        raise ValueError(
            f"norm={norm!r} measures one leaf at a time: use it with "
            f"granularity=granularity.leaf(), not {granularity!r}"
        )
    if norm.per_leaf_only and as_tuple(axis_name):
        raise ValueError(
            f"norm={norm!r} cannot be joined over devices: leave axis_name out"
        )
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be a string that is not empty, got {name!r}")
    granularity.check(norm, rule)
    if measured is not None and (granularity.summarised or not granularity.scales):
        raise ValueError(
            f"measured must be None with granularity={granularity!r}, which needs the "
            "updates themselves"
        )
    source = as_threshold(threshold)
    clipper = Clipper(
        source, granularity, norm, rule, nonfinite, axis_name, name, measured
    )
    return Clip(clipper.init, clipper.update)


def _require_part(argument: str, value: Any, kind: type, example: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(
            f"{argument} must be a {kind.__name__} such as {example}, got {value!r}"
        )
