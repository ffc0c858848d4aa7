"""Gaussian noise for a sum of clipped gradients, as an Optax transformation."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, UInt32

from ..core.checks import Scalar, require_axis_name, require_number, require_steps
from ..core.dtypes import full_like
from ..core.meshes import AxisNames, MeshAxes, mesh_axes, worker_axes
from ..core.state import checked_state
from ..core.trees import Leaves
from ..jax_internals import explicit_sharding, varying_axes
from .checks import require_wide, words_of

# Folded into the key, so that this noise is independent of other draws from the same
# key, such as those of a sampler.
_PURPOSE = 0x6E6F6973
_LAST_STEP = 2**31 - 1


class NoiseState(NamedTuple):
    """The state of `gaussian_noise`: a restart needs it and the parameters only.

    Attributes:
        noise_steps: int32 number of updates so far. Each update draws new noise.
        noise_key: the words of the key, from `jax.random.key_data`, so that any
            checkpointing library can store them.
    """

    noise_steps: Int[Array, ""]
    noise_key: UInt32[Array, " words"]


def gaussian_noise(
    sensitivity: Scalar,
    noise_multiplier: Scalar,
    key: jax.Array,
    *,
    steps: int | None = None,
    axis_name: AxisNames = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Add Gaussian noise to a sum of gradients that were clipped per example.

    .. math:: u = s + \sigma \Delta\, z, \qquad z \sim \mathcal{N}(0, I)

    with the sensitivity Δ and the noise multiplier σ. Its input is the result of
    `clipjax.clipped_grad`, so that it is the first member of the chain: later members,
    such as momentum and Adam, get noisy values only and do not weaken the guarantee. A
    loss that is passed to update, as for a line search, voids it.

    The key and the number of the step, both in the state, determine the noise of a
    step: a run that is restored from a checkpoint continues with the same noise as
    without the stop, and no noise is used twice. A run that starts again with the same
    key, but other parameters or data, uses the noise twice, which reveals the
    difference of the two sums: use a new key for each run. The same holds for a run
    that returns to an earlier checkpoint and continues with other batches, or that
    updates twice from one state.

    A wrapper around it gets the sum before the noise. `clipjax.skip_on_spike` as a
    wrapper would decide by a private norm and, after a skipped step, draw the same
    noise again. ``optax.chain(gaussian_noise(...), skip_on_spike(...))`` is private.

    | input | result |
    |---|---|
    | a batch without examples | noise only |
    | noise_multiplier = 0 | the updates: no privacy |
    | more steps than planned | zeros: nothing more is released |
    | a leaf narrower than float32 | TypeError |
    | a part of a tree, by ``optax.masked`` or ``optax.partition`` | ValueError |
    | integer, float0, PRNG-key, None leaves | unchanged |
    | halves of a tree with one key, None in place of the rest | different noise |
    | ``jax.vmap`` over models with one key | the same noise for all: no privacy |
    | complex leaves | real and imaginary parts each get noise of that deviation |
    | leaves sharded under ``jit``, on any mesh | the noise of one device |
    | ``shard_map`` | the same noise on replicas, other noise on each shard |
    | one worker's gradient; inside `clipjax.per_worker` | ValueError |
    | another state, or that of another generator | ValueError |

    Noise and sum are rounded to float32, in which JAX's normal numbers do not exceed
    5.42 standard deviations; one in 17 million should. Guarantees are proved for real
    numbers: they cover neither this nor attacks on the last digits of the released
    values (Mironov, 2012).

    Args:
        sensitivity: Δ, the most that one example changes the sum, in the L2 norm:
            ``clipped_grad(...).sensitivity(neighboring_relation)``. With the threshold
            C and the fixed divisor m, it is C/m for adding or removing one example, and
            2C/m for replacing one.
        noise_multiplier: σ, the standard deviation of each entry in units of Δ; see
            `clipjax.privacy.noise_multiplier`. Schedules are not accepted, since
            accountants take one number for all steps; ``optax.inject_hyperparams``
            accepts one, with ``static_args=("key", "steps")``, and for parameters
            narrower than float32 with ``hyperparam_dtype=jnp.float32``.
        key: a key from `jax.random.key`, used for nothing else. With the generator
            ``rbg``, the numbers differ between kinds of hardware.
        steps: the number of updates that the guarantee was computed for; None does not
            count them.
        axis_name: the mesh axes that leaves are split over, inside ``shard_map`` with
            unchecked types or ``pmap``; () if there are none. Elsewhere the axes are
            known from the types.

    Returns:
        An ``optax.GradientTransformationExtraArgs`` with a `NoiseState`. With
        parameters, a result has their dtype; the noise is added before.

    Raises:
        TypeError: an argument is of the wrong kind, or, when traced, a leaf is narrower
            than float32: the sum was rounded before the noise, by more than Δ covers.
        ValueError: an argument is out of range, or, when traced, updates are a part of
            the gradient only.

    Example:
        >>> import clipjax, jax, jax.numpy as jnp
        >>> from clipjax import privacy
        >>> grad = clipjax.clipped_grad(
        ...     lambda w, x: jnp.sum(x @ w), l2_clip_norm=1.0, normalize_by=4.0
        ... )
        >>> noise = privacy.gaussian_noise(grad.sensitivity(), 2.0, jax.random.key(0))
        >>> w = jnp.zeros(10_000)
        >>> update, state = noise.update(grad(w, jnp.ones((4, 10_000))), noise.init(w))
        >>> print(f"{jnp.mean(update):.2f} {jnp.std(update):.2f} {state.noise_steps}")
        0.00 0.50 1

    References:
        Abadi et al., `Deep learning with differential privacy
        <https://arxiv.org/abs/1607.00133>`_, 2016; Mironov, `On significance of the
        least significant bits for differential privacy
        <https://doi.org/10.1145/2382196.2382264>`_, 2012.
    """
    _require_scale(sensitivity, noise_multiplier)
    words, implementation = words_of(key)
    if steps is not None:
        require_steps("steps", steps)
    require_axis_name(axis_name)
    # Beyond int32 the count would saturate, and the same noise would be used again.
    limit = _LAST_STEP if steps is None else min(steps, _LAST_STEP)

    def init(params: Any) -> NoiseState:
        del params
        # A copy, since a donated state must not share its arrays with the caller's key.
        return NoiseState(jnp.zeros((), jnp.int32), jnp.array(words, copy=True))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, NoiseState]:
        del extra
        state = checked_state(state, lambda: init(None), True, "gaussian_noise")
        leaves = Leaves.of(updates)
        _require_whole(updates)
        require_wide(leaves)
        splits = mesh_axes(leaves, axis_name, params, what="draw of noise")
        _require_reduced(leaves, splits)
        noisy = _released(
            leaves.arrays,
            jax.random.wrap_key_data(state.noise_key, impl=implementation),
            _deviation(sensitivity, noise_multiplier, leaves.dtype),
            state.noise_steps,
            limit,
            tuple(splits),
            tuple(zlib.crc32(name.encode()) for name in leaves.names),
        )
        if params is not None:
            owners = leaves.aligned(params, "params")
            noisy = [a.astype(b.dtype) for a, b in zip(noisy, owners, strict=True)]
        count = jnp.asarray(optax.safe_increment(state.noise_steps))
        return leaves.tree(noisy), NoiseState(count, state.noise_key)

    return optax.GradientTransformationExtraArgs(init, update)


