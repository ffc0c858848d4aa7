"""Names of leaves: patterns, labels, colliding keys, and what is refused by name."""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import sparse
from oracle import norm

import clipjax
from clipjax import granularity


class Heads(NamedTuple):
    policy: Any
    value: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class HeadsToo:
    policy: Any
    value: Any


@pytest.mark.parametrize("kind", [Heads, HeadsToo])
def test_a_field_called_value_is_a_name_like_any_other(kind):
    grads = {"heads": kind(jnp.full((2, 4), 3.0), jnp.full((2, 4), 3.0))}
    stacked = {"heads/policy": 1, "heads/value": 1}
    clip = clipjax.clip_by_leaf_norm(1.0, stacked=stacked)
    updates, _ = clip.update(grads, None)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(np.linalg.norm(leaf, axis=1), 1, rtol=1e-6)
    names = [f"heads/{field}[{i}]" for field in ("policy", "value") for i in (0, 1)]
    assert clip.block_names(grads) == names
    # One of them stacked, and the other not.
    clip = clipjax.clip_by_leaf_norm(1.0, stacked={"heads/value": 1})
    updates, _ = clip.update(grads, None)
    assert norm(updates["heads"].policy) == pytest.approx(1, rel=1e-6)
    assert norm(updates["heads"].value) == pytest.approx(2**0.5, rel=1e-6)


def test_variables_of_nnx_are_named_by_where_they_are():
    nnx = pytest.importorskip("flax.nnx")
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    clip = clipjax.clip_by_leaf_norm(1.0, stacked={"kernel": 1})
    assert clip.block_names(state) == ["bias", "kernel[0]", "kernel[1]"]


TREE = {"layers": [{"w": jnp.ones((2, 3))}, {"w": jnp.ones((2, 3))}]}


def test_patterns():
    for pattern in ("layers/0/w", "layers/0/*", "*0*", "layers/0", "layers/[0]/w"):
        clip = clipjax.clip_by_leaf_norm(1.0, stacked={pattern: 1})
        names = ["layers/0/w[0]", "layers/0/w[1]", "layers/1/w"]
        assert clip.block_names(TREE) == names
    # The first pattern that matches counts.
    for table, count in [({"*": 1, "layers/0": 0}, 4), ({"layers/0": 0, "*": 1}, 3)]:
        assert (
            len(clipjax.clip_by_leaf_norm(1, stacked=table).block_names(TREE)) == count
        )


@pytest.mark.parametrize("pattern", ["kernel", "w", "layers/2", "Layers/*"])
def test_a_pattern_that_matches_no_leaf_is_refused(pattern):
    table = {"layers/0": 1, pattern: 1}
    for clip, argument in [
        (clipjax.clip_by_leaf_norm(1.0, stacked=table), "stacked"),
        (clipjax.adaptive_grad_clip(0.1, axis=table), "axes"),
        (clipjax.spectral_clamp(1.0, stacked=table), "stacked"),
        (clipjax.gradient_stabilizer(stacked=table), "stacked"),
    ]:
        expected = f"{argument} has the pattern {pattern!r}, which matches no leaf; the"
        expected = re.escape(f"{expected} leaves are layers/0/w, layers/1/w")
        for step in (
            clip.init,
            lambda tree, clip=clip: jax.eval_shape(clip.init, tree),
        ):
            with pytest.raises(ValueError, match=expected):
                step(TREE)


GRADS = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([6.0, 8.0])}


def test_labels_in_every_form():
    for labels in (
        {"a": "small", "b": "large"},
        lambda path, leaf: "small" if path == "a" else "large",
        lambda tree: {"a": "small", "b": "large"},  # as optax.partition has it
        lambda tree: jax.tree.map(lambda g: "small" if g[0] < 5 else "large", tree),
    ):
        clip = clipjax.clip_by_group_norm(labels, {"small": 1.0, "large": 2.0})
        updates, _ = clip.update(GRADS, None)
        assert norm(updates["a"]) == pytest.approx(1, rel=1e-6)
        assert norm(updates["b"]) == pytest.approx(2, rel=1e-6)


