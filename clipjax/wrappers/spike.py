"""A wrapper that skips steps with a spike in the loss or in the gradient's norm."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ..core.blocks import Blocks
from ..core.checks import (
    Scalar,
    require_bool,
    require_integer,
    require_name,
    require_number,
)
from ..core.clip import clip_by
from ..core.measure import measure
from ..core.meshes import AxisNames, mesh_axes
from ..core.trees import Leaves
from ..granularity import Granularity, whole
from ..norms import l2
from ..rules import valid
from ..thresholds.averages import ema
from ..thresholds.combine import minimum
from ..thresholds.given import ThresholdLike, as_threshold
from ..thresholds.window import in_ring, slots
from .inner import (
    as_transformation,
    checked_own_state,
    no_update_if,
    state_before_if,
)
from .record import NONE, SkipRecord, empty_record, next_record


class SkipOnSpikeState(NamedTuple):
    """The state of `skip_on_spike`.

    Attributes:
        skip_names: the wrapper's name, and below it the granularity, keys without
            leaves.
        skipped_count: int32 number of steps skipped so far.
        streak: int32 number of steps skipped in a row up to the latest one; 0 if that
            was not skipped.
        alarm: bool, true from the first streak of ``alarm_after`` steps on.
        is_spike: bool, whether the latest step was skipped.
        accepted: int32 number of steps not skipped. Set it to 0 to forget the history,
            so that ``sigma`` learns a new level.
        history: for ``sigma``, the latest accepted norms, under ``norm`` and of shape
            ``(window, blocks)``, and losses, under ``loss`` and of shape ``(window,)``
            if the loss is watched: ring buffers, float32, or float64 where any
            parameter is. Without ``sigma`` a dictionary without entries.
        limit_memory: the memories of ``limit`` and ``multiple``, where they have one.
            Set all their arrays to 0 to forget the history.
        skip_record: the latest skipped steps; `clipjax.skipped_steps` reads it.
        inner_state: the state of the wrapped optimizer.
    """

    skip_names: dict[str, dict[str, tuple[()]]]
    skipped_count: Int[Array, ""]
    streak: Int[Array, ""]
    alarm: Bool[Array, ""]
    is_spike: Bool[Array, ""]
    accepted: Int[Array, ""]
    history: dict[str, Float[Array, "window ..."]]
    limit_memory: Any
    skip_record: SkipRecord
    inner_state: Any


def skip_on_spike(
    inner: optax.GradientTransformation,
    *,
    limit: ThresholdLike | None = None,
    multiple: Scalar | None = None,
    sigma: Scalar | None = None,
    tolerance: Scalar = 0.15,
    window: int = 128,
    minimum_history: int | None = None,
    loss: bool = True,
    granularity: Granularity = whole(),  # noqa: B008  a frozen dataclass
    alarm_after: int = 10,
    record_size: int = 8,
    axis_name: AxisNames = None,
    name: str = "skip_on_spike",
) -> optax.GradientTransformationExtraArgs:
    r"""Skip a step whose gradient norm, or loss, lies far above the usual.

    A step is a spike if the L2 norm :math:`n` of the whole incoming gradient is above
    any of three limits. The third limit also applies to the loss in place of the norm:

    .. math::
        n > c, \qquad n > m \, \tilde n, \qquad
        n - \bar n > \max(\sigma s, \, \tau \lvert \bar n \rvert)

    Here :math:`c` is ``limit``; :math:`m` is ``multiple``, and :math:`\tilde n` the
    exponential average of accepted norms, with decay 0.99; :math:`\bar n` and :math:`s`
    are mean and sample standard deviation of the latest ``window`` accepted ones. A
    limit that is not given does not apply; if none is given, ``sigma`` is 6.

    On a spike the update is zero, and the inner optimizer's state, including its step
    count, does not change by a bit. Rejected values never enter a statistic. So if the
    level rises permanently, all steps are skipped: watch ``alarm``. To learn the new
    level, set ``accepted`` in the state to 0, and ``limit_memory`` to zeros.

    Wrap the whole chain, including the clip. If the clip is the first in the chain, it
    measures the same norm, and under ``jit`` XLA computes the common sum once.

    | input | result |
    |---|---|
    | no spike | exactly the updates of ``inner`` |
    | a spike | -0.0 in every leaf, inner state bit-identical |
    | a norm equal to a limit | no spike |
    | NaN or inf in the gradient, a norm beyond the dtype | a spike |
    | NaN or inf in the loss, with ``sigma`` and ``loss`` | a spike |
    | fewer than ``minimum_history`` values observed | only ``limit`` applies |
    | a limit that turns negative or NaN under jit | acts as 0: a spike, unless n is 0 |
    | a drop; a rise of at most ``tolerance`` · mean | no spike by ``sigma`` |
    | growth by 1 % per step | no spike by ``sigma``, even after a constant history |
    | norms and losses of zero | no spike; they do not enter any average |
    | ``alarm_after`` spikes in a row | also skipped; ``alarm`` turns true for good |
    | `clipjax.skip_nonfinite` around it, or in it | works; the outer one counts |
    | a state that is not this wrapper's, None included | ValueError |

    Args:
        inner: the optimizer to protect.
        limit: the largest norm that is not a spike, in the gradient's units: a number,
            an array, a schedule of the number of updates, or a
            `clipjax.thresholds.Threshold`, which learns from accepted norms.
        multiple: the largest ratio of a norm to the average of accepted norms.
        sigma: the rise above the mean, in standard deviations, from which on a value is
            a spike; by default 6 if neither limit nor multiple is given.
        tolerance: the smallest rise of a spike by ``sigma``, as a fraction of the
            mean's magnitude; 0 for sigma alone.
        window: how many of the latest accepted steps ``sigma`` uses, at least 2.
        minimum_history: how many nonzero values to observe before ``multiple`` and
            ``sigma`` apply, from 2 to ``window``; by default half the window. A
            Threshold has its own setting.
        loss: whether ``sigma`` watches the loss besides the norm. Pass it to update, as
            ``value=loss``. Without ``sigma`` the loss is not watched.
        granularity: the blocks with separate norms, limits and statistics: the whole
            gradient, or each leaf or group. A step is then skipped if any of them has a
            spike, and `clipjax.skipped_steps` names the one furthest above its limit.
            Among a hundred leaves, one often has an unusual norm by chance: choose
            larger limits.
        alarm_after: length of a streak of skipped steps that sets the alarm.
        record_size: how many of the latest skipped steps `clipjax.skipped_steps` lists,
            with ``batch_id`` if that is passed to update.
        axis_name: mesh or pmap axes that leaves are split over, inside ``shard_map``
            and ``pmap``, so that all devices take the same decision. A loss that
            differs over them is averaged.
        name: prefix of its metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``. The inner optimizer gets all
        extra arguments, ``value`` included.

    Raises:
        TypeError: inner is not a gradient transformation, or a number is of a wrong
            type.
        ValueError: a number is out of range, or update is not given ``value``.

    Example:
        >>> import clipjax, optax, jax.numpy as jnp
        >>> optimizer = clipjax.skip_on_spike(optax.adam(0.1), limit=100.0)
        >>> params = jnp.ones(1)
        >>> state = optimizer.init(params)
        >>> for norm in (3.0, 500.0, 2.0):
        ...     _, state = optimizer.update(jnp.array([norm]), state, params)
        ...     print(state.is_spike, state.accepted, optax.tree.get(state, "count"))
        False 1 1
        True 1 1
        False 2 2

    References:
        ``limit``: ``grad_norm_skip_threshold`` of Megatron-LM. ``multiple``:
        ``skip_and_clip_by_global_norm`` of axlearn. ``sigma``: OLMo team, `2 OLMo 2
        Furious <https://arxiv.org/abs/2501.00656>`_, 2025; their code, and that of
        Levanter and MaxText, use the same window and sigma, but enter rejected values
        into the history and have no tolerance.
    """
    inner = as_transformation("inner", inner)
    source = as_threshold(limit, "limit")
    watch = clip_by(source, granularity=granularity, axis_name=axis_name).clipper
    require_integer("window", window, lowest=2)
    least = max(2, window // 2) if minimum_history is None else minimum_history
    require_integer("minimum_history", least, lowest=2)
    if least > window:
        raise ValueError(f"minimum_history must be at most {window=}, got {least!r}")
    if multiple is not None:
        require_number("multiple", multiple, infinite=False)
        limits = minimum(source, ema(multiple, remember="raw", minimum_history=least))
    else:
        limits = minimum(source)
    if sigma is None and limit is None and multiple is None:
        sigma = 6.0
    if sigma is not None:
        require_number("sigma", sigma, infinite=False)
    require_number("tolerance", tolerance, infinite=False)
    require_bool("loss", loss)
    require_integer("alarm_after", alarm_after, lowest=1)
    require_integer("record_size", record_size, lowest=1)
    require_name(name)

    def fresh(blocks: Blocks, params: Any, inner_state: Any) -> SkipOnSpikeState:
        shapes = {"norm": (window, blocks.count), "loss": (window,)}
        watched = () if sigma is None else ("loss", "norm") if loss else ("norm",)
        return SkipOnSpikeState(
            skip_names={name: {repr(granularity): ()}},
            skipped_count=jnp.zeros((), jnp.int32),
            streak=jnp.zeros((), jnp.int32),
            alarm=jnp.zeros((), bool),
            is_spike=jnp.zeros((), bool),
            accepted=jnp.zeros((), jnp.int32),
            history={k: jnp.zeros(shapes[k], blocks.leaves.dtype) for k in watched},
            limit_memory=limits.init(blocks, params),
            skip_record=empty_record(record_size),
            inner_state=inner_state,
        )

    def init(params: Any) -> SkipOnSpikeState:
        leaves = Leaves.of(params)
        blocks = granularity.of(leaves, [()] * len(leaves.arrays))
        return fresh(blocks, params, inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, SkipOnSpikeState]:
        leaves = Leaves.of(updates)
        blocks = granularity.of(leaves, mesh_axes(leaves, axis_name, params))
        own = functools.partial(fresh, blocks, updates)
        state = checked_own_state(state, own, "skip_on_spike")
        measured = measure(l2, blocks, leaves.arrays)
        steps = state.skip_record.steps_seen
        context = watch.context(blocks, steps, params, extra)
        allowed, memory = limits.update(measured.norms, state.limit_memory, context)

        norms, highest = blocks.vector(measured.norms), valid(blocks.vector(allowed))
        values = {"norm": norms}
        is_high = jnp.zeros((), bool)
        for key, past in state.history.items():
            usual = _highest(past, state.accepted, sigma, tolerance, least)
            if key == "norm":
                highest = jnp.minimum(highest, usual)
            else:
                values[key] = _loss(extra.get("value"), axis_name).astype(past.dtype)
                is_high |= (values[key] > usual) | ~jnp.isfinite(values[key])
        are_high = (norms > highest) | (norms == jnp.inf)
        is_spike = is_high | jnp.any(are_high)

        new_updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra
        )
        streak = jnp.where(is_spike, optax.safe_increment(state.streak), 0)
        accepted = optax.safe_increment(state.accepted)
        history = {
            key: in_ring(past, state.accepted, values[key])
            for key, past in state.history.items()
        }
        block = NONE
        if granularity.reports_blocks and blocks.count:
            block = _furthest(norms, highest, are_high)
        kept = (state.accepted, state.history, state.limit_memory)
        entered = (jnp.asarray(accepted), history, memory)
        accepted, history, memory = state_before_if(is_spike, kept, entered)
        return no_update_if(is_spike, new_updates), SkipOnSpikeState(
            skip_names=state.skip_names,
            skipped_count=state.skipped_count + is_spike.astype(jnp.int32),
            streak=streak,
            alarm=state.alarm | (streak >= alarm_after),
            is_spike=is_spike,
            accepted=accepted,
            history=history,
            limit_memory=memory,
            skip_record=next_record(
                state.skip_record, is_spike, state.skipped_count, block, extra
            ),
            inner_state=state_before_if(is_spike, state.inner_state, inner_state),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _highest(
    past: jax.Array, accepted: jax.Array, sigma: Any, tolerance: Any, least: int
) -> jax.Array:
    """Return the largest value that is no spike over a ring buffer; inf if unknown.

    Args:
        past: the ring buffer, along the first axis.
        accepted: how many values have entered it.
        sigma: see `skip_on_spike`.
        tolerance: likewise.
        least: how many nonzero values must be in the buffer.
    """
    # A layer that is frozen at first would otherwise have a mean near zero, and every
    # later step would be a spike.
    counts = (slots(past) < accepted) & (past != 0)
    number = jnp.sum(counts.astype(past.dtype), axis=0)
    # Relative to the largest entry, so that no square overflows.
    peak = jnp.max(jnp.where(counts, jnp.abs(past), 0), axis=0)
    scale = jnp.where(peak > 0, peak, 1)
    past = jnp.where(counts, past / scale[None], 0)
    mean = jnp.sum(past, axis=0) / jnp.maximum(number, 1)
    squares = jnp.where(counts, jnp.square(past - mean[None]), 0)
    deviation = jnp.sqrt(jnp.sum(squares, axis=0) / jnp.maximum(number - 1, 1))
    sigma, tolerance = (jnp.asarray(x, past.dtype) for x in (sigma, tolerance))
    rise = jnp.maximum(sigma * deviation, tolerance * jnp.abs(mean))
    return jnp.where(number >= least, scale * (mean + rise), jnp.inf)


def _furthest(norms: jax.Array, highest: jax.Array, are_high: jax.Array) -> jax.Array:
    """Return the position of the spike furthest above its limit, or -1."""
    finite = norms < jnp.inf
    ratio = jnp.where(finite, norms, 0) / jnp.where(highest > 0, highest, 1)
    excess = jnp.where(are_high, jnp.where(finite, ratio, jnp.inf), -1)
    return jnp.where(jnp.any(are_high), jnp.argmax(excess), NONE).astype(jnp.int32)


def _loss(value: Any, axis_name: AxisNames) -> jax.Array:
    """Return the loss, averaged over the axes over which it differs."""
    if value is None:
        raise ValueError(
            "skip_on_spike needs the loss: call update(updates, state, params, "
            "value=loss), or build it with loss=False to watch the norm only"
        )
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(f"value must be a scalar loss, got shape {value.shape}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(jnp.float32)
    (axes,) = mesh_axes(Leaves.of({"value": value}), axis_name)
    return jax.lax.pmean(value, axes) if axes else value
