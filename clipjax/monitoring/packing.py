"""The numbers of a step in two arrays on the device, and their columns on the host."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..core.dtypes import accumulation_dtype
from ..core.settings import matches
from ..core.state import ClipState
from ..wrappers.sections import Naming, Section, sections
from ..wrappers.states import SkipState, states_in, states_of

Blocks = bool | int | str


class BlockColumns(NamedTuple):
    """Where the numbers of one clip's blocks are in `Packed.floats`.

    Attributes:
        start: the first of their columns; norms before the clip come first.
        blocks: the number of blocks.
        kinds: the number of columns per block.
    """

    start: int
    blocks: int
    kinds: int


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["floats", "integers"],
    meta_fields=["float_names", "integer_names", "block_columns"],
)
@dataclasses.dataclass(frozen=True)
class Packed:
    """The numbers of some steps in two arrays: two transfers, and exact counts.

    Attributes:
        floats: float32, or float64 where any number is.
        integers: counts and flags, int32, or int64 where any number is.
        float_names: the keys of ``floats``.
        integer_names: the keys of ``integers``.
        block_columns: where the numbers of blocks are.
    """

    floats: Float[Array, "steps names"]
    integers: Int[Array, "steps names"]
    float_names: tuple[str, ...]
    integer_names: tuple[str, ...]
    block_columns: tuple[BlockColumns, ...] = ()


class StateFinder:
    """Finds the states to report in optimizer states of one structure, quickly.

    A search looks at every node in Python, about 0.3 ms for Adam and 150 leaves; where
    the states are depends on the structure only, and is remembered.
    """

    def __init__(self):
        self._structure: Any = None
        self._positions: list[int] = []
        self._found: Any = None

    def __call__(self, opt_state: Any) -> tuple[ClipState | SkipState, ...]:
        """Return the states of clips and skip wrappers, without unreported parts.

        Memories and inner states may hold one array per parameter, and `jax.jit`
        handles each leaf of its arguments at every call.

        Raises:
            TypeError: opt_state is not an optimizer state.
        """
        leaves, structure = jax.tree.flatten(getattr(opt_state, "opt_state", opt_state))
        if self._structure is None or structure != self._structure:
            states_of(opt_state)  # raises if it is not an optimizer state
            numbered = jax.tree.unflatten(structure, range(len(leaves)))
            small = tuple(
                state._replace(clip_memory=())
                if isinstance(state, ClipState)
                else state._replace(inner_state=())
                for state in states_in(numbered)
            )
            self._positions, self._found = jax.tree.flatten(small)
            self._structure = structure
        return self._found.unflatten([leaves[i] for i in self._positions])


@functools.partial(jax.jit, static_argnames=("naming", "blocks"))
def pack_step(
    states: Sequence[ClipState | SkipState],
    scalars: Mapping[str, jax.Array],
    naming: Naming,
    blocks: Blocks,
) -> Packed:
    """Copy the numbers of a step to two new arrays, in one dispatch.

    New arrays stay valid when the state is donated. Vectors of block norms are copied
    as they are: one equation for each number would take seconds to compile.
    """
    found = sections(states, naming, blocks is not False)
    totals = {
        f"{section.prefix}/{key}": value
        for section in found
        for key, value in section.totals.items()
    }
    packed = _packed({k: v[None] for k, v in (totals | dict(scalars)).items()})
    names, parts, block_columns = list(packed.float_names), [packed.floats], []
    for section, positions in zip(found, _selected(found, blocks), strict=True):
        if not positions:
            continue
        kinds = len(section.columns)
        block_columns.append(BlockColumns(len(names), len(positions), kinds))
        for key, column in section.columns.items():
            names += [f"{section.prefix}/{key}/{section.names[i]}" for i in positions]
            parts.append(column[np.asarray(positions)][None])
    return dataclasses.replace(
        packed,
        floats=_joined(parts, accumulation_dtype(parts)),
        float_names=tuple(names),
        block_columns=tuple(block_columns),
    )


@jax.jit
def pack_steps(stacked: Mapping[str, jax.Array]) -> Packed:
    """Copy numbers of shape ``(steps,)`` to two new arrays, in one dispatch."""
    return _packed(stacked)


def _packed(stacked: Mapping[str, jax.Array]) -> Packed:
    is_float = {k: jnp.issubdtype(v.dtype, jnp.floating) for k, v in stacked.items()}
    floats = {k: v[:, None] for k, v in stacked.items() if is_float[k]}
    integers = {k: v[:, None] for k, v in stacked.items() if not is_float[k]}
    is_wide = any(v.dtype.itemsize == 8 for v in integers.values())
    # An array without columns, so that there is always one to concatenate.
    steps = next(iter(stacked.values())).shape[0] if stacked else 1
    none = [jnp.zeros((steps, 0), jnp.float32)]
    return Packed(
        _joined([*none, *floats.values()], accumulation_dtype(floats.values())),
        _joined([*none, *integers.values()], jnp.int64 if is_wide else jnp.int32),
        tuple(floats),
        tuple(integers),
    )


def _joined(parts: Sequence[jax.Array], dtype: Any) -> jax.Array:
    return jnp.concatenate([part.astype(dtype) for part in parts], axis=1)


def _selected(found: Sequence[Section], blocks: Blocks) -> list[list[int]]:
    """Return which blocks of each clip to copy; the worst are chosen on the host.

    Raises:
        ValueError: a pattern matches no block of any clip.
    """
    if not isinstance(blocks, str):
        return [list(range(len(section.names))) for section in found]
    positions = [
        [i for i, name in enumerate(section.names) if matches(name, blocks)]
        for section in found
    ]
    if not any(positions):
        every = [name for section in found for name in section.names]
        raise ValueError(
            f"blocks has the pattern {blocks!r}, which matches no block; the blocks "
            f"are {', '.join(every) or 'none: no clip in opt_state reports any'}"
        )
    return positions


def unpacked(packed: Packed, worst: int | None) -> dict[str, np.ndarray]:
    """Return the columns of packed numbers that were fetched to the host.

    Args:
        packed: with NumPy arrays.
        worst: how many blocks of each clip to keep in a step, those with the largest
            norms; None for all. A number that is not kept is masked.
    """
    columns = dict(zip(packed.float_names, packed.floats.T, strict=True))
    columns |= dict(zip(packed.integer_names, packed.integers.T, strict=True))
    if worst is None:
        return columns
    for start, blocks, kinds in packed.block_columns:
        norms = np.asarray(packed.floats[:, start : start + blocks])
        others = np.argsort(-norms, axis=1, kind="stable")[:, worst:]
        is_masked = np.zeros(norms.shape, bool)
        np.put_along_axis(is_masked, others, True, axis=1)
        names = packed.float_names[start : start + blocks * kinds]
        for position, name in enumerate(names):
            mask = is_masked[:, position % blocks]
            if mask.all():
                del columns[name]
            else:
                columns[name] = np.ma.masked_array(columns[name], mask)
    return columns


def joined(parts: Sequence[Packed]) -> Packed:
    """Join packed numbers of one layout, on the host, in order of the steps."""
    return dataclasses.replace(
        parts[0],
        floats=np.concatenate([part.floats for part in parts]),
        integers=np.concatenate([part.integers for part in parts]),
    )
