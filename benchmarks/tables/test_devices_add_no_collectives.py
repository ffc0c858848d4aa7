"""More devices add neither all-reduces nor bytes to them, and nothing is gathered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import clipjax

from ..arms import size_in_bytes
from ..collectives import ALL_REDUCE, collectives
from ..conftest import Bench
from ..costs import COUNTED_ONLY
from ..gpt2 import shapes

DEVICES = (1, 2, 4, 8)
ABOUT = """
The clip alone, compiled for 1, 2, 4 and 8 devices simulated on the CPU, of the shapes
of one layer of GPT-2 and its embeddings, in float32. Each cell has the numbers for 1,
2, 4 and 8 devices. Under `jit`, matrices are split by rows over one mesh axis with
vectors replicated, or over two axes with vectors split over one of them; in
`shard_map`, all leaves are split over one axis. Counted in XLA's program, without the
branch for extreme magnitudes: all-reduces, other collectives (all-gather, all-to-all,
permute, reduce-scatter), the bytes that all of them return on each device, and
temporary memory per device. Optax's clip in `shard_map` has no all-reduce because it
clips each shard by the shard's own norm.
"""
COLUMNS = {"parameters": "", "clip": "", "all-reduces": "", "other collectives": ""}
COLUMNS |= {"bytes": "", "temporary kB": ""}
BY_UNIT = "clip_by, by unit"
# The sets of mesh axes that leaves are split over.
SETS = {"jit, one axis": 1, "jit, two axes": 2, "shard_map": 1}


def clips() -> dict[str, Any]:
    """Return the clips by name."""
    unit = clipjax.clip_by(1.0, granularity=clipjax.granularity.unit())
    return {
        "optax.clip_by_global_norm": optax.clip_by_global_norm(1.0),
        "clip_by_global_norm": clipjax.clip_by_global_norm(1.0),
        "clip_by_leaf_norm": clipjax.clip_by_leaf_norm(1.0),
        BY_UNIT: unit,
        "clip_by_value, with report": clipjax.clip_by_value(1.0),
    }


def compiled(clip: Any, way: str, devices: int, tree: Any) -> tuple[Any, int]:
    """Return a clip's program for some devices, and the bytes of a gradient's shard."""
    two = way == "jit, two axes"
    sizes, names = ((devices,), ("x",)) if not two else (_two(devices), ("x", "y"))
    mesh = jax.make_mesh(
        sizes,
        names,
        axis_types=(AxisType.Auto,) * len(names),
        devices=jax.devices()[:devices],
    )
    rows, vectors = (P("x", "y"), P("y")) if two else (P("x"), P())
    # JAX refuses Optax's clip of replicated leaves by the norm of shards.
    vectors = P("x") if way == "shard_map" else vectors
    specs = {name: vectors if len(s) == 1 else rows for name, s in tree.items()}
    grads = {
        name: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, specs[name])
        )
        for name, shape in tree.items()
    }
    update: Callable[..., Any] = clip.update
    if way == "shard_map":
        update = jax.shard_map(
            update, mesh=mesh, in_specs=(specs, P(), specs), out_specs=(specs, P())
        )
    state = jax.eval_shape(clip.init, grads)
    program = jax.jit(update).lower(grads, state, grads).compile(COUNTED_ONLY)
    shard = [
        jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
        for leaf in grads.values()
    ]
    return program, size_in_bytes(shard)


def _two(devices: int) -> tuple[int, int]:
    return (max(1, devices // 2), min(2, devices))


def test_devices_add_no_collectives(bench: Bench) -> None:
    """Count what clips of four granularities and Optax's global one communicate."""
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    small = {"width": 64, "vocabulary": 512} if bench.small else {"vocabulary": 50304}
    tree = shapes(layers=1, **small)
    title = "Collectives on 1 to 8 devices"
    numbers = DEVICES[::3] if bench.small else DEVICES
    with bench.table(title, ABOUT, COLUMNS) as table:
        all_reduces, gathered, growth, temporary = 0.0, 0, 0.0, 0.0
        for way, sets in SETS.items():
            for name, clip in clips().items():
                if way == "shard_map" and name == BY_UNIT:
                    continue  # a shard does not tell which of its axes a unit spans
                found, kilobytes = [], []
                for devices in numbers:
                    program, shard = compiled(clip, way, devices, tree)
                    moved = list(collectives(program))
                    count = sum(one.kind == ALL_REDUCE for one in moved)
                    size = sum(one.size for one in moved)
                    found.append((count, len(moved) - count, size))
                    memory = program.memory_analysis().temp_size_in_bytes
                    kilobytes.append(memory / 1e3)
                    if name == "clip_by_global_norm":
                        all_reduces = max(all_reduces, count / sets)
                        temporary = max(temporary, memory / shard)
                counts, others, sizes = zip(*found, strict=True)
                cells = (counts, others, sizes, [f"{size:.0f}" for size in kilobytes])
                table.row(way, name, *(", ".join(map(str, cell)) for cell in cells))
                if "optax" not in name:
                    gathered = max(gathered, *others)
                    growth = max(growth, sizes[-1] / max(sizes[2], 1))
        table.claim(
            "clip_by_global_norm, all-reduces for each set of mesh axes",
            all_reduces,
            at_most=1,
        )
        table.claim("clipjax, collectives other than all-reduces", gathered, at_most=0)
        table.claim(
            "clipjax, bytes of collectives on 8 devices, relative to 4",
            growth,
            at_most=1,
        )
        table.claim(
            "clip_by_global_norm, temporary memory relative to a shard of the gradient",
            temporary,
            at_most=1 / 8,
        )
