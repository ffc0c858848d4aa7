"""Per-example computations on meshes: XLA chooses shardings, in Explicit mode too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..jax_internals import auto_axes, mesh_is_explicit, varying_axes

WHOLE = jax.sharding.PartitionSpec()


def of_arrays(
    function: Callable[..., Any], arguments: Sequence[Any]
) -> tuple[Callable[[dict[int, Any]], Any], dict[int, Any]]:
    """Return a function of the arrays among some arguments, and these arrays."""
    leaves, structure = jax.tree.flatten(arguments)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")}

    def run(arrays: dict[int, Any]) -> Any:
        filled = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        return function(*jax.tree.unflatten(structure, filled))

    return run, arrays


def on_any_mesh(
    function: Callable[..., Any], specs: Callable[[], Any]
) -> Callable[..., Any]:
    """Return a function that runs in Auto mode, in which XLA chooses shardings.

    Args:
        function: a function of any arguments.
        specs: returns the result's sharding, for an Explicit mesh.
    """

    def run(*arguments: Any) -> Any:
        if not mesh_is_explicit():
            return function(*arguments)
        inner, arrays = of_arrays(function, arguments)
        return auto_axes(inner, out_sharding=specs())(arrays)

    return run


def require_no_mixing(batch: Any) -> None:
    """Refuse a batch whose gradients JAX would sum over devices before the clip."""
    axes = set().union(*map(varying_axes, jax.tree.leaves(batch)))
    if axes:
        raise ValueError(
            f"the batch differs over the mesh axes {sorted(map(str, axes))} in "
            "shard_map, where JAX sums gradients over devices before they can be "
            "clipped: call it under jit with the batch sharded, or pass "
            "check_vma=False to shard_map and sum the result with jax.lax.psum"
        )
