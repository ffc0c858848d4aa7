"""Has XLA make one array after another, or once more, so that it holds less at once.

XLA has no word for an order, and makes what does not depend on each other in the order
that suits it. This is the one place that reads from JAX's lowering.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import mlir

from .distributed import varying_axes
from .trees import NamedLeaves


def _lower_on_one_device(context: Any) -> Any:
    axes = context.module_context.axis_context
    is_one = np.bool_(getattr(axes, "num_devices", None) == 1)
    return mlir.lower_fun(lambda: is_one, multiple_results=False)(context)


ON_ONE_DEVICE = Primitive("on_one_device")
ON_ONE_DEVICE.def_impl(lambda: np.False_)
ON_ONE_DEVICE.def_abstract_eval(lambda: ShapedArray((), np.dtype(bool)))
mlir.register_lowering(ON_ONE_DEVICE, _lower_on_one_device)


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


class Make(Protocol):
    """Makes the leaves of a tree, and makes them anew for each who reads them.

    XLA writes to memory what it hands to a branch, taken or not, and what two sums
    share. What is soon computed takes less time and memory if each computes it.
    """

    def __call__(
        self, made_before: jax.Array | None = None, copy: int = 0
    ) -> NamedLeaves:
        """Makes the leaves.

        Args:
            made_before: an array to be made first, as in `after`.
            copy: 0, or a number for each reader that shares nothing with the others.
        """
        ...


def anew(make: Make) -> Make:
    """Makes leaves at once, and again for each further reader.

    Not on CPUs, where XLA would write down half of what goes into them each time: there
    all read what was made first. A barrier then keeps casts from being shared.
    """
    there = make()

    def again(made_before: jax.Array | None = None, copy: int = 0) -> NamedLeaves:
        is_traced = any(isinstance(leaf, Tracer) for leaf in there.arrays.values())
        if not is_traced or (copy == 0 and made_before is None):
            return there

        def read_again(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
            if copy == 0:
                return arrays
            return {
                name: jax.lax.optimization_barrier((leaf,) * (copy + 1))[0]
                for name, leaf in arrays.items()
            }

        arrays = jax.lax.platform_dependent(
            there.arrays,
            cpu=read_again,
            default=lambda _: make(made_before, copy).arrays,
        )
        return there.replace(arrays)

    return again


def at_hand(leaves: NamedLeaves) -> Make:
    """Gives leaves that are there."""
    return anew(
        lambda made_before=None, copy=0: leaves.map(
            lambda leaf: after(leaf, made_before)
        )
    )