def laplace_noise(*arguments: Any, **options: Any) -> NoReturn:
    """Raise an error: Laplace noise needs a sensitivity that this clip does not bound.

    Raises:
        ValueError: always.
    """
    del arguments, options
    raise ValueError(
        "Laplace noise is calibrated to the L1 sensitivity, and a clip in the L2 norm "
        "bounds that only by C√d for adding or removing one example, and 2C√d for "
        "replacing one, with the threshold C and d parameters: use "
        "privacy.gaussian_noise, which needs the L2 sensitivity"
    )


def _require_scale(sensitivity: Any, noise_multiplier: Any) -> None:
    """Check both factors of the standard deviation, and that float32 represents it."""
    known = []
    for name, value in (
        ("sensitivity", sensitivity),
        ("noise_multiplier", noise_multiplier),
    ):
        require_number(name, value, infinite=False)
        if jnp.shape(value):
            raise ValueError(
                f"{name} must be a single number, got shape {jnp.shape(value)}: clip "
                "parts of the tree to thresholds of their own instead, with one "
                "sensitivity for all"
            )
        if isinstance(value, jax.Array) and value.dtype.itemsize < 4:
            raise TypeError(
                f"{name} must be at least 32 bits wide, got {value.dtype}: rounding "
                "may have taken some of the noise, or all; optax.inject_hyperparams "
                "rounds to the dtype of the parameters without "
                "hyperparam_dtype=jnp.float32"
            )
        known += [] if isinstance(value, jax.Array) else [float(value)]
    if len(known) == 2:
        deviation, limits = known[0] * known[1], jnp.finfo(jnp.float32)
        is_held = float(limits.tiny) <= deviation <= float(limits.max)
        if all(known) and not is_held:
            raise ValueError(
                f"sensitivity · noise_multiplier = {deviation:g} is out of the range "
                "of float32, so that the noise would be lost"
            )


