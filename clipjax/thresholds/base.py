"""The protocol of a threshold source, and what all sources share."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..granularity import Blocks
from ..trees import NamedLeaves


@dataclasses.dataclass(frozen=True)
class Context:
    """What a source may look at besides the norms.

    Attributes:
        count: int32 number of updates before this one.
        leaves: the updates' leaves, or in ``init`` the parameters'.
        zeros: makes zeros in the form of the norms: see `clipjax.granularity`.
        table: turns a prefix tree of values into one value per block.
        measure: measures a tree's leaves with the same norm and blocks.
        whole: gives the norm of the whole from the norms of its blocks.
        aligned: reads from another tree, of the given name, the leaves that the
            updates have.
        joined: joins one array a leaf over the devices that the leaf is split over, by
            ``jax.lax.psum`` or `clipjax.distributed.pmax`.
        params: the parameters, or None.
        extra: the extra arguments of the update: ``value``, ``learning_rate``, ….
        dtype: the norms' dtype.
    """

    count: jax.Array
    leaves: NamedLeaves
    zeros: Callable[[], Blocks]
    table: Callable[[Any], Blocks]
    measure: Callable[[NamedLeaves], Blocks]
    whole: Callable[[Blocks], jax.Array]
    aligned: Callable[[Any, str], NamedLeaves]
    joined: Callable[[Mapping[str, jax.Array], Any], Mapping[str, jax.Array]]
    params: Any
    extra: Mapping[str, Any]
    dtype: Any

    def parameters(self, who: str) -> NamedLeaves:
        """Gives the parameters' leaves, or says who needs them."""
        if self.params is None and self.leaves.arrays:
            raise ValueError(f"{who} needs params: call update(updates, state, params)")
        return self.aligned(self.params, "params")

    def argument(self, name: str, who: str) -> Any:
        """Gives an extra argument, or says who needs it and how to pass it."""
        if self.extra.get(name) is None:
            raise ValueError(
                f"{who} needs {name}: call update(updates, state, params, {name}=...)"
            )
        return self.extra[name]


class Threshold:
    """Where a clip's thresholds come from. Parts are frozen dataclasses.

    Subclasses give `init` and `update`. The state is any pytree whose structure,
    shapes and dtypes do not change. The engine keeps the old state after a step with
    NaN or inf, so that a non-finite norm never enters a memory.

    Attributes:
        kind: the name in a clip's coordinates.
        remembers: the state depends on earlier norms, so that `update` cannot do
            without it.
    """

    kind: str
    remembers: bool = False

    def init(self, context: Context) -> Any:
        """Makes the state before the first step."""
        del context
        return ()

    def update(self, norms: Blocks, state: Any, context: Context) -> tuple[Blocks, Any]:
        """Gives this step's thresholds, one per block or one for all, and the state."""
        raise NotImplementedError


def fill(threshold: Blocks, norms: Blocks) -> Blocks:
    """Gives every block its threshold, in the norms' form and dtype."""
    if isinstance(norms, dict):
        parts = (
            threshold
            if isinstance(threshold, dict)
            else dict.fromkeys(norms, threshold)
        )
        return {name: _fill_array(parts[name], norms[name]) for name in norms}
    return _fill_array(threshold, norms)


def _fill_array(threshold: Any, norm: jax.Array) -> jax.Array:
    threshold = jnp.asarray(threshold)
    if threshold.size == 1 and threshold.ndim > norm.ndim:
        threshold = threshold.reshape(())
    if not fits(threshold.shape, norm.shape):
        raise ValueError(
            f"threshold of shape {threshold.shape} does not fit blocks of shape "
            f"{norm.shape}; pass one number, or one per block"
        )
    shape = (1,) * (norm.ndim - threshold.ndim) + threshold.shape
    # Adding zeros broadcasts, and unlike broadcast_to takes the norm's sharding over.
    return threshold.reshape(shape).astype(norm.dtype) + jnp.zeros_like(norm)


def fits(shape: tuple[int, ...], norm_shape: tuple[int, ...]) -> bool:
    """Tells whether a shape broadcasts to another without enlarging it."""
    if len(shape) > len(norm_shape):
        return False
    trailing = norm_shape[len(norm_shape) - len(shape) :]
    return all(n in (1, m) for n, m in zip(shape, trailing, strict=True))


def require_integer(name: str, value: Any, lowest: int, hint: str = "") -> None:
    """Checks a Python integer, such as one that fixes shapes and cannot be traced.

    Raises:
        TypeError: the value is no integer.
        ValueError: the value is below ``lowest``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be an integer of at least {lowest}, got {value!r}{hint}"
        )
    if value < lowest:
        raise ValueError(
            f"{name} must be an integer of at least {lowest}, got {value!r}"
        )


def require_number(
    name: str, value: Any, *, lowest: float = 0.0, infinite: bool = True
) -> None:
    """Checks a Python or NumPy number; JAX arrays are data, and not looked at.

    Raises:
        TypeError: the value is a bool, a string, or no number at all.
        ValueError: the value is NaN, below ``lowest``, or infinite where it must not.
    """
    accepted = f"a number of at least {lowest:g}" + (
        " (inf: no clip)" if infinite else ", finite"
    )
    if isinstance(value, jax.Array):
        if value.dtype == bool or not jnp.issubdtype(value.dtype, jnp.number):
            raise TypeError(f"{name} must be {accepted}, got dtype {value.dtype}")
        return
    if isinstance(value, np.ndarray):
        for entry in value.reshape(-1).tolist():
            require_number(name, entry, lowest=lowest, infinite=infinite)
        return
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {accepted}, got {value!r}")
    if math.isnan(value) or value < lowest or (math.isinf(value) and not infinite):
        raise ValueError(f"{name} must be {accepted}, got {value!r}")
