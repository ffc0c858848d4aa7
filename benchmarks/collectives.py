"""The collectives of a compiled program, and a tree of leaves on a mesh to count them.

The tree has three sets of axes to sum over: (data), (model), and both together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from .costs import COUNTED_ONLY

DEVICES = 8
SHAPE = (16, 16)
SPECS = {
    "both": PartitionSpec("data", "model"),
    "both on one axis": PartitionSpec(("data", "model")),
    "columns": PartitionSpec(None, "model"),
    "replicated": PartitionSpec(),
    "rows": PartitionSpec("data"),
    "rows by model": PartitionSpec("model"),
}
ALL_REDUCE = "all-reduce"
KINDS = (
    ALL_REDUCE,
    "all-gather",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "reduce-scatter",
)
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_COLLECTIVE = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: its name in XLA.
        size: the bytes of its result on one device.
    """

    kind: str
    size: int


def sharded_tree() -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of leaves on a mesh of two axes and eight devices."""
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types)

    def struct(spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(SHAPE, jnp.float32, sharding=where)

    return {name: struct(spec) for name, spec in SPECS.items()}


def compiled_on_mesh(clip: Any) -> Any:
    """Compile `update`; where the results lie is left to XLA."""
    grads = sharded_tree()
    state = jax.eval_shape(clip.init, grads)
    lowered = jax.jit(clip.update).lower(grads, state, grads)
    return lowered.compile(COUNTED_ONLY)


def collectives(compiled: Any) -> Iterator[Collective]:
    """Yield the collectives that every step executes, outside of conditionals."""
    bodies, entry = _computations(compiled.as_text())
    found, waiting = set(), [entry]
    while waiting:
        name = waiting.pop()
        if name not in found and name in bodies:
            found.add(name)
            for result, kind in _COLLECTIVE.findall(bodies[name]):
                yield Collective(kind, sum(map(_size, _ARRAY.findall(result))))
            waiting += _CALLED.findall(bodies[name])


def all_reduces(compiled: Any) -> int:
    """Count the all-reduces that every step executes, outside of conditionals."""
    return sum(one.kind == ALL_REDUCE for one in collectives(compiled))


def _size(array: tuple[str, str, str]) -> int:
    """Return the bytes of an array such as f32[2,3], of which XLA's ``pred`` has 1."""
    _, bits, shape = array
    entries = math.prod(int(size) for size in shape.split(",") if size)
    return entries * int(bits or 8) // 8


def _computations(text: str) -> tuple[dict[str, str], str]:
    """Return the computations of a program in XLA's text form, and the entry's name."""
    bodies, entry, name = {}, "", ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line)
        if header:
            name = header[2]
            bodies[name] = ""
            entry = name if header[1] else entry
        elif name:
            bodies[name] += line + "\n"
    return bodies, entry
