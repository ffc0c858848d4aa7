"""How much a single example moves a step, or the trained parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..core.checks import (
    require_choice,
    require_integer,
    require_number,
    require_part,
)
from ..core.dtypes import accumulation_dtype, widen
from ..rules import Rule, hard, valid
from .vectors import length, real_array, real_leaves


class Influence(NamedTuple):
    """The contribution of each example of a batch to its gradient.

    Not private: all but the bound depends on single examples, without noise;
    `clipjax.privacy.noisy_clip_fraction` is a statistic that may be released.

    Attributes:
        contributions: norms of the contributions, of shape ``[B]``.
        largest: the largest of them.
        example: the position of that example.
        bound: the largest possible contribution, C/m; inf under a rule without a bound.
    """

    contributions: Float[Array, " B"]
    largest: Float[Array, ""]
    example: Int[Array, ""]
    bound: Float[Array, ""]


def influence(
    example_norms: Any,
    threshold: float | jax.Array,
    *,
    rule: Rule = hard,
    normalize_by: float | None = None,
) -> Influence:
    r"""Return the norm of each example's term in a gradient clipped per example.

    .. math:: \frac{\min(\lVert g_i \rVert, C)}{m}

    These are the lengths of the terms that `clipjax.clipped_grad` sums, for the
    threshold C and the divisor m. Without a clip, C = inf, the contribution of an
    outlier is unbounded. The function works under ``jit``.

    | input | result |
    |---|---|
    | a norm of NaN or inf | 0: ``clipped_grad`` leaves the example out |
    | C = inf | the norm divided by m |
    | C negative or NaN, a JAX array | 0 |

    Args:
        example_norms: norms before the clip, of shape ``[B]``: those of
            `clipjax.per_example_grad_norms`, or of ``return_grad_norms=True``.
        threshold: C, at least 0.
        rule: the rule of the clip.
        normalize_by: m, above 0; by default B, as for the mean gradient.

    Returns:
        An `Influence` of float32 (float64 for float64 norms).

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or there are no norms.

    Example:
        >>> import jax.numpy as jnp
        >>> from clipjax.diagnostics import influence
        >>> norms = jnp.array([0.5, 0.25, 100.0, 0.25])
        >>> for threshold in (jnp.inf, 1.0):
        ...     found = influence(norms, threshold)
        ...     print(int(found.example), found.largest, found.bound)
        2 25.0 inf
        2 0.25 0.25
    """
    norms = real_array("example_norms", example_norms)
    if norms.ndim != 1 or not norms.size:
        raise ValueError(
            f"example_norms must have a shape [B] with B at least 1, got {norms.shape}"
        )
    require_number("threshold", threshold)
    require_part("rule", rule, Rule, "rules.hard")
    if normalize_by is None:
        normalize_by = norms.size
    require_number("normalize_by", normalize_by, lowest=math.ulp(0.0), infinite=False)
    dtype = accumulation_dtype([norms])
    norms = norms.astype(dtype)
    norms = jnp.where(jnp.isfinite(norms), norms, 0)
    limit = valid(jnp.asarray(threshold).astype(dtype))
    contributions = rule.lengths(norms, limit) / normalize_by
    bound = limit / normalize_by if rule.bounded else jnp.full((), jnp.inf, dtype)
    return Influence(
        contributions, jnp.max(contributions), jnp.argmax(contributions), bound
    )


class LeaveOneOut(NamedTuple):
    """How far the trained parameters move when one example is left out.

    Not private: it depends on single examples, without noise.

    Attributes:
        changes: norms of the differences of the parameters, of shape ``[count]``; NaN
            where a training diverged.
        largest: the largest of them; NaN if any is.
        example: the position of that example.
    """

    changes: Float[Array, " count"]
    largest: Float[Array, ""]
    example: Int[Array, ""]


def leave_one_out(
    train: Callable[[jax.Array], Any], count: int, *, method: str = "vmap"
) -> LeaveOneOut:
    r"""Train once without each example, and return how far the parameters move.

    .. math:: \lVert \theta_{-i} - \theta \rVert_2

    The function runs ``count`` + 1 trainings, and is meant for small models. All of
    them must start from the same parameters and use the same batches; otherwise the
    differences come from the seeds. A clip per example bounds the contribution of an
    example to a step. It does not bound this change by itself, which also grows where
    the loss is flat: near a minimum it is about the inverse Hessian times the example's
    contribution.

    | method | trainings | memory |
    |---|---|---|
    | ``vmap`` | all at once; ``train`` must be traceable | ``count`` + 1 times one's |
    | ``loop`` | one after another; any Python function | one's |

    Args:
        train: a function from the examples' weights in the loss to the trained
            parameters, a tree. The weights are a float32 array of shape ``[count]``:
            ones, and a zero for the example that is left out.
        count: the number of examples.
        method: ``vmap`` or ``loop``.

    Returns:
        A `LeaveOneOut` of float32 (float64 for float64 parameters).

    Raises:
        TypeError: train is not a function, count is not an integer, or a parameter is
            complex.
        ValueError: count is below 1, or the parameters have no floating-point leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from clipjax.diagnostics import leave_one_out
        >>> data = jnp.array([0.0, 3.0, 6.0, 15.0])
        >>> mean = lambda weights: jnp.sum(weights * data) / jnp.sum(weights)
        >>> print(leave_one_out(mean, 4).changes)
        [2. 1. 0. 3.]
    """
    if not callable(train):
        raise TypeError(f"train must be a function of the weights, got {train!r}")
    require_integer("count", count, 1)
    require_choice("method", method, ("vmap", "loop"))
    # The first training has all examples; each of the others lacks one.
    weights = jnp.concatenate([jnp.ones((1, count)), 1 - jnp.eye(count)])
    weights = weights.astype(jnp.float32)
    if method == "vmap":
        trained = jax.jit(jax.vmap(train))(weights)
        arrays = real_leaves("the parameters of train", trained).arrays
    else:
        each = [
            real_leaves("the parameters of train", train(w)).arrays for w in weights
        ]
        arrays = [jnp.stack(leaf) for leaf in zip(*each, strict=True)]
    dtype = accumulation_dtype(arrays)
    vectors = jnp.concatenate(
        [widen(array, dtype).reshape(count + 1, -1) for array in arrays], axis=1
    )
    changes = jax.vmap(length)(vectors[1:] - vectors[:1])
    return LeaveOneOut(changes, jnp.max(changes), jnp.argmax(changes))
