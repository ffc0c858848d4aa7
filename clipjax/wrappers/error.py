"""A wrapper that raises an error for a gradient with NaN or infinity."""

from __future__ import annotations

from typing import Any

import optax

from ..core.meshes import AxisNames
from ..core.trees import Leaves
from ..jax_internals import Tracer, checkify
from .inner import as_transformation, first_bad_leaf


def raise_on_nonfinite(
    inner: optax.GradientTransformation, *, axis_name: AxisNames = None
) -> optax.GradientTransformationExtraArgs:
    """Raise an error that names the first leaf with NaN or inf, for debugging.

    | where update is called | with NaN or inf in the gradient |
    |---|---|
    | outside ``jit`` | FloatingPointError, before ``inner`` is called |
    | inside ``jit``, under ``checkify.checkify`` | an error with the same text, in the
      error value that checkify returns |
    | inside ``jit``, without it | checkify's ValueError, NaN or not: a compiled program
      cannot raise by itself |

    Each check reads the gradient once more, and the program has one check per leaf. In
    a long run, use `clipjax.skip_nonfinite`, which skips and counts such steps and
    records the leaf.

    Args:
        inner: a clip or an optimizer.
        axis_name: mesh or pmap axes that leaves are split over, inside ``shard_map``
            and ``pmap``.

    Returns:
        An ``optax.GradientTransformationExtraArgs`` with the state of ``inner``.

    Raises:
        TypeError: inner is not a gradient transformation.

    Example:
        >>> import clipjax, jax, optax, jax.numpy as jnp
        >>> from jax.experimental import checkify
        >>> optimizer = clipjax.raise_on_nonfinite(optax.sgd(0.1))
        >>> bad = {"bias": jnp.ones(2), "kernel": jnp.array([jnp.nan, 1.0])}
        >>> state = optimizer.init(bad)
        >>> update = checkify.checkify(jax.jit(optimizer.update))
        >>> error, (updates, state) = update(bad, state)
        >>> print(error.get().splitlines()[0])
        the gradient has NaN or inf in 'kernel' (`check` failed)
        >>> optimizer.update(bad, state)
        Traceback (most recent call last):
        FloatingPointError: the gradient has NaN or inf in 'kernel'
    """
    inner = as_transformation("inner", inner)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        leaves = Leaves.of(updates)
        position = first_bad_leaf(updates, axis_name, params)
        messages = [f"the gradient has NaN or inf in {name!r}" for name in leaves.names]
        if isinstance(position, Tracer):
            # One check per leaf, since a check's text cannot depend on an array.
            for i, message in enumerate(messages):
                text = message.replace("{", "{{").replace("}", "}}")
                checkify.check(position != i, text)
        elif position >= 0:
            raise FloatingPointError(messages[int(position)])
        return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)
