"""Canaries: examples whose gradients are orthogonal to each other, for an audit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from ..core.checks import require_integer, require_number
from ..core.trees import Leaves

# Folded into the key, so that these draws are independent of other draws from it, such
# as the noise.
_PURPOSE = 0x63616E61


class Canaries(NamedTuple):
    """Directions in parameter space, and which of them are in the data.

    Attributes:
        inserted: whether each canary is in the data, decided by a fair coin.
        leaf: the leaf, counted in tree order, in which a canary's direction lies.
        entry: the entry of that leaf, in row-major order.
        sign: 1 or -1. The direction is the unit vector of the entry times the sign.
    """

    inserted: Bool[Array, " canaries"]
    leaf: Int32[Array, " canaries"]
    entry: Int32[Array, " canaries"]
    sign: Float32[Array, " canaries"]


def canaries(params: Any, count: int, key: jax.Array) -> Canaries:
    """Draw canaries: entries of the parameters, all different, and whether each is in.

    The directions are orthogonal ("Dirac canaries"), so that the score of one does not
    depend on the others. Each lies in one leaf: if leaves have separate thresholds, a
    canary attains that of its leaf alone, and the bound of ε is lower.

    For an audit in one run, append a row for each inserted canary to the data, numbered
    by ``jnp.flatnonzero(known.inserted)``; all other rows have the number -1. Leave out
    the canaries that are not inserted, or mark their rows as padding, and train with
    `with_canaries`.

    Args:
        params: the parameters, arrays or ``ShapeDtypeStruct``.
        count: the number of canaries, at most the number of entries.
        key: a key from `jax.random.key`. It cannot be traced.

    Returns:
        The `Canaries`. `with_canaries` returns a loss that treats their rows as
        examples, and `canary_scores` returns the scores to guess from.

    Raises:
        TypeError: count is not an integer.
        ValueError: there are more canaries than entries, or none.
    """
    require_integer("count", count, 1)
    sizes = np.array([math.prod(leaf.shape) for leaf in Leaves.of(params).arrays], int)
    if count > sizes.sum():
        raise ValueError(
            f"count must be at most the {sizes.sum()} entries of params, got {count}"
        )
    words = jax.random.key_data(jax.random.fold_in(key, _PURPOSE))
    generator = np.random.default_rng(np.asarray(words))
    ends = np.cumsum(sizes)
    places = generator.choice(ends[-1], count, replace=False)
    leaf = np.searchsorted(ends, places, side="right")
    return Canaries(
        jnp.asarray(generator.random(count) < 0.5),
        jnp.asarray(leaf, jnp.int32),
        jnp.asarray(places - (ends - sizes)[leaf], jnp.int32),
        jnp.asarray(generator.choice([-1, 1], count), jnp.float32),
    )


def with_canaries(
    fun: Callable[..., Any],
    canaries: Canaries,
    *,
    norm: float,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Return a loss with a canary number as argument, and with the canaries' gradients.

    The number is an additional batch argument, the last: -1 for an ordinary example,
    whose loss is that of ``fun``. The loss of a canary is linear in the parameters, so
    that its gradient is ``norm`` times its direction at every step; clip and noise
    treat it like any other example.

    Args:
        fun: the loss of one example, with the parameters as its first argument.
        canaries: the directions.
        norm: the norm of a canary's gradient before the clip. Choose several times the
            threshold, so that the audit tests the clip.
        has_aux: whether fun returns a pair of the loss and auxiliary output.

    Returns:
        A function for `clipjax.clipped_grad`. The other arguments of a canary's row
        reach fun, where they must give a finite loss, which is then dropped.

    Raises:
        ValueError: norm is negative or infinite, or, when traced, the loss gets several
            examples at once.

    Example:
        >>> import clipjax, jax, jax.numpy as jnp
        >>> from clipjax import privacy
        >>> params = {"w": jnp.zeros(3)}
        >>> known = privacy.canaries(params, 2, jax.random.key(0))
        >>> loss = lambda params, x: jnp.sum((x @ params["w"] - 1) ** 2)
        >>> grad = clipjax.clipped_grad(
        ...     privacy.with_canaries(loss, known, norm=10.0),
        ...     l2_clip_norm=1.0, batch_argnums=(1, 2),
        ... )
        >>> numbers = jnp.array([-1, 0, 1])
        >>> total = jax.jit(grad)(params, jnp.zeros((3, 3)), numbers)
        >>> print(jnp.round(privacy.canary_scores(total, known), 4))
        [1. 1.]
    """
    require_number("norm", norm, infinite=False)

    def loss(params: Any, *arguments: Any, **options: Any) -> Any:
        arguments, number = arguments[:-1], arguments[-1]
        if jnp.size(number) != 1:
            raise ValueError(
                "a loss with canaries takes one example at a time, as clipped_grad "
                f"gives them, got {jnp.size(number)} at once"
            )
        number = jnp.reshape(number, ())
        own = jax.tree.map(lambda array: array[jnp.maximum(number, 0)], canaries)
        result = fun(params, *arguments, **options)
        value, aux = result if has_aux else (result, None)
        along = norm * _along(params, own)
        value = jnp.where(number < 0, value, along.astype(value.dtype))
        return (value, aux) if has_aux else value

    return loss


def canary_scores(tree: Any, canaries: Canaries) -> Float32[Array, " canaries"]:
    """Return the inner product of a tree with every canary's direction.

    The tree is a value that the training run releases: the noisy gradient of a step,
    from `clipjax.privacy.gaussian_noise`, or the initial parameters minus the final
    ones. Scores of inserted canaries tend to be larger: mind the sign of the updates
    that ``dp_sgd`` returns.

    Over several steps, any function of the scores that is chosen beforehand is a valid
    attack. The sum over steps is the strongest one against correct noise; the range
    (largest minus smallest) detects noise that is the same at each step, if a canary is
    not in every batch.

    Args:
        tree: a tree like the parameters.
        canaries: the directions.
    """
    scores = jnp.zeros(jnp.shape(canaries.leaf), jnp.float32)
    for number, leaf in enumerate(Leaves.of(tree).arrays):
        if leaf.size:
            entry = jnp.minimum(canaries.entry, leaf.size - 1)
            value = jnp.real(leaf.reshape(-1)[entry]).astype(scores.dtype)
            scores += jnp.where(canaries.leaf == number, value * canaries.sign, 0)
    return scores


def _along(params: Any, canary: Canaries) -> jax.Array:
    """Return the inner product of parameters with the direction of one canary.

    Matrices are multiplied with unit vectors, as layers multiply them, so that
    `clipjax.clipped_grad` finds norms in the way that it does without canaries.
    """
    total = jnp.zeros((), jnp.float32)
    for number, leaf in enumerate(Leaves.of(params).arrays):
        if leaf.size:
            matrix = leaf if leaf.ndim > 1 else leaf.reshape(-1, 1)
            matrix = matrix.reshape(-1, matrix.shape[-1])
            row, column = jnp.divmod(canary.entry, matrix.shape[1])
            sign = jnp.where(canary.leaf == number, canary.sign, 0).astype(leaf.dtype)
            left = sign * jax.nn.one_hot(row, matrix.shape[0], dtype=leaf.dtype)
            right = jax.nn.one_hot(column, matrix.shape[1], dtype=leaf.dtype)
            total += jnp.real(left[None] @ matrix @ right).astype(total.dtype)[0]
    return total
