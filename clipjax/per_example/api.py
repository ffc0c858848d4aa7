"""Gradients that are clipped example by example, before they are summed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..rules import Rule, hard, lengths, ratio
from ..thresholds.base import require_integer, require_number
from ..trees import NamedLeaves, is_clippable
from .batches import in_microbatches
from .direct import PerExample
from .examples import Examples, take_apart
from .ghost import describe, ghost
from .meshes import WHOLE, of_arrays, on_any_mesh, require_no_mixing
from .rounding import cast_toward_zero, gamma, root
from .thresholds import Groups
from .vmap import direct

METHODS = {"auto": ghost, "ghost": ghost, "vmap": direct}
RELATIONS = {"ADD_OR_REMOVE_ONE": 1.0, "REPLACE_SPECIAL": 1.0, "REPLACE_ONE": 2.0}


class AuxiliaryOutput(NamedTuple):
    """What there is to know of each example; None where it was not asked for.

    Attributes:
        values: losses, of shape ``[B]``.
        grad_norms: norms before the clip, of shape ``[B]``, float32.
        aux: the loss's own auxiliary output, with the examples in front, and with
            ``keep_batch_dim`` without the axis of one that each has for its batch.
        nonfinite_count: int32 number of examples left out for NaN, inf or overflow.
    """

    values: Any
    grad_norms: Any
    aux: Any
    nonfinite_count: Any


@dataclasses.dataclass(frozen=True, eq=False)  # hashable, with arrays among the fields
class ClippedGrad:
    """A function from a batch to its clipped gradient; see `clipped_grad`."""

    examples: Examples
    l2_clip_norm: Any
    rule: Rule
    normalize_by: Any
    return_values: bool
    return_grad_norms: bool
    microbatch_size: int | None
    method: str
    nan_safe: bool
    dtype: Any
    rescale_to_unit_norm: bool = False
    pre_clipping_transform: Callable[[Any], Any] | None = None
    spmd_axis_name: Any = None

    def __call__(
        self, *arguments: Any, is_padding_example: Any = None, **options: Any
    ) -> Any:
        """Gives the gradient, and what else was asked for.

        Args:
            *arguments: those of the loss function.
            is_padding_example: bool of shape ``[B]``: examples that are not there.
            **options: keyword arguments of the loss function, the same for all.
        """

        def specs() -> Any:
            params = self.examples.params(arguments)
            own = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, params)
            # The transform's result may have another structure than the parameters.
            own = own if self.pre_clipping_transform is None else WHOLE
            return (own, WHOLE) if self.has_aux else own

        run = on_any_mesh(functools.partial(self._run, **options), specs)
        return run(is_padding_example, self.l2_clip_norm, *arguments)

    @property
    def has_aux(self) -> bool:
        """Whether a call returns a pair of the gradient and an `AuxiliaryOutput`."""
        return self.examples.has_aux or self.return_values or self.return_grad_norms

    def _run(
        self,
        is_padding_example: Any,
        l2_clip_norm: Any,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        params = self.examples.params(arguments)
        batch = self.examples.batch(arguments)
        require_no_mixing(batch)
        loss = self.examples.loss(arguments, options)
        transform = self.pre_clipping_transform
        result = params if transform is None else jax.eval_shape(transform, params)
        groups = Groups.of(l2_clip_norm, NamedLeaves.of(result))
        size = jax.tree.leaves(batch)[0].shape[0]
        padding = jnp.zeros(size, bool)
        if is_padding_example is not None:
            padding = jnp.asarray(is_padding_example, bool)
            if padding.shape != (size,):
                raise ValueError(
                    f"is_padding_example must be of shape ({size},), one for each "
                    f"example, got shape {padding.shape}"
                )
        shown = [batch[i] for i in self.examples.batch_argnums]

        def chunk(rows: Any) -> tuple[Any, Any]:
            batch, padding, limits = rows
            found = self._measured(loss, params, batch)
            weights, norm, bad = self._weights(groups, found, limits, padding)
            rows = (found.values, norm, found.aux, bad)
            return found.weighted_sum(weights), rows

        limits = groups.limits(shown, size)
        total, rows = in_microbatches(
            chunk, (batch, padding, limits), size, self.microbatch_size
        )
        gradient = jax.tree.map(self._finished, total, result)
        values, norms, aux, bad = rows
        if not self.has_aux:
            return gradient
        return gradient, AuxiliaryOutput(
            values if self.return_values else None,
            norms if self.return_grad_norms else None,
            aux if self.examples.has_aux else None,
            jnp.sum(bad, dtype=jnp.int32),
        )

    def _measured(self, loss: Any, params: Any, batch: Any) -> PerExample:
        if self.pre_clipping_transform is None:
            return METHODS[self.method](loss, params, batch, self.spmd_axis_name)
        # The transform needs each example's gradient.
        return direct(
            loss, params, batch, self.spmd_axis_name, self.pre_clipping_transform
        )

    def _weights(
        self,
        groups: Groups,
        found: PerExample,
        limits: Sequence[jax.Array],
        padding: jax.Array,
    ) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
        """Return weights by parameter, norms, and which examples are left out."""
        norm = root(_added(found.squares.values(), padding))
        # The sum of an example whose squares overflow cannot be bounded.
        bad = ~jnp.isfinite(_added(found.bounds.values(), padding)) & ~padding
        weights = {}
        for names, limit in zip(groups.members, limits, strict=True):
            longest = root(_added((found.bounds[name] for name in names), padding))
            # Of the sum over parameters, the root, the rule and the quotient.
            longest *= 1 + gamma(len(names) + 8, longest.dtype)
            lost = _added((found.underflow[name] for name in names), padding)
            lost = jnp.where(jnp.isfinite(lost), lost, 0)
            limit = limit.astype(longest.dtype)
            if self.rescale_to_unit_norm:
                factor = _rescaled(self.rule, longest, limit) * (1 - lost)
            else:
                below = jnp.where(limit > lost, limit - lost, jnp.minimum(limit, 0))
                factor = ratio(lengths(self.rule, longest, below), longest)
            # A gradient of zero may have a weight that overflows, and 0 · inf is NaN.
            factor = jnp.minimum(factor, jnp.finfo(factor.dtype).max)
            if self.nan_safe:
                factor = jnp.where(bad, 0, factor)
            weights |= dict.fromkeys(names, jnp.where(padding, 0, factor))
        return weights, norm, bad

    def _finished(self, total: jax.Array, param: Any) -> jax.Array:
        if not is_clippable(param):
            return jnp.zeros_like(param)
        if not (isinstance(self.normalize_by, int | float) and self.normalize_by == 1):
            total = total / jnp.asarray(self.normalize_by, total.dtype)
        return cast_toward_zero(total, param.dtype if self.dtype is None else self.dtype)

    @property
    def l2_norm_bound(self) -> Any:
        """How long an example's share of the result is at most; see `sensitivity`."""
        return self.sensitivity()

    def sensitivity(self, neighboring_relation: Any = "ADD_OR_REMOVE_ONE") -> Any:
        """Gives by how much the L2 norm of the result depends on one example.

        Args:
            neighboring_relation: ``ADD_OR_REMOVE_ONE``, ``REPLACE_SPECIAL`` or
                ``REPLACE_ONE``, which doubles it: a name, or a member of
                ``dp_accounting.NeighboringRelation``.

        Raises:
            ValueError: the relation is unknown; the rule is not bounded; NaN is let
                through; or a threshold is a function of the example.
        """
        relation = getattr(neighboring_relation, "name", neighboring_relation)
        if relation not in RELATIONS:
            raise ValueError(
                f"neighboring_relation must be one of {', '.join(RELATIONS)}, got "
                f"{neighboring_relation!r}"
            )
        if not self.rule.bounded:
            raise ValueError(
                f"rule={self.rule!r} does not bound an example's gradient, so that "
                "there is no sensitivity"
            )
        if not self.nan_safe:
            raise ValueError("nan_safe must be True for a sensitivity, got False")
        if self.dtype is not None and jnp.finfo(self.dtype).bits < 32:
            raise ValueError(
                f"dtype={jnp.dtype(self.dtype)} has no sensitivity: rounding the sum of "
                "a thousand examples to bfloat16 can move it by 1.66 times the "
                "threshold when one is left out; pass dtype=jnp.float32, add noise to "
                "that result, and cast afterwards"
            )
        if self.rescale_to_unit_norm:
            bound = Groups.bound_of_units(self.l2_clip_norm)
        else:
            bound = Groups.bound(self.l2_clip_norm)
        return RELATIONS[relation] * bound / self.normalize_by

    def plan(self, *arguments: Any, **options: Any) -> str:
        """Tells which parameters are measured how, why, and what it takes to hold.

        Args:
            *arguments: those of the loss function, or ``ShapeDtypeStruct``.
            **options: keyword arguments of the loss function.

        Returns:
            A line for each parameter, and one for all. A parameter has gradients per
            example; or it is used in products alone, and its norm is found from them.
            The memory is that of what is kept until the norms are known, for the whole
            batch, whatever ``microbatch_size`` is; XLA may need less.
        """
        lines = []

        def read(*arguments: Any) -> None:
            loss = self.examples.loss(arguments, options)
            params = self.examples.params(arguments)
            batch = self.examples.batch(arguments)
            is_dense = self.method == "vmap" or self.pre_clipping_transform is not None
            lines.append(describe(loss, params, batch, is_dense))

        run, arrays = of_arrays(on_any_mesh(read, lambda: None), arguments)
        jax.eval_shape(run, arrays)
        return lines[0]


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
    r"""Clips the gradient of every example by itself, and sums.

    .. math:: \sum_i g_i \min(1, C / \lVert g_i \rVert_2)

    No model has to change. With the method ``ghost`` no example's gradient is made
    where a parameter is used in matrix products, convolutions and look-ups only;
    others, such as biases, are made for every example. ``plan`` tells which are which.

    | input | result |
    |---|---|
    | an example's norm ≤ C | its gradient |
    | an example's norm > C, bounded rule | norm C, to rounding |
    | NaN, inf or overflow in an example | adds exactly nothing, and is counted |
    | a padding example | adds exactly nothing |
    | an empty batch | zeros |
    | C = 0 | zeros |
    | C negative or NaN, known now | ValueError |
    | C negative or NaN, traced | adds nothing |
    | an integer parameter | zeros |
    | ``shard_map`` with checked types | ValueError: see the message |

    The loss sees one example at a time, so that nothing can mix examples: batch
    statistics are those of one.

    Args:
        fun: the loss, a scalar, or with has_aux a pair of the loss and a tree.
        argnums: which arguments to differentiate.
        has_aux: whether fun gives an auxiliary output.
        l2_clip_norm: C, in the gradient's units: a number or scalar array, an array of
            shape ``[B]``, a function of the batch arguments of one example, or a prefix
            tree of those over the parameters, of which each entry is clipped by itself.
            None does not clip.
        rule: the rule, by default ``hard``.
        batch_argnums: which arguments have the examples along their first axis.
        keep_batch_dim: whether fun gets an example as a batch of one.
        normalize_by: what the sum is divided by, above 0.
        return_values: return the losses as well.
        return_grad_norms: return the norms before the clip as well.
        microbatch_size: how many examples to take at a time; None for all.
        method: ``ghost``, ``vmap``, which makes every example's gradient, or ``auto``.
        nan_safe: leave out examples with NaN, inf or overflow; otherwise the result is
            NaN.
        dtype: of the result; by default each parameter's own.
        prng_argnum: which argument is a PRNG key, to be split over the examples.
        rescale_to_unit_norm: divide each clipped gradient by C, so that the sensitivity
            is 1 whatever C is. C = 0 then normalizes, its limit; C = inf gives zeros.
        pre_clipping_transform: a function of the gradient of one example, a tree like
            the parameters, whose result is clipped and summed in its place. It needs
            every example's gradient, as by ``vmap``. Reported norms are those before.
        spmd_axis_name: see `jax.vmap`.

    Returns:
        A `ClippedGrad`. It takes fun's arguments, and ``is_padding_example=``, and
        gives the gradient, or if anything else was asked for, a pair with an
        `AuxiliaryOutput`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> loss = lambda w, x: jnp.sum(x @ w)
        >>> grad = clipjax.clipped_grad(loss, l2_clip_norm=2.5)
        >>> print(grad(jnp.zeros(2), jnp.array([[3.0, 4.0], [0.25, 0.5]])))
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
    """Measures the gradient of every example, for diagnostics and to find outliers.

    Args:
        fun: the loss; see `clipped_grad`, also for the other arguments.
        argnums: which arguments to differentiate.
        has_aux: whether fun gives an auxiliary output, which is dropped.
        batch_argnums: which arguments have the examples along their first axis.
        keep_batch_dim: whether fun gets an example as a batch of one.
        microbatch_size: how many examples to take at a time; None for all.
        method: ``ghost``, ``vmap`` or ``auto``.
        prng_argnum: which argument is a PRNG key, to be split over the examples.
        per_leaf: give the norms of each parameter, in a dictionary by path.

    Returns:
        A function of fun's arguments that gives L2 norms of shape ``[B]``, float32.

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
        return root(_added(squares.values(), jnp.zeros(size)))

    def norms(*arguments: Any, **options: Any) -> Any:
        return on_any_mesh(run, lambda: WHOLE)(options, *arguments)

    return norms


def _rescaled(rule: Rule, norm: jax.Array, limit: jax.Array) -> jax.Array:
    """Return length / (norm · C), with the limit 1 / norm at C = 0."""
    least = jnp.where(limit == 0, jnp.finfo(norm.dtype).tiny, limit)
    length = jnp.where(limit == jnp.inf, 0, lengths(rule, norm, least) / least)
    return jnp.where(norm > 0, length / jnp.where(norm > 0, norm, 1), 1)


def _added(squares: Iterable[jax.Array], like: jax.Array) -> jax.Array:
    """Sums up in the widest dtype that there is; nothing gives zeros."""
    parts = [*squares, jnp.zeros(like.shape, jnp.float32)]
    dtype = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
    return functools.reduce(jnp.add, (part.astype(dtype) for part in parts))


def _require_method(method: str, microbatch_size: int | None) -> None:
    if method not in METHODS:
        raise ValueError(
            f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}"
        )
    if microbatch_size is not None:
        require_integer("microbatch_size", microbatch_size, 1)
