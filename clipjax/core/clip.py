"""The clip of blocks: four parts, and the step that combines them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from .. import guards, rules
from ..granularity import Granularity, whole
from ..guards import Guard
from ..norms import Norm, l2
from ..rules import Rule, valid
from ..thresholds.base import Context, Threshold
from ..thresholds.given import ByBlock, ThresholdLike, as_threshold
from .blocks import Blocks, Values
from .checks import require_axis_name, require_name, require_part
from .measure import measure, measure_plainly, reread
from .meshes import AxisNames, mesh_axes
from .report import next_info, summarize
from .shorten import multiplier, shorten
from .state import ClipState, checked_state, empty_info, keep_if
from .trees import Leaves


class StandIn(Protocol):
    """A function from the leaves to arrays that are measured in their place."""

    def __call__(
        self, arrays: list[jax.Array], /, context: Context
    ) -> Sequence[jax.Array]:
        """Return one array per leaf."""
        ...


@dataclasses.dataclass(frozen=True, repr=False)
class Clipper:
    """The parts of one clip, and the step that combines them; see `clip_by`."""

    threshold: Threshold
    granularity: Granularity
    norm: Norm
    rule: Rule
    nonfinite: Guard
    axis_name: AxisNames
    name: str
    stand_in: StandIn | None = None

    def init(self, params: Any) -> ClipState:
        """Return the state for a tree of arrays or of ``ShapeDtypeStruct``."""
        leaves = Leaves.of(params)
        blocks = self.granularity.of(leaves, [()] * len(leaves.arrays))
        return self.start(blocks, params)

    def update(
        self, updates: Any, state: Any = None, params: Any = None, **extra: Any
    ) -> tuple[Any, ClipState]:
        """Clip a tree: measure its blocks, get thresholds, scale the leaves, report."""
        leaves, blocks, state = self.begin(updates, state, params)
        context = self.context(blocks, state.clip_steps, params, extra)

        # 1. Measure the updates, or the arrays that a recipe measures in their place.
        stand_in = None
        if self.stand_in is not None:
            stand_in = functools.partial(self.stand_in, context=context)
        measured = measure(self.norm, blocks, leaves.arrays, self.nonfinite, stand_in)
        norms = measured.norms

        # 2. Get a threshold per block, and from the rule a length per block.
        thresholds, memory = self.remembered(state, norms, context)
        lengths = blocks.map(self.rule.lengths, norms, all_valid(thresholds))

        # 3. Scale: scalar arithmetic once per block, then two products per entry.
        multipliers = blocks.spread(blocks.map(multiplier, norms, lengths))
        step = summarize(
            *(self.norm, self.rule, blocks, measured, thresholds, lengths),
            self.granularity.reports_blocks,
        )

        def clip(position: int, leaf: jax.Array, by: Any) -> jax.Array:
            leaf, by = reread(leaf, by)
            by = jax.tree.map(lambda part: blocks.shaped(part, position), by)
            shorter = shorten(self.nonfinite.admit(leaf), by)
            return self.nonfinite.release(shorter, step.is_finite)

        clipped = list(map(clip, range(len(multipliers)), leaves.arrays, multipliers))

        # 4. Update the memory, unless there was a NaN or inf, and the report.
        return leaves.tree(clipped), ClipState(
            jnp.asarray(optax.safe_increment(state.clip_steps)),
            keep_if(step.is_finite, memory, state.clip_memory),
            next_info(state.clip_info, step, state.clip_steps),
            state.clip_names,
        )

    def begin(
        self, updates: Any, state: Any, params: Any
    ) -> tuple[Leaves, Blocks, ClipState]:
        """Return the leaves of the updates, their blocks, and the checked state."""
        if isinstance(updates, ClipState):
            raise TypeError(
                "update takes the updates first and the state second, got a ClipState "
                "as updates"
            )
        leaves = Leaves.of(updates)
        blocks = self.granularity.of(leaves, mesh_axes(leaves, self.axis_name, params))
        fresh = functools.partial(self.start, blocks, updates)
        return (
            leaves,
            blocks,
            checked_state(state, fresh, self.threshold.remembers, who=self),
        )

    def start(self, blocks: Blocks, params: Any) -> ClipState:
        """Return the state before the first step."""
        memory: Any = ()
        if self.threshold.remembers:
            # The key distinguishes this threshold's memory from that of another kind.
            memory = {self.threshold.kind: self.threshold.init(blocks, params)}
        reported = blocks.count if self.granularity.reports_blocks else None
        labels = self.granularity.labels
        return ClipState(
            jnp.zeros((), jnp.int32),
            memory,
            empty_info(blocks.leaves.dtype, reported),
            # From the kind, clipjax.metrics knows whether blocks are leaves or groups.
            {self.name: {self.granularity.kind: dict.fromkeys(labels, ())}},
        )

    def remembered(
        self, state: ClipState, norms: Values, context: Context
    ) -> tuple[Values, Any]:
        """Return the thresholds of the blocks, and the next memory."""
        kind = self.threshold.kind
        if not self.threshold.remembers:
            return self.threshold.update(norms, (), context)[0], ()
        memory = state.clip_memory[kind]
        thresholds, memory = self.threshold.update(norms, memory, context)
        return thresholds, {kind: memory}

    def context(
        self, blocks: Blocks, steps: jax.Array, params: Any, extra: Mapping[str, Any]
    ) -> Context:
        """Return the threshold's inputs other than the norms."""
        return Context(
            blocks=blocks,
            norm=self.norm,
            table=lambda tree, name: self.granularity.table(tree, blocks, name),
            measure=lambda arrays: measure_plainly(self.norm, blocks, arrays),
            steps=steps,
            params=params,
            extra=extra,
        )

    @property
    def coordinates(self) -> str:
        """The clip's granularity, norm, rule and kind of threshold, as text."""
        slots = (self.granularity.kind, repr(self.norm), repr(self.rule))
        return " × ".join([*slots, self.threshold.kind])

    def __repr__(self) -> str:
        slots = (self.granularity, self.norm, self.rule, self.threshold)
        settings = [" × ".join(map(repr, slots)), *self.other_settings()]
        return f"clip_by({', '.join(settings)})"

    def other_settings(self) -> list[str]:
        """Return the settings other than the four slots that are not at the default."""
        defaults = {"nonfinite": guards.propagate, "axis_name": None, "name": "clip"}
        return [
            f"{field}={getattr(self, field)!r}"
            for field, default in defaults.items()
            if getattr(self, field) != default
        ]


