"""The split of a loss function's arguments into parameters and single examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Examples:
    """Which arguments of a loss are parameters and which hold one example per row.

    Attributes:
        function: the loss function.
        argnums: the argument, or arguments, that are differentiated.
        has_aux: whether the function returns auxiliary output besides the loss.
        batch_argnums: the arguments with one example per row.
        keep_batch_dim: whether the function gets a batch of one, not a single example.
        prng_argnum: the argument that is a PRNG key, split over the examples.
    """

    function: Callable[..., Any]
    argnums: int | tuple[int, ...]
    has_aux: bool
    batch_argnums: tuple[int, ...]
    keep_batch_dim: bool
    prng_argnum: int | None

    def params(self, arguments: Sequence[Any]) -> Any:
        """Return the differentiated argument, or a tuple of several."""
        if isinstance(self.argnums, int):
            params = arguments[self.argnums]
        else:
            params = tuple(arguments[i] for i in self.argnums)
        return jax.tree.map(_array_or_none, params)

    def batch(self, arguments: Sequence[Any]) -> dict[int, Any]:
        """Return the arguments that have one example per row, with the key split."""
        needed = max(self.batch_argnums)
        if len(arguments) <= needed:
            raise ValueError(
                f"batch_argnums names argument {needed}, got {len(arguments)} arguments"
            )
        batch = {i: arguments[i] for i in self.batch_argnums}
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
        if len(sizes) != 1 or () in sizes:
            raise ValueError(
                "the arguments in batch_argnums must have the examples along the first "
                f"axis of every leaf, got first axes {sorted(map(str, sizes))}"
            )
        if self.prng_argnum is not None:
            ((size,),) = sizes
            key = arguments[self.prng_argnum]
            batch[self.prng_argnum] = jax.random.split(key, size)
        return batch

    def loss(
        self, arguments: Sequence[Any], options: Mapping[str, Any]
    ) -> Callable[[Any, dict[int, Any]], tuple[Any, Any]]:
        """Return the loss of one example, a function of parameters and example."""

        def loss(params: Any, example: dict[int, Any]) -> tuple[Any, Any]:
            filled = list(arguments)
            for i, value in example.items():
                keeps = self.keep_batch_dim and i != self.prng_argnum
                filled[i] = jax.tree.map(lambda x: x[None], value) if keeps else value
            if isinstance(self.argnums, int):
                filled[self.argnums] = _with_functions(filled[self.argnums], params)
            else:
                for i, value in zip(self.argnums, params, strict=True):
                    filled[i] = _with_functions(filled[i], value)
            result = self.function(*filled, **options)
            value, aux = result if self.has_aux else (result, ())
            if jnp.shape(value) != ():
                raise ValueError(
                    "fun must return a scalar loss for one example, got shape "
                    f"{jnp.shape(value)}"
                )
            if self.keep_batch_dim:
                aux = jax.tree.map(_without_batch_axis, aux)
            return value, aux

        return loss


def _array_or_none(leaf: Any) -> Any:
    """Return a number as an array, and None for a leaf that is not numeric.

    Modules of Equinox have activation functions as leaves.
    """
    if isinstance(leaf, float | complex):
        return jnp.asarray(leaf)
    return leaf if hasattr(leaf, "dtype") or isinstance(leaf, int) else None


def _with_functions(tree: Any, arrays: Any) -> Any:
    """Return a tree with other arrays, and its own leaves that are not numeric."""
    return jax.tree.map(
        lambda own, array: own if array is None else array, tree, arrays
    )


def _without_batch_axis(array: Any) -> Any:
    return array[0] if jnp.shape(array)[:1] == (1,) else array


def take_apart(
    function: Any,
    argnums: int | Sequence[int],
    has_aux: bool,
    batch_argnums: int | Sequence[int],
    keep_batch_dim: bool,
    prng_argnum: int | None,
) -> Examples:
    """Check the arguments that name arguments, and return the `Examples`."""
    if not callable(function):
        raise TypeError(f"fun must be a function, got {function!r}")
    batched = (batch_argnums,) if isinstance(batch_argnums, int) else batch_argnums
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    used = [*chosen, *batched, *([] if prng_argnum is None else [prng_argnum])]
    if not batched or len(set(used)) < len(used) or min(used) < 0:
        raise ValueError(
            "argnums, batch_argnums and prng_argnum must name different arguments, "
            f"counted from 0, got {argnums!r}, {batch_argnums!r} and {prng_argnum!r}"
        )
    return Examples(
        function,
        argnums if isinstance(argnums, int) else chosen,
        has_aux,
        tuple(batched),
        keep_batch_dim,
        prng_argnum,
    )
