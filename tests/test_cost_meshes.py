"""All-reduces of clips under jit, on a mesh of two axes and eight devices.

The tree has three sets of axes to sum over: (data), (model), and both together.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import clipjax
from benchmarks.clips import without_report
from benchmarks.costs import Collectives, all_reduces
from clipjax import granularity, guards

SPECS = {
    "both": PartitionSpec("data", "model"),
    "both on one axis": PartitionSpec(("data", "model")),
    "columns": PartitionSpec(None, "model"),
    "replicated": PartitionSpec(),
    "rows": PartitionSpec("data"),
    "rows by model": PartitionSpec("model"),
}
SETS_OF_AXES = 3
LABELS = {name: "ab"[number % 2] for number, name in enumerate(SPECS)}

# With a report, each of the three sums of a clip of entries waits for the one before.
GATES = {
    "global": (lambda: clipjax.clip_by_global_norm(1.0), SETS_OF_AXES),
    "group": (
        lambda: clipjax.clip_by_group_norm(LABELS, {"a": 1.0, "b": 2.0}),
        SETS_OF_AXES,
    ),
    "leaf": (lambda: clipjax.clip_by_leaf_norm(1.0), SETS_OF_AXES),
    "autoclip": (lambda: clipjax.autoclip(), SETS_OF_AXES),
    "drop": (lambda: clipjax.clip_by(1.0, nonfinite=guards.drop), SETS_OF_AXES),
    "unit": (lambda: clipjax.clip_by(1.0, granularity=granularity.unit()), 5),
    "AGC": (lambda: clipjax.adaptive_grad_clip(0.01), 5),
    "entries, report": (lambda: clipjax.clip_by_value(1.0), 3 * SETS_OF_AXES),
    "entries": (lambda: without_report(clipjax.clip_by_value, 1.0), 0),
}


def compiled_on_mesh(clip):
    """Compile `update`; where the results lie is left to XLA."""
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types)

    def struct(spec):
        where = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct((16, 16), jnp.float32, sharding=where)

    grads = {name: struct(spec) for name, spec in SPECS.items()}
    state = jax.eval_shape(clip.init, grads)
    compiled = jax.jit(clip.update).lower(grads, state, grads).compile()
    return grads, compiled


@pytest.mark.parametrize("name", GATES)
def test_all_reduces(name):
    make_clip, bar = GATES[name]
    grads, compiled = compiled_on_mesh(make_clip())
    assert all_reduces(compiled) <= bar
    text = compiled.as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text
    shardings, _ = compiled.output_shardings
    for leaf, struct in grads.items():
        assert shardings[leaf].is_equivalent_to(struct.sharding, 2), leaf


def test_collectives_are_counted_with_their_bytes():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def step(shard):
        return jax.lax.psum(shard[:3], "x"), jax.lax.all_gather(shard, "x", tiled=True)

    specs = {
        "in_specs": PartitionSpec("x"),
        "out_specs": (PartitionSpec(), PartitionSpec("x")),
    }
    spread = jax.jit(jax.shard_map(step, mesh=mesh, **specs))
    compiled = spread.lower(jax.ShapeDtypeStruct((64,), jnp.float32)).compile()
    assert Collectives.of(compiled) == (1, 1, 4 * (3 + 64))