def test_labels_that_are_optax_own():
    """The labels of a partition, used for the clip before it as they are."""
    labels = {"a": "small", "b": "large"}
    transforms = {"small": optax.sgd(1.0), "large": optax.sgd(1.0)}
    optimizer = optax.chain(
        clipjax.clip_by_group_norm(lambda tree: labels, {"small": 1.0, "large": 2.0}),
        optax.partition(transforms, lambda tree: labels),
    )
    updates, _ = optimizer.update(GRADS, optimizer.init(GRADS), GRADS)
    assert norm(updates) == pytest.approx(5**0.5, rel=1e-6)


def test_labels_that_do_not_fit_are_refused():
    limits = {"small": 1.0, "large": 2.0}
    for labels, message in [
        (
            {"a": "small", "b": "small"},
            "no leaf has the label 'large'; the leaves are",
        ),
        ({"a": "small", "b": "third"}, "leaf 'b' has the label 'third'"),
        (
            lambda path, leaf: "third",
            "leaf 'a' has the label 'third', which has no thr",
        ),
        ({"a": "small", "c": "large"}, "labels must be a prefix of the tree"),
        (lambda tree: {"a": "small"}, "labels must be a prefix of the tree"),
    ]:
        clip = clipjax.clip_by_group_norm(labels, limits)
        for step in (clip.init, lambda grads, clip=clip: clip.update(grads, None)):
            with pytest.raises(ValueError, match=message):
                step(GRADS)
    clip = clipjax.clip_by_group_norm(lambda path, leaf: 3, limits)
    with pytest.raises(TypeError, match="labels must give a string .* got 3 for 'a'"):
        clip.init(GRADS)


COLLIDING = [
    {"a": [jnp.ones(2)], "a/0": jnp.full(2, 100.0)},
    {"a": {"b": jnp.ones(2)}, "a/b": jnp.full(2, 100.0)},
    {"a": {"b/c": jnp.ones(2)}, "a/b": {"c": jnp.full(2, 100.0)}},
    {"a": {0: jnp.ones(2)}, "a/0": jnp.full(2, 100.0)},
    {"a": {"[0]": jnp.ones(2)}, "a/[0]": jnp.full(2, 100.0)},
    {"w[0]": jnp.full(2, 100.0), "w": jnp.ones((1, 2))},
    {"['a']": jnp.full(2, 100.0), "a": jnp.ones(2)},
]


@pytest.mark.parametrize("grads", COLLIDING)
def test_paths_that_read_alike_are_kept_apart(grads):
    clip = clipjax.clip_by_leaf_norm(1.0)
    names = clip.block_names(grads)
    assert len(set(names)) == 2
    updates, state = clip.update(grads, clip.init(grads))
    for leaf in jax.tree.leaves(updates):
        assert norm(leaf) == pytest.approx(1, rel=1e-6)
    found = sorted(state.clip_info.block_norms_before.tolist())
    np.testing.assert_allclose(found, [2**0.5, 100 * 2**0.5], rtol=1e-6)
    # A memory and params are found by the path as well, whatever it reads like.
    params = jax.tree.map(jnp.ones_like, grads)
    clip = clipjax.clip_by(clipjax.thresholds.relative_to_params(1.0))
    updates, _ = clip.update(grads, clip.init(params), params)
    assert norm(updates) == pytest.approx(2, rel=1e-6)


def test_sparse_leaves_are_refused_by_name():
    # A repeated row: 5.83 by its parts, and 8 as the vector that it is.
    data, rows = jnp.array([3.0, 5.0]), jnp.array([[1], [1]])
    grads = {"table": sparse.BCOO((data, rows), shape=(4,)), "w": jnp.zeros(2)}
    for clip in (
        clipjax.clip_by_value(1.0),
        clipjax.spectral_clamp(1.0),
        clipjax.adagc(),
        clipjax.clip_by(1.0, granularity=granularity.unit()),
        clipjax.clip_by_global_norm(1.0),
    ):
        for step in (clip.init, lambda grads, clip=clip: clip.update(grads, None)):
            with pytest.raises(TypeError, match="table is a BCOO, .* a dense array"):
                step(grads)
    masked = optax.masked(clip, {"table": False, "w": True})
    updates, _ = masked.update(grads, masked.init(grads), grads)
    assert updates["table"] is grads["table"]
    dense = {"table": grads["table"].todense(), "w": grads["w"]}
    updates, state = clip.update(dense, clip.init(dense))
    assert float(state.clip_info.norm_before) == pytest.approx(8)
    np.testing.assert_allclose(updates["table"], [0, 1, 0, 0], rtol=1e-6)
