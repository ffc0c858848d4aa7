"""The function that clips each example's gradient and sums, and its sensitivity."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.trees import Leaves, is_clippable
from ..jax_internals import spec_of
from ..rules import Rule, ratio, valid
from .batches import in_microbatches
from .direct import PerExample
from .examples import Examples
from .ghost import describe, ghost
from .meshes import WHOLE, of_arrays, on_any_mesh, require_no_mixing
from .relations import CHANGES, relation_name
from .rounding import cast_toward_zero, gamma, root
from .thresholds import Groups
from .vmap import direct

METHODS = {"auto": ghost, "ghost": ghost, "vmap": direct}


class AuxiliaryOutput(NamedTuple):
    """Results for each example; None where the caller did not ask for them.

    They are not private: they depend on single examples, without noise. Release
    `clipjax.privacy.noisy_clip_fraction` in their place.

    Attributes:
        values: losses, of shape ``[B]``.
        grad_norms: norms before the clip, of shape ``[B]``, float32.
        aux: the loss's own auxiliary output, with the examples as first axis. With
            ``keep_batch_dim``, the batch axis of length 1 is removed.
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
        """Return the clipped gradient, with an `AuxiliaryOutput` if `has_aux`.

        Args:
            *arguments: the arguments of the loss function.
            is_padding_example: bool of shape ``[B]``, true for examples that are
                padding and count as absent.
            **options: keyword arguments of the loss function, the same for all.
        """

        def specs() -> Any:
            params = self.examples.params(arguments)
            own = jax.tree.map(spec_of, params)
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
        groups = Groups.of(l2_clip_norm, Leaves.of(result))
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
        norm = root(added(found.squares.values(), padding))
        # The sum of an example whose squares overflow cannot be bounded.
        bad = ~jnp.isfinite(added(found.bounds.values(), padding)) & ~padding
        weights = {}
        for names, limit in zip(groups.members, limits, strict=True):
            longest = root(added((found.bounds[name] for name in names), padding))
            # Roundings of the sum over parameters, the root, the rule and the quotient.
            longest *= 1 + gamma(len(names) + 8, longest.dtype)
            lost = added((found.underflow[name] for name in names), padding)
            lost = jnp.where(jnp.isfinite(lost), lost, 0)
            limit = limit.astype(longest.dtype)
            if self.rescale_to_unit_norm:
                factor = _rescaled(self.rule, longest, limit) * (1 - lost)
            else:
                below = jnp.where(limit > lost, limit - lost, jnp.minimum(limit, 0))
                factor = ratio(_length(self.rule, longest, below), longest)
            # A gradient of zero may have a weight that overflows, and 0 · inf is NaN.
            factor = jnp.minimum(factor, jnp.finfo(factor.dtype).max)
            if self.nan_safe:
                # NaN by a threshold that is NaN, or by the user's rule.
                factor = jnp.where(bad | jnp.isnan(factor), 0, factor)
            weights |= dict.fromkeys(names, jnp.where(padding, 0, factor))
        return weights, norm, bad

    def _finished(self, total: jax.Array, param: Any) -> jax.Array:
        if not is_clippable(param):
            return jnp.zeros_like(param)
        if not (isinstance(self.normalize_by, int | float) and self.normalize_by == 1):
            total = total / jnp.asarray(self.normalize_by, total.dtype)
        return cast_toward_zero(
            total, param.dtype if self.dtype is None else self.dtype
        )

    @property
    def l2_norm_bound(self) -> Any:
        """The largest norm of an example's share of the result; see `sensitivity`."""
        return self.sensitivity()

    def sensitivity(self, neighboring_relation: Any = "ADD_OR_REMOVE_ONE") -> Any:
        """Return the largest change of the result by one example, in the L2 norm.

        The bound does not cover a rounding of the sum to a dtype narrower than float32:
        with such parameters, pass ``dtype=jnp.float32`` and cast after adding noise. It
        covers the gradient alone, not an `AuxiliaryOutput`. Thresholds and
        ``normalize_by`` must not be computed from private data, such as the size of a
        batch that was drawn at random. An example's loss must not depend on other
        examples: labels that ``batch_argnums`` does not name, or that are passed by
        keyword or closure, are those of the whole batch for every example, and no bound
        covers them.

        In float32, the rounding of a long sum is not covered either: without one
        example, the others are added in a different order. With gradients along one
        axis, that changed a sum by up to 0.0007 C more at 10,000 examples; in
        microbatches of 64 by 0.06 C at 65,536 and 0.6 C at a million; without
        microbatches by 0.003 C and 0.04 C.

        Args:
            neighboring_relation: ``ADD_OR_REMOVE_ONE``, ``REPLACE_SPECIAL`` or
                ``REPLACE_ONE``, which doubles it: a name, or a member of
                ``dp_accounting.NeighboringRelation``.

        Raises:
            ValueError: the relation is unknown; the rule is not bounded; ``nan_safe``
                is False; ``dtype`` is narrower than float32; or a threshold is a
                function of the example, or of shape ``[B]``, without
                ``rescale_to_unit_norm``.
        """
        relation = relation_name(neighboring_relation)
        if not self.rule.bounded:
            raise ValueError(
                f"rule={self.rule!r} does not bound an example's gradient, so that "
                "there is no sensitivity"
            )
        if not self.nan_safe:
            raise ValueError("nan_safe must be True for a sensitivity, got False")
        if self.dtype is not None and jnp.finfo(self.dtype).bits < 32:
            raise ValueError(
                f"dtype={jnp.dtype(self.dtype)} has no sensitivity: rounding the "
                "sum of a thousand examples to bfloat16 can move it by 1.66 times "
                "the threshold when one is left out; pass dtype=jnp.float32, add "
                "noise to that result, and cast afterwards"
            )
        if self.rescale_to_unit_norm:
            bound = Groups.bound_of_units(self.l2_clip_norm)
        else:
            bound = Groups.bound(self.l2_clip_norm)
        divisor = self.normalize_by
        if not isinstance(divisor, int | float):
            divisor = jnp.asarray(divisor, jnp.result_type(float))
        return CHANGES[relation] * bound / divisor

    def plan(self, *arguments: Any, **options: Any) -> str:
        """Describe how each parameter's norm is computed, why, and the memory it takes.

        Args:
            *arguments: the arguments of the loss function, or ``ShapeDtypeStruct``.
            **options: keyword arguments of the loss function.

        Returns:
            A line for each parameter, and one for all. A parameter either has a
            gradient for each example, or it is used in products only and its norm
            follows from their factors. The memory is that of the arrays kept until the
            norms are known, for the whole batch, whatever ``microbatch_size`` is; XLA
            may need less.
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


def _rescaled(rule: Rule, norm: jax.Array, limit: jax.Array) -> jax.Array:
    """Return length / (norm · C), with its limit at C = 0, 1 / norm for most rules."""
    info = jnp.finfo(norm.dtype)
    # Far below the norm, but large enough that fractions are not flushed to zero.
    near_zero = jnp.maximum(norm * float(info.eps) ** 2, info.tiny)
    least = jnp.where(limit == 0, near_zero, limit)
    length = jnp.where(limit == jnp.inf, 0, _length(rule, norm, least) / least)
    return jnp.where(norm > 0, length / jnp.where(norm > 0, norm, 1), 1)


def added(squares: Iterable[jax.Array], like: jax.Array) -> jax.Array:
    """Return the sum in the widest dtype among the terms; zeros if there are none."""
    parts = [*squares, jnp.zeros(like.shape, jnp.float32)]
    dtype = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
    return functools.reduce(jnp.add, (part.astype(dtype) for part in parts))


def _length(rule: Rule, norm: jax.Array, threshold: jax.Array) -> jax.Array:
    """Return the length by a rule; NaN for a norm that is infinite or NaN."""
    is_finite = norm < jnp.inf
    limit = valid(threshold)
    length = rule.lengths(jnp.where(is_finite, norm, 0), limit)
    if rule.bounded:  # which users' rules inherit
        length = jnp.clip(length, 0, limit)
    unclipped = jnp.where(threshold == jnp.inf, norm, jnp.nan)
    return jnp.where(is_finite, length, unclipped)
