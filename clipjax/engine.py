"""The engine: every clip is four parts put together by `clip_by`."""

from __future__ import annotations

from typing import Any

import optax

from . import guards, rules
from .clipper import Clipper, Measured
from .distributed import AxisNames, as_tuple
from .granularity import Granularity, Leaf, whole
from .guards import Guard
from .norms import Norm, l2
from .rules import Rule
from .thresholds.fixed import as_threshold

WHOLE = whole()


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
    | norm > threshold, bounded rule | norm ≤ threshold, to two ulps of a leaf's dtype |
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
