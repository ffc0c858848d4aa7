"""Has XLA make one array after another, or once more, so that it holds less at once.

XLA has no word for an order, and makes what does not depend on each other in the order
that suits it. This is the one place that reads from JAX's lowering.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import mlir

from .distributed import varying_axes
from .trees import NamedLeaves


def _is_one_device(axes: Any) -> bool:
    return getattr(axes, "num_devices", None) == 1


def _has_own_arrays(axes: Any) -> bool:
    """Tells whether no array is split over devices: in ``shard_map``, shards are."""
    mesh = getattr(axes, "mesh", None)
    is_manual = mesh is not None and axes.manual_axes == frozenset(mesh.axis_names)
    return is_manual or _is_one_device(axes)


def _known_when_lowered(name: str) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(lambda: np.False_)
    primitive.def_abstract_eval(lambda: ShapedArray((), np.dtype(bool)))
    return primitive


def _lower(
    primitive: Primitive, tell: Callable[[Any], bool], platform: str | None = None
) -> None:
    def rule(context: Any) -> Any:
        answer = np.bool_(tell(context.module_context.axis_context))
        return mlir.lower_fun(lambda: answer, multiple_results=False)(context)

    mlir.register_lowering(primitive, rule, platform=platform)


ON_ONE_DEVICE = _known_when_lowered("on_one_device")
_lower(ON_ONE_DEVICE, _is_one_device)

# XLA's CPU backend can do without writing down what sums read, but not where an array
# is split over devices: see `clipjax.sums`.
IS_REMADE = _known_when_lowered("is_remade")
_lower(IS_REMADE, lambda _: True)
_lower(IS_REMADE, _has_own_arrays, platform="cpu")


def after(array: jax.Array, made_before: jax.Array | None) -> jax.Array:
    """Gives the array as it is, to be made when another has been made.

    This claims to depend on an entry of the other being less than minus infinity, which
    none is. On several devices the claim would keep what either is summed into from
    being summed over the devices at once; there, and outside of jit, it is not made,
    nor where the other differs over devices on which the array is the same.

    Args:
        array: any array.
        made_before: another, or None for no order.
    """
    if not isinstance(made_before, Tracer) or not made_before.size or not array.size:
        return array
    if varying_axes(made_before) - varying_axes(array):
        return array
    entry = jnp.real(made_before[(0,) * made_before.ndim])
    never = (entry < -jnp.inf) & ON_ONE_DEVICE.bind()
    return jnp.where(never, 0, array)


def together(*arrays: jax.Array) -> jax.Array | None:
    """Gives scalars as one that is made when all of them are; None outside of jit."""
    if not all(isinstance(array, Tracer) for array in arrays):
        return None
    return sum((array.astype(jnp.float32) for array in arrays), jnp.float32(0))


@dataclasses.dataclass(frozen=True)
class Make:
    """Makes the leaves of a tree, and makes them anew for each who reads them.

    XLA writes to memory what it hands to a branch, taken or not, and what two sums
    share. What is soon computed takes less time and memory if each computes it.

    Attributes:
        function: makes the leaves.
        is_computed: whether that takes more than to read them.
    """

    function: Callable[[jax.Array | None, int], NamedLeaves]
    is_computed: bool

    def __call__(
        self, made_before: jax.Array | None = None, copy: int = 0
    ) -> NamedLeaves:
        """Makes the leaves.

        Args:
            made_before: an array to be made first, as in `after`.
            copy: 0, or a number for each reader that shares nothing with the others.
        """
        return self.function(made_before, copy)


def anew(function: Callable[[jax.Array | None, int], NamedLeaves]) -> Make:
    """Makes leaves at once, and again for each further reader.

    Not on CPUs for arrays that are split over devices, since XLA would write down half
    of what goes into them each time: there all read what was made first.
    """
    there = function(None, 0)

    def again(made_before: jax.Array | None, copy: int) -> NamedLeaves:
        is_traced = any(isinstance(leaf, Tracer) for leaf in there.arrays.values())
        if not is_traced or (copy == 0 and made_before is None):
            return there
        arrays = jax.lax.cond(
            IS_REMADE.bind(),
            lambda: function(made_before, copy).arrays,
            lambda: at_hand(there)(None, copy).arrays,
        )
        return there.replace(arrays)

    return Make(again, is_computed=True)


def at_hand(leaves: NamedLeaves) -> Make:
    """Gives leaves that are there."""

    def read(made_before: jax.Array | None, copy: int) -> NamedLeaves:
        return leaves.map(lambda leaf: _read(leaf, made_before, copy))

    return Make(read, is_computed=False)


def _read(leaf: jax.Array, made_before: jax.Array | None, copy: int) -> jax.Array:
    """Reads after another array, but copies on CPUs, where it keeps those apart.

    XLA's CPU backend would share the casts and quotients that are made of both, and
    write them to memory for that.
    """
    if copy == 0 or not isinstance(leaf, Tracer):
        return after(leaf, made_before)
    return jax.lax.platform_dependent(
        leaf,
        cpu=lambda leaf: jax.lax.optimization_barrier((leaf,) * (copy + 1))[0],
        default=lambda leaf: after(leaf, made_before),
    )