class UpdateFn(Protocol):
    """The type of a clip's ``update``, more precise than Optax's type."""

    def __call__(
        self, updates: Any, state: Any = None, params: Any = None, **extra: Any
    ) -> tuple[Any, ClipState]:
        """Return the clipped updates and the next state."""
        ...


class Clip(optax.GradientTransformationExtraArgs):
    """A gradient transformation whose repr and equality are those of its parts.

    A clip is an ``optax.GradientTransformationExtraArgs``: a pair of pure functions
    ``init`` and ``update``.
    """

    init: Callable[[Any], ClipState]
    update: UpdateFn

    @property
    def clipper(self) -> Any:
        """The parts of the clip."""
        return self.update.__self__  # type: ignore[attr-defined]

    def block_names(self, params: Any) -> list[str]:
        """Return the names of the blocks that are reported, in their order."""
        return self.clipper.granularity.names(Leaves.of(params))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Clip) and self.clipper == other.clipper

    def __hash__(self) -> int:
        return hash(self.clipper)

    def __repr__(self) -> str:
        return repr(self.clipper)


def all_valid(thresholds: list[Any]) -> list[Any]:
    """Replace a negative threshold or NaN by 0, once per distinct threshold.

    Blocks often share one array; a selection per block would be one equation each.
    """
    known: dict[int, Any] = {}
    for limit in thresholds:
        if id(limit) not in known:
            # Python numbers have been checked when the clip was built.
            known[id(limit)] = valid(limit) if isinstance(limit, jax.Array) else limit
    return [known[id(limit)] for limit in thresholds]