def _deviation(sensitivity: Any, noise_multiplier: Any, dtype: Any) -> jax.Array:
    """Return the noise's standard deviation, the product of two scalars."""
    factors = [sensitivity, noise_multiplier]
    if any(isinstance(factor, jax.Array) for factor in factors):
        factors = [jnp.asarray(factor, dtype) for factor in factors]
    return jnp.asarray(factors[0] * factors[1], dtype)


def _require_whole(updates: Any) -> None:
    """Refuse a masked gradient."""

    def is_masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    if any(map(is_masked, jax.tree.leaves(updates, is_leaf=is_masked))):
        raise ValueError(
            "gaussian_noise inside optax.masked or optax.partition sees a part of the "
            "gradient: the rest would get no noise, or, from the same key, the same "
            "noise. Put it first: optax.chain(privacy.gaussian_noise(...), "
            "optax.partition(...)). To freeze parameters, pass them to the loss as an "
            "argument that clipped_grad does not differentiate"
        )


def _require_reduced(leaves: Leaves, splits: Sequence[MeshAxes]) -> None:
    """Refuse leaves that differ over devices which would draw the same noise."""
    if worker_axes():
        raise ValueError(
            "gaussian_noise inside clipjax.per_worker would add the same noise on all "
            "workers: put it after, on the mean"
        )
    for name, leaf, axes in zip(leaves.names, leaves.arrays, splits, strict=True):
        alike = sorted(map(str, varying_axes(leaf) - set(axes)))
        if alike:
            raise ValueError(
                f"{name or 'the update'} differs over the mesh axes {alike}, and "
                f"axis_name=() would give each shard the same noise: leave axis_name "
                "out, and pass params to update"
            )


# Under jit: outside of it, every call would compile the conditional again.
@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _released(
    arrays: list[jax.Array],
    key: jax.Array,
    deviation: jax.Array,
    step: jax.Array,
    limit: int,
    splits: tuple[MeshAxes, ...],
    names: tuple[int, ...],
) -> list[jax.Array]:
    """Return leaves with the noise of a step, or zeros after the planned steps."""
    key = jax.random.fold_in(jax.random.fold_in(key, _PURPOSE), step)

    def add_noise(arrays: list[jax.Array]) -> list[jax.Array]:
        # By position and name: in halves of a tree that have a key in common, with None
        # in place of the rest, the same positions occur again, but not the same paths.
        keys = [
            jax.random.fold_in(jax.random.fold_in(key, position), np.uint32(name))
            for position, name in enumerate(names)
        ]
        return [
            _noisy(leaf, deviation, _on_shard(own, axes))
            for leaf, own, axes in zip(arrays, keys, splits, strict=True)
        ]

    def zeros(arrays: list[jax.Array]) -> list[jax.Array]:
        return [full_like(leaf, 0) for leaf in arrays]

    # A conditional and not a selection: XLA then draws the noise after the buffers of
    # the gradient's computation are freed.
    return jax.lax.cond(step < limit, add_noise, zeros, arrays)


def _on_shard(key: jax.Array, axes: MeshAxes) -> jax.Array:
    """Return a different key for each shard, the same on all replicas of a shard."""
    for axis in axes:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    return key


def _noisy(leaf: jax.Array, deviation: jax.Array, key: jax.Array) -> jax.Array:
    """Add noise to a leaf, drawn on the leaf's own devices."""
    noise = jax.random.normal(
        key, leaf.shape, leaf.dtype, out_sharding=explicit_sharding(leaf)
    )
    if jnp.iscomplexobj(leaf):
        noise *= 2**0.5  # JAX's complex normal numbers have a total variance of 1
    return leaf + noise * deviation.astype(leaf.dtype)
