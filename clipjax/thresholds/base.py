"""The protocol of a threshold, and the inputs of a threshold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.blocks import Blocks, Values
from ..core.printing import printed
from ..norms import Norm


@dataclasses.dataclass(frozen=True)
class Context:
    """The inputs of a threshold other than the norms.

    Attributes:
        blocks: the blocks of the updates; ``blocks.leaves`` are the updates' leaves.
        norm: how blocks are measured.
        table: turns a prefix tree of numbers, and the name of that argument, into one
            value per block.
        measure: returns the norms of arrays with the shapes and shardings of the
            updates' leaves, such as the parameters. In float32, norms from 1e-19 to
            1e19 are accurate.
        steps: int32 number of updates before this one.
        params: the parameters, or None.
        extra: the extra arguments of the update: ``value``, ``learning_rate``, ….
    """

    blocks: Blocks
    norm: Norm
    table: Callable[[Any, str], Values]
    measure: Callable[[list[jax.Array]], Values]
    steps: jax.Array
    params: Any
    extra: Mapping[str, Any]

    @property
    def dtype(self) -> Any:
        """The dtype of norms and thresholds."""
        return self.blocks.leaves.dtype

    def cast(self, value: Any) -> jax.Array:
        """Return a number, possibly traced, in the dtype of norms."""
        return jnp.asarray(value).astype(self.dtype)

    def whole(self, norms: jax.Array) -> jax.Array:
        """Return the norm of the whole tree from those of its blocks, ``(blocks,)``."""
        counts = list(map(math.prod, self.blocks.shapes))
        sizes = np.repeat(np.asarray(self.blocks.sizes, norms.dtype), counts)
        return self.norm.combine([norms], [sizes])

    def parameters(self, who: str) -> list[jax.Array]:
        """Return the parameters of the updates' leaves.

        Raises:
            ValueError: update was not given params, which ``who`` needs.
        """
        if self.params is None and self.blocks.leaves.arrays:
            raise ValueError(f"{who} needs params: call update(updates, state, params)")
        return self.blocks.leaves.aligned(self.params, "params")

    def argument(self, name: str, who: str) -> Any:
        """Return an extra argument of the update.

        Raises:
            ValueError: update was not given the argument, which ``who`` needs.
        """
        if self.extra.get(name) is None:
            raise ValueError(
                f"{who} needs {name}: call update(updates, state, params, {name}=...)"
            )
        return self.extra[name]


class Threshold:
    """The protocol of a threshold. Thresholds are frozen dataclasses.

    A threshold without a memory has the state ``()``. The structure, shapes and dtypes
    of a state do not change from step to step, and its structure depends only on the
    threshold's own settings. The engine keeps the old state after a step with NaN or
    infinity, so that a non-finite norm never enters a memory.

    Attributes:
        kind: the name in a clip's coordinates.
        remembers: whether `update` needs the state that `init` returned.
        reads: the part of the gradient that `update` uses: ``"norms"`` of blocks,
            ``"entries"`` of leaves, or ``"nothing"``. A clip of single entries has no
            norms, and a clip of blocks does not accept thresholds for entries.
    """

    kind: str
    remembers: bool = False
    reads: str = "nothing"

    def init(self, blocks: Blocks, params: Any) -> Any:
        """Return the state before the first step, each field a buffer of its own.

        Args:
            blocks: the blocks of the parameters.
            params: the parameters, for a memory with one entry per parameter.
                ``optax.tree_map_params`` passes a placeholder without leaves.
        """
        del blocks, params
        return ()

    def update(self, norms: Values, state: Any, context: Context) -> tuple[Values, Any]:
        """Return this step's thresholds, one value per block, and the next state.

        Thresholds have the norms' dtype and are scalars, or arrays that broadcast to
        the shape of their value. A negative one or NaN acts as 0, and the report counts
        such steps.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        settings = [
            printed(getattr(self, field.name))
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if field.repr
        ]
        return f"{self.kind}({', '.join(settings)})"
