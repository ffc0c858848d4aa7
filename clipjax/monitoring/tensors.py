"""Numbers per tensor, on demand, since each call reads the trees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.dtypes import scaling_power, widen
from ..core.meshes import AxisNames, mesh_axes
from ..core.trees import Leaves
from ..diagnostics.geometry import leaf_norms
from ..granularity import leaf as each_leaf
from ..norms import l1
from ..wrappers.momentum import momentum_of as momentum_of

Norms = dict[str, jax.Array]


def tensor_report(
    grads: Any,
    updates: Any = None,
    params: Any = None,
    momentum: Any = None,
    *,
    axis_name: AxisNames = None,
) -> dict[str, jax.Array]:
    r"""Return norms and ratios of each tensor, for the trees that are given.

    | key | value |
    |---|---|
    | ``tensor/grad_norm/<leaf>`` | :math:`\lVert g \rVert` |
    | ``tensor/update_norm/<leaf>`` | :math:`\lVert u \rVert` |
    | ``tensor/param_norm/<leaf>`` | :math:`\lVert p \rVert` |
    | ``tensor/update_ratio/<leaf>`` | :math:`\lVert u \rVert / \lVert p \rVert` |
    | ``tensor/momentum_cosine/<leaf>`` | the cosine of the angle between gradient g and
      momentum m, :math:`\langle g, m \rangle / (\lVert g \rVert \lVert m \rVert)` |

    Cost: one read of updates and of parameters; one read of gradients, and two with
    momentum; two reads of the momentum; and one more of a tree with extreme magnitudes.
    No array as large as a leaf is stored. The function works under ``jit``; jit it
    separately and call it every hundred steps or so, so that the training step does not
    change. The result can be recorded: ``recorder.record(state, **report)``.

    | input | result |
    |---|---|
    | NaN or inf in a leaf | its norm inf; cosine NaN |
    | parameters of zeros | ratio inf; 0 if the update is zero, too |
    | gradient or momentum of zeros | cosine 0 |
    | integer, float0, PRNG-key, None leaves | left out |

    Args:
        grads: the gradients.
        updates: the updates, which are added to the parameters.
        params: the parameters before the step.
        momentum: the momentum, such as `momentum_of` the optimizer's state.
        axis_name: mesh axes that leaves are split over, inside ``shard_map``.

    Returns:
        A flat dictionary of float32 scalars (float64 where leaves are).

    Raises:
        ValueError: a tree lacks a leaf of the gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> from clipjax.monitoring import tensor_report
        >>> grads, params = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([0.0, 10.0])}
        >>> updates = {"w": jnp.array([-0.3, -0.4])}
        >>> report = tensor_report(grads, updates, params, momentum=params)
        >>> for key, value in report.items():
        ...     print(f"{key} {value:.2f}")
        tensor/grad_norm/w 5.00
        tensor/update_norm/w 0.50
        tensor/param_norm/w 10.00
        tensor/update_ratio/w 0.05
        tensor/momentum_cosine/w 0.80

    References:
        The quantities are those of `composer's OptimizerMonitor
        <https://docs.mosaicml.com/projects/composer/en/stable/api_reference/generated/
        composer.callbacks.OptimizerMonitor.html>`_.
    """
    leaves = Leaves.of(grads)

    def norms(tree: Any, what: str) -> Norms:
        arrays = leaves.aligned(tree, f"the leaves of {what}")
        named = dict(zip(leaves.names, arrays, strict=True))
        return leaf_norms(named, axis_name=axis_name)

    columns = {"grad_norm": norms(grads, "grads")}
    if updates is not None:
        columns["update_norm"] = norms(updates, "updates")
    if params is not None:
        columns["param_norm"] = norms(params, "params")
    if updates is not None and params is not None:
        columns["update_ratio"] = {
            name: _ratio(length, columns["param_norm"][name])
            for name, length in columns["update_norm"].items()
        }
    if momentum is not None:
        blocks = each_leaf().of(leaves, mesh_axes(leaves, axis_name))
        momentum_norms = norms(momentum, "momentum")
        products, lengths = _products(
            leaves, columns["grad_norm"], momentum, momentum_norms
        )
        sums = blocks.over_devices(l1, products)
        columns["momentum_cosine"] = {
            name: jnp.where(length > 0, product / jnp.where(length > 0, length, 1), 0)
            for name, product, length in zip(leaves.names, sums, lengths, strict=True)
        }
    return {
        f"tensor/{key}/{name}": value
        for key, column in columns.items()
        for name, value in column.items()
    }


def _ratio(update_norm: jax.Array, param_norm: jax.Array) -> jax.Array:
    """Divide, with 0 / 0 = 0."""
    is_zero = param_norm == 0
    of_zero = jnp.where(update_norm > 0, jnp.inf, 0).astype(update_norm.dtype)
    return jnp.where(is_zero, of_zero, update_norm / jnp.where(is_zero, 1, param_norm))


def _products(
    leaves: Leaves, grad_norms: Norms, momentum: Any, momentum_norms: Norms
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return the inner product of each leaf with its momentum, and of their norms.

    Each factor is multiplied by a power of two that brings its norm near 1, so that no
    product leaves the range of float32.
    """
    products, lengths = [], []
    others = leaves.aligned(momentum, "the leaves of momentum")
    for name, grad, other in zip(leaves.names, leaves.arrays, others, strict=True):
        (one, length), (two, other_length) = (
            _near_one(grad, grad_norms[name], leaves.dtype),
            _near_one(other, momentum_norms[name], leaves.dtype),
        )
        products.append(jnp.sum(jnp.real(one * jnp.conj(two))))
        lengths.append(length * other_length)
    return products, lengths


def _near_one(
    array: jax.Array, norm: jax.Array, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Return an array and its norm, scaled by a power of two to a norm of 1 to 4."""
    power = scaling_power(norm).astype(dtype)
    wide = widen(array, dtype)
    return wide * power.astype(wide.dtype), norm.astype(dtype) * power