def clip_by(
    threshold: ThresholdLike,
    *,
    granularity: Granularity = whole(),  # noqa: B008  a frozen dataclass
    norm: Norm = l2,
    rule: Rule = rules.hard,
    nonfinite: Guard = guards.propagate,
    axis_name: AxisNames = None,
    name: str = "clip",
    stand_in: StandIn | None = None,
) -> Clip:
    r"""Clip blocks of updates by norm: the engine of which recipes are special cases.

    Each block of entries keeps its direction and is scaled from its norm :math:`n` to
    the length :math:`\ell(n, c)` that the rule computes from the norm and the threshold
    :math:`c`:

    .. math::
        u = \frac{g}{n} \, \ell(n, c), \qquad
        \ell_\text{hard}(n, c) = \min(n, c).

    Norms are accumulated in float32, or float64 where any leaf is, and the result is
    rounded once to each leaf's own dtype. ``init`` works on arrays and on
    ``ShapeDtypeStruct``; the state keeps its structure, shapes and dtypes.

    | input | result |
    |---|---|
    | norm ≤ threshold, hard rule | bit-identical |
    | norm > threshold, bounded rule | norm ≤ threshold · (1 + 2 ulps of a leaf's dtype
      + the rounding of a float32 sum) |
    | squares that overflow or underflow | the correct norm, by a second read |
    | zero gradient | zero |
    | threshold 0 | exact zeros |
    | threshold inf, or None in a table | bit-identical, the norm still reported |
    | threshold negative or NaN, a Python or NumPy number | ValueError |
    | threshold negative or NaN, a JAX array or a schedule's value | zero update,
      counted in the state |
    | NaN or inf in the gradient | see `guards`; the threshold's memory is unchanged,
      the step is counted |
    | a norm of 2^126 (float32) or more | treated as infinite |
    | integer, float0, PRNG-key, None leaves | unchanged, and not measured |
    | sparse or quantized containers | TypeError that names the leaf |
    | another clip's state | ValueError |
    | ``shard_map``, a gradient that is not reduced over workers | ValueError |
    | ``pmap`` or ``check_vma=False``, no ``axis_name`` | ValueError |
    | leaves on different devices, outside of ``jit`` | ValueError |

    Args:
        threshold: the allowed norm, in the gradient's units: a number, an array, an
            Optax schedule, a `clipjax.thresholds.Threshold`, or for ``leaf``, ``group``
            and ``unit`` a table of numbers. Python numbers are constants of the
            program, as in Optax; JAX arrays are read at every update and may be traced,
            as by ``optax.inject_hyperparams``.
        granularity: which entries share one norm; by default ``whole()``.
        norm: how a block is measured; by default ``l2``.
        rule: a map from norm and threshold to the norm after the clip; by default
            ``hard``.
        nonfinite: what to do about NaN and inf; by default ``propagate``.
        axis_name: the mesh or pmap axes that leaves are split over. Not needed under
            ``jit``, nor in ``shard_map`` if params are passed to update: leaves are
            split as their parameters are, by their types. Needed otherwise in
            ``shard_map`` and always in ``pmap``; () to clip on each device by itself.
            With ``unit()``, leaves may be split there only along the axes that a unit
            spans.
        name: prefix of the clip's metrics.
        stand_in: maps the leaves, and a `clipjax.thresholds.Context`, to the arrays
            that are measured in their place; each block of the updates is then
            multiplied by the ratio of lengths that the rule computes for those norms.
            The arrays must be NaN or inf wherever the leaves are.

    Returns:
        A `Clip`, an ``optax.GradientTransformationExtraArgs``. Unknown extra arguments
        are ignored. ``update(updates, None)`` works unless the threshold has a memory.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a threshold is negative or NaN, or parts cannot be combined.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.clip_by(5.0, rule=clipjax.rules.soft)
        >>> clip
        clip_by(whole × l2 × soft × constant(5))
        >>> grads = {"w": jnp.array([3.0, 4.0])}
        >>> updates, state = clip.update(grads, clip.init(grads))
        >>> print(updates["w"], state.clip_info.norm_before)
        [1.5 2. ] 5.0

    References:
        Pascanu, Mikolov, Bengio, `On the difficulty of training recurrent neural
        networks <https://arxiv.org/abs/1211.5063>`_, 2013, for the hard rule.
    """
    require_part("granularity", granularity, Granularity, "granularity.leaf()")
    require_part("norm", norm, Norm, "norms.l2")
    require_part("rule", rule, Rule, "rules.hard")
    require_part("nonfinite", nonfinite, Guard, "guards.zero")
    require_name(name)
    require_axis_name(axis_name)
    if stand_in is not None and not callable(stand_in):
        raise TypeError(f"stand_in must be a function or None, got {stand_in!r}")
    source = as_threshold(threshold)
    if isinstance(source, ByBlock) and not granularity.takes_table:
        raise TypeError(
            f"threshold must be one number, array, schedule or Threshold for "
            f"granularity {granularity!r}, which has a single block, got a table"
        )
    if source.reads == "entries":
        raise ValueError(
            f"threshold {source!r} is for single entries: use clipjax.clip_entries"
        )
    parts = (source, granularity, norm, rule, nonfinite, axis_name, name, stand_in)
    clipper = Clipper(*parts)
    return Clip(clipper.init, clipper.update)
