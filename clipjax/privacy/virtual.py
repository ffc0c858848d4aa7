"""Batches larger than memory: add up clipped gradients, and add noise once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from ..core.dtypes import accumulation_dtype, narrow, widen
from ..core.trees import Leaves, is_clippable, zeros_like
from ..jax_internals import Tracer
from ..wrappers.inner import as_transformation, checked_own_state
from .checks import require_wide


class VirtualState(NamedTuple):
    """The state of `virtual_batches`.

    Attributes:
        pending_sum: the sum of the clipped gradients of the step so far, a tree like
            the parameters, in float32 or wider. It has no noise: it is private, and so
            is a checkpoint that contains it.
        pending_batches: int32 number of batches in that sum: after a restart, skip this
            many batches of the step.
        inner_state: the state of the wrapped optimizer.
    """

    pending_sum: Any
    pending_batches: Int[Array, ""]
    inner_state: Any


def virtual_batches(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Add up the clipped gradients of several batches, and step once.

    .. math:: u = \mathrm{optimizer}\Big(\sum_b s_b\Big)

    A step's sample may not fit into memory. The clipped sums :math:`s_b` over its
    physical batches add up to that of the whole sample, so that the sensitivity is the
    same, C/m under ADD_OR_REMOVE_ONE and 2C/m under REPLACE_ONE. The optimizer, with
    its noise, runs once, on the last batch. Call ``update(clipped, state, params,
    is_last=...)`` for each batch.

    | input | result |
    |---|---|
    | a batch that is not the last | -0.0 in every leaf; ``optimizer`` is not run |
    | the last batch of a step | the update by ``optimizer`` for the sum |
    | is_last left out | TypeError: each batch would get noise as a step of its own |
    | is_last traced | the same, by ``lax.cond``: one program, and ``lax.scan`` |
    | a batch of padding alone | counts as zeros |
    | a leaf narrower than float32 | TypeError |
    | integer, float0, PRNG-key, None leaves | unchanged |
    | a state that is not this wrapper's, None included | ValueError |

    The sum is in float32, or in float64 where parameters are, and is not divided: the
    divisor m is a constant, the ``normalize_by`` of `clipjax.clipped_grad`.

    ``optax.MultiSteps`` is no replacement. It averages over micro-steps, so that the
    noise, which is calibrated to the sum, would be too large by their number; and it
    steps after a fixed number of them, while a Poisson sample has a varying number of
    batches. With ``use_grad_mean=False`` and a fixed number of batches for every step,
    its updates are the same.

    Args:
        optimizer: the optimizer to run once per step, with the noise inside:
            ``privacy.dp_sgd(...)``, or a chain that starts with
            ``privacy.gaussian_noise(...)`` or with a privatizer of jax_privacy, such as
            ``jax_privacy.noise_addition.matrix_factorization_privatizer``.

    Returns:
        An ``optax.GradientTransformationExtraArgs`` with a `VirtualState`, whose
        ``update`` needs ``is_last``, a bool or a boolean array. ``apply_gradients`` of
        Flax Linen's ``TrainState`` does not pass it on: call ``state.tx.update``.

    Raises:
        TypeError: optimizer is not a gradient transformation, is_last is missing or no
            bool, or, when traced, a leaf is narrower than float32.
        ValueError: the shape of a leaf differs from that of its parameter.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from clipjax import privacy
        >>> optimizer = privacy.virtual_batches(
        ...     privacy.dp_sgd(
        ...         1.0, sensitivity=0.1, noise_multiplier=0.0, key=jax.random.key(0)
        ...     )
        ... )
        >>> params = jnp.zeros(2)
        >>> state = optimizer.init(params)
        >>> for clipped, is_last in [(0.1, False), (0.2, True)]:
        ...     clipped = jnp.full(2, clipped)
        ...     updates, state = optimizer.update(
        ...         clipped, state, params, is_last=is_last
        ...     )
        ...     print(updates)
        [-0. -0.]
        [-0.3 -0.3]

    References:
        Virtual steps are those of Opacus' ``BatchMemoryManager``: Yousefpour et al.,
        `Opacus <https://arxiv.org/abs/2109.12298>`_, 2021.
    """
    inner = as_transformation("optimizer", optimizer)

    def fresh(pending_sum: Any, inner_state: Any) -> VirtualState:
        return VirtualState(pending_sum, jnp.zeros((), jnp.int32), inner_state)

    def init(params: Any) -> VirtualState:
        return fresh(jax.tree.map(_zero_sum, params), inner.init(params))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        is_last: Any = None,
        **extra: Any,
    ) -> tuple[Any, VirtualState]:
        is_last = _as_flag(is_last)
        inside = ("pending_sum", "inner_state")
        state = checked_own_state(state, fresh, "virtual_batches", inside)
        leaves = Leaves.of(updates)
        require_wide(leaves)
        pending = leaves.aligned(state.pending_sum, "the parameters of init")
        sums = leaves.map(_plus, pending, leaves.names)

        def step() -> tuple[list[jax.Array], Any]:
            moved, after = inner.update(
                leaves.tree(sums), state.inner_state, params, **extra
            )
            kept = jax.tree.map(_in_dtype_of, state.inner_state, after)
            return leaves.aligned(moved, "the optimizer's updates"), kept

        def wait() -> tuple[list[jax.Array], Any]:
            # -0.0, since adding +0.0 would turn a parameter of -0.0 into +0.0.
            moved, _ = jax.eval_shape(step)
            return [jnp.full_like(leaf, -0.0) for leaf in moved], state.inner_state

        if isinstance(is_last, bool):
            moved, inner_state = step() if is_last else wait()
        else:
            moved, inner_state = jax.lax.cond(is_last, step, wait)
        rest = [jnp.where(is_last, jnp.zeros_like(total), total) for total in sums]
        count = optax.safe_increment(state.pending_batches)
        return leaves.tree(moved), VirtualState(
            leaves.placed(state.pending_sum, rest),
            jnp.where(is_last, jnp.zeros_like(count), count),
            inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _as_flag(is_last: Any) -> Any:
    """Return a Python bool if the value is known, else the traced array."""
    if is_last is None:
        raise TypeError(
            "is_last must be a bool: pass update(..., is_last=...), as "
            "PoissonSampler.batches yields it, and True where a batch is a whole step. "
            "flax's TrainState.apply_gradients does not pass it on: call "
            "state.tx.update"
        )
    dtype = getattr(is_last, "dtype", np.dtype(type(is_last)))
    if dtype != np.bool_ or jnp.shape(is_last):
        raise TypeError(f"is_last must be a bool or a boolean scalar, got {is_last!r}")
    return is_last if isinstance(is_last, Tracer) else bool(is_last)


def _zero_sum(param: Any) -> jax.Array:
    zero = zeros_like(param)
    if not is_clippable(param):
        return zero
    return widen(zero, accumulation_dtype([zero]))


def _plus(leaf: jax.Array, pending: jax.Array, name: str) -> jax.Array:
    if leaf.shape != pending.shape:
        raise ValueError(
            f"{name or 'the update'} has shape {leaf.shape}, and its parameter has "
            f"shape {pending.shape}"
        )
    return pending + leaf.astype(pending.dtype)


def _in_dtype_of(old: Any, new: Any) -> Any:
    """Cast a part of a state to its earlier dtype, which some optimizers change."""
    if not is_clippable(old):
        return new
    return narrow(jnp.asarray(new), jnp.asarray(old))
