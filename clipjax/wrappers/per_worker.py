"""A wrapper that clips each worker's gradient by itself, before the mean."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..core.dtypes import narrow
from ..core.meshes import AxisNames, as_tuple, each_worker, types_tell
from ..core.state import ClipState
from ..core.trees import Leaves, is_clippable
from ..jax_internals import varying_axes
from .inner import as_transformation
from .states import states_in


def per_worker(
    clip: optax.GradientTransformation, axis_name: AxisNames
) -> optax.GradientTransformationExtraArgs:
    r"""Clip the gradient of every worker, then average over the workers.

    .. math:: u = \frac1n \sum_{i=1}^n \operatorname{clip}(g_i)
        \qquad\text{rather than}\qquad
        u = \operatorname{clip}\Bigl(\frac1n \sum_{i=1}^n g_i\Bigr)

    Every clip computes the second form from averaged gradients, as does one device with
    the whole batch. The first form bounds the contribution of each worker, but it is
    biased where workers differ, and shorter: clipped to 1, the gradients 10 and -8
    average to 0, whereas their mean clips to 1.

    Use it inside ``shard_map``, ``pmap`` or ``vmap`` with an axis name, on gradients
    that have not been reduced, in place of the mean. The mean is taken in float32 or
    wider.

    All workers keep the same state: the mean over workers of the state that each would
    have on its own. So the memory of a threshold is the mean of the workers' memories,
    and the reported norm the mean of their norms. Workers with NaN or inf, or that skip
    the step, are left out of that mean, unless all workers are such. Integers and
    flags, such as counts, are combined by their maximum. The state is therefore as
    large as one worker's, and costs further, small all-reduces.

    | input | result |
    |---|---|
    | one worker, or all with the same gradient | the clip's own result |
    | NaN or inf on one worker | as the clip does there, then averaged; the state is
      the other workers' |
    | leaves split over other mesh axes | joined over those, per worker |
    | a wrapper or a chain as ``clip`` | works; its whole state is averaged |
    | integer, float0, PRNG-key, None leaves | as the clip returns them |

    Args:
        clip: the clip, or any transformation that shortens gradients. Its own
            ``axis_name``, if it needs one, names the axes that parameters are split
            over, not the workers' axes.
        axis_name: the axis, or axes, whose devices are the workers.

    Returns:
        An ``optax.GradientTransformationExtraArgs``. The clip gets the parameters and
        all extra arguments.

    Raises:
        TypeError: clip is not a gradient transformation.
        ValueError: axis_name names no axis; or the types of traced updates show that
            they are the same on all workers. ``jax.grad`` in ``shard_map`` sums
            gradients of parameters that do not differ over workers: ``jax.lax.pcast``
            them first.

    Example:
        >>> import clipjax, jax, jax.numpy as jnp
        >>> clip = clipjax.per_worker(clipjax.clip_by_global_norm(1.0), "workers")
        >>> step = jax.vmap(lambda grads: clip.update(grads, None), axis_name="workers")
        >>> updates, state = step(jnp.array([10.0, -8.0]))
        >>> print(updates, state.clip_info.norm_before)
        [0. 0.] [9. 9.]

    References:
        Liu, Zhuang, Lei, Liao, `A communication-efficient distributed gradient clipping
        algorithm for training deep neural networks
        <https://arxiv.org/abs/2205.05040>`_, 2022, for clipping by worker
    """
    inner = as_transformation("clip", clip)
    axes = as_tuple(axis_name)
    if not axes:
        raise ValueError(f"axis_name must name the workers' axes, got {axis_name!r}")

    def update(
        updates: Any, state: Any = None, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        _require_own(updates, axes)
        with each_worker(axes):
            clipped, own = inner.update(updates, state, params, **extra)
        clipped = jax.tree.map(
            lambda leaf: _mean(axes, leaf) if is_clippable(leaf) else leaf, clipped
        )
        join = functools.partial(_shared, axes, _shares(axes, own, state))
        return clipped, jax.tree.map(join, own)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _require_own(updates: Any, axes: tuple[Any, ...]) -> None:
    """Refuse gradients that are the same on all workers, where types show it."""
    leaves = Leaves.of(updates).arrays
    told = {axis for axis in axes if types_tell(axis)}
    if leaves and told and not any(told & varying_axes(leaf) for leaf in leaves):
        raise ValueError(
            f"updates do not differ over the workers' axes {axes}: they look summed "
            "already, as jax.grad returns them for parameters that do not differ. "
            f"Pass jax.lax.pcast(params, {axes}, to='varying') to the loss"
        )


def _wide(leaf: jax.Array) -> jax.Array:
    """Cast to float32 or wider, since a sum over workers may overflow float16."""
    is_narrow = jnp.finfo(leaf.dtype).bits < 32
    return leaf.astype(jnp.float32) if is_narrow else leaf


def _mean(axes: tuple[Any, ...], leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    mean = jax.lax.pmean(_wide(leaf), axes)
    return mean if mean.dtype == leaf.dtype else mean.astype(leaf.dtype)


def _shares(axes: tuple[Any, ...], own: Any, before: Any) -> jax.Array:
    """Return 0 on a worker whose memories ignored this step, else 1."""
    now, then = (list(map(_left_out, states_in(tree))) for tree in (own, before))
    share = jnp.int32(1)
    for count, earlier in zip(now, then or [0] * len(now), strict=True):
        share = jnp.where(count > earlier, 0, share)
    return jnp.where(jax.lax.pmax(share, axes) > 0, share, 1)


def _left_out(state: Any) -> jax.Array:
    """Return the number of steps that a clip's or a skip wrapper's memory ignored."""
    if isinstance(state, ClipState):
        return state.clip_info.nonfinite_steps
    return state.skipped_count


def _shared(axes: tuple[Any, ...], share: jax.Array, own: Any) -> Any:
    """Combine a leaf of the workers' states."""
    own = jnp.asarray(own)
    if is_clippable(own):
        wide = _wide(own)
        # The mean of differences from the maximum: a value that is the same on all
        # workers is then not rounded.
        base = jnp.zeros(wide.shape, wide.dtype)
        if not jnp.iscomplexobj(wide):
            base = jax.lax.stop_gradient(jnp.where(jnp.isfinite(wide), wide, -jnp.inf))
            base = jax.lax.pmax(base, axes)
            base = jnp.where(base == -jnp.inf, 0, base)
        beyond = jnp.where(share > 0, wide - base, 0)
        count = jax.lax.psum(share.astype(wide.dtype), axes)
        mean = narrow(base + jax.lax.psum(beyond, axes) / count, base)
        return mean if mean.dtype == own.dtype else mean.astype(own.dtype)
    if own.dtype == bool:
        return jax.lax.pmax(own.astype(jnp.int32), axes) > 0
    if jnp.issubdtype(own.dtype, jnp.integer):
        return jax.lax.pmax(own, axes)
    return own
