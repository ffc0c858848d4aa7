"""The public functions: clipped gradients, and norms, of single examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import require_integer, require_number
from ..rules import Rule, hard
from .batches import in_microbatches
from .clipped import METHODS, ClippedGrad, added
from .examples import take_apart
from .meshes import WHOLE, on_any_mesh, require_no_mixing
from .rounding import root
from .thresholds import Groups


def clipped_grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    l2_clip_norm: Any,
    rule: Rule = hard,
    batch_argnums: int | Sequence[int] = 1,
    keep_batch_dim: bool = True,
    normalize_by: Any = 1.0,
    return_values: bool = False,
    return_grad_norms: bool = False,
    microbatch_size: int | None = None,
    method: str = "auto",
    nan_safe: bool = True,
    dtype: Any = None,
    prng_argnum: int | None = None,
    rescale_to_unit_norm: bool = False,
    pre_clipping_transform: Callable[[Any], Any] | None = None,
    spmd_axis_name: Any = None,
) -> ClippedGrad:
    r"""Clip the gradient of every example by itself, and sum.

    .. math:: \sum_i g_i \min(1, C / \lVert g_i \rVert_2)

    Models need no change. With the method ``ghost``, per-example gradients are not
    computed for parameters that are used in matrix products, convolutions and look-ups
    only, but for other parameters, such as biases. ``plan`` lists both kinds.

    An example is clipped by an upper bound of its norm that covers rounding, so that it
    adds at most C (1 + 1e-6) in float32; in ordinary models it is up to 1e-4 shorter.

    | input | result |
    |---|---|
    | an example's norm ≤ C | its gradient |
    | an example's norm > C, bounded rule | norm C or up to 1e-4 less |
    | NaN, inf or overflow in an example | adds exactly nothing, and is counted |
    | a padding example | adds exactly nothing |
    | an empty batch | zeros |
    | C = 0 | zeros |
    | C negative or NaN, a Python or NumPy number | ValueError |
    | C negative or NaN, a JAX array | adds nothing |
    | an integer parameter | zeros |
    | ``shard_map`` with checked types | ValueError: see the message |

    The loss gets one example at a time of the arguments in batch_argnums, so that it
    cannot mix examples: batch statistics are those of a single example. Every example
    gets the same other arguments: labels that batch_argnums does not name are those of
    the whole batch, and void a guarantee.

    Args:
        fun: the loss, a scalar, or with has_aux a pair of the loss and a tree.
        argnums: which arguments to differentiate.
        has_aux: whether fun returns an auxiliary output.
        l2_clip_norm: C, in the gradient's units: a number or scalar array, an array of
            shape ``[B]``, a function of the batch arguments of one example, a prefix
            tree of those over the parameters, each entry of which is clipped
            separately, or the result of `clipjax.privacy.split_threshold`. None
            disables clipping.
        rule: the rule, by default ``hard``.
        batch_argnums: which arguments have the examples along their first axis.
        keep_batch_dim: whether fun gets an example as a batch of one.
        normalize_by: the divisor of the sum, above 0.
        return_values: return the losses as well. Not private: they depend on single
            examples, without noise; see `AuxiliaryOutput`.
        return_grad_norms: return the norms before the clip as well. Not private.
        microbatch_size: how many examples to take at a time; None for all.
        method: ``ghost``, ``vmap``, which computes every example's gradient, or
            ``auto``.
        nan_safe: leave out examples with NaN, inf or overflow; otherwise the result is
            NaN.
        dtype: the result's dtype; by default that of each parameter.
        prng_argnum: which argument is a PRNG key, to be split over the examples by
            position: for a guarantee a secret key, new at every step.
        rescale_to_unit_norm: divide each clipped gradient by C, so that the sensitivity
            is 1 whatever C is. C = 0 then normalizes, its limit; C = inf yields zeros.
        pre_clipping_transform: a function of the gradient of one example, a tree like
            the parameters, whose result is clipped and summed in its place. It needs
            every example's gradient, as ``vmap`` does. Reported norms are those before
            the transform.
        spmd_axis_name: see `jax.vmap`.

    Returns:
        A `ClippedGrad`, a function of fun's arguments and ``is_padding_example=``. It
        returns the gradient or, if other outputs are requested, a pair of the gradient
        and an `AuxiliaryOutput`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> loss = lambda w, x: jnp.sum(x @ w)
        >>> grad = clipjax.clipped_grad(loss, l2_clip_norm=2.5)
        >>> total = grad(jnp.zeros(2), jnp.array([[3.0, 4.0], [0.25, 0.5]]))
        >>> print(jnp.round(total, 4))
        [1.75 2.5 ]
        >>> grad.sensitivity()
        2.5

    References:
        Abadi et al., `Deep learning with differential privacy
        <https://arxiv.org/abs/1607.00133>`_, 2016; Bu, Wang, Zha, Karypis,
        `Differentially private optimization on large model at small cost
        <https://arxiv.org/abs/2210.00038>`_, 2023, for book-keeping. Arguments and
        defaults are those of ``jax_privacy.clipped_grad``.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a Rule such as rules.hard, got {rule!r}")
    require_number("normalize_by", normalize_by, lowest=math.ulp(0.0), infinite=False)
    examples = take_apart(
        fun, argnums, has_aux, batch_argnums, keep_batch_dim, prng_argnum
    )
    _require_method(method, microbatch_size)
    Groups.check(l2_clip_norm)
    if pre_clipping_transform is not None:
        if not callable(pre_clipping_transform):
            raise TypeError(
                "pre_clipping_transform must be a function, got "
                f"{pre_clipping_transform!r}"
            )
        if method == "ghost":
            raise ValueError(
                "pre_clipping_transform needs the gradient of every example, which "
                "method='ghost' does not compute: use 'vmap' or 'auto'"
            )
    return ClippedGrad(
        examples,
        l2_clip_norm,
        rule,
        normalize_by,
        return_values,
        return_grad_norms,
        microbatch_size,
        method,
        nan_safe,
        dtype,
        bool(rescale_to_unit_norm),
        pre_clipping_transform,
        spmd_axis_name,
    )


