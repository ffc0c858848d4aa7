"""Has XLA make one array after another, so that it holds less at once.

XLA has no word for an order, and makes what does not depend on each other in the order
that suits it. This is the one place that reads from JAX's lowering.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import mlir


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
    being summed over the devices at once; there, and outside of jit, it is not made.

    Args:
        array: any array.
        made_before: another, or None for no order.
    """
    if not isinstance(made_before, Tracer) or not made_before.size:
        return array
    entry = jnp.real(made_before[(0,) * made_before.ndim])
    never = (entry < -jnp.inf) & ON_ONE_DEVICE.bind()
    return jnp.where(never, 0, array)
