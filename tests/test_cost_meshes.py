"""All-reduces of clips under jit, on a mesh of two axes and eight devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

import clipjax
from benchmarks.clips import without_report
from benchmarks.collectives import (
    SPECS,
    all_reduces,
    collectives,
    compiled_on_mesh,
    sharded_tree,
)
from clipjax import granularity, guards

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


@pytest.mark.parametrize("name", GATES)
def test_all_reduces(name):
    make_clip, bar = GATES[name]
    compiled = compiled_on_mesh(make_clip())
    assert all_reduces(compiled) <= bar
    text = compiled.as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text
    shardings, _ = compiled.output_shardings
    for leaf, struct in sharded_tree().items():
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
    found = {one.kind: one.size for one in collectives(compiled)}
    assert found == {"all-reduce": 4 * 3, "all-gather": 4 * 64}