def per_example_grad_norms(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    batch_argnums: int | Sequence[int] = 1,
    keep_batch_dim: bool = True,
    microbatch_size: int | None = None,
    method: str = "auto",
    prng_argnum: int | None = None,
    per_leaf: bool = False,
) -> Callable[..., Any]:
    """Return the norm of every example's gradient, to diagnose and to find outliers.

    Args:
        fun: the loss; see `clipped_grad`, also for the other arguments.
        argnums: which arguments to differentiate.
        has_aux: whether fun returns an auxiliary output, which is dropped.
        batch_argnums: which arguments have the examples along their first axis.
        keep_batch_dim: whether fun gets an example as a batch of one.
        microbatch_size: how many examples to take at a time; None for all.
        method: ``ghost``, ``vmap`` or ``auto``.
        prng_argnum: which argument is a PRNG key, to be split over the examples.
        per_leaf: return the norms of each parameter, in a dictionary by path.

    Returns:
        A function of fun's arguments that returns L2 norms of shape ``[B]``, float32.
        They are not private: each depends on a single example, without noise. Release
        `clipjax.privacy.noisy_clip_fraction` in their place.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> norms = clipjax.per_example_grad_norms(lambda w, x: jnp.sum(x @ w))
        >>> print(norms(jnp.zeros(2), jnp.array([[3.0, 4.0], [0.3, 0.4]])))
        [5.  0.5]
    """
    examples = take_apart(
        fun, argnums, has_aux, batch_argnums, keep_batch_dim, prng_argnum
    )
    _require_method(method, microbatch_size)

    def run(options: Any, *arguments: Any) -> Any:
        params, batch = examples.params(arguments), examples.batch(arguments)
        require_no_mixing(batch)
        loss = examples.loss(arguments, options)
        size = jax.tree.leaves(batch)[0].shape[0]

        def chunk(rows: Any) -> tuple[Any, dict[str, jax.Array]]:
            return (), METHODS[method](loss, params, rows).squares

        _, squares = in_microbatches(chunk, batch, size, microbatch_size)
        if per_leaf:
            return {name: root(square) for name, square in squares.items()}
        return root(added(squares.values(), jnp.zeros(size)))

    def norms(*arguments: Any, **options: Any) -> Any:
        return on_any_mesh(run, lambda: WHOLE)(options, *arguments)

    return norms


def _require_method(method: str, microbatch_size: int | None) -> None:
    if method not in METHODS:
        raise ValueError(
            f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}"
        )
    if microbatch_size is not None:
        require_integer("microbatch_size", microbatch_size, 1)
