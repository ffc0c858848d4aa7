"""Lengths, angles and projections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from oracle import cosine, norm, random_tree

import clipjax
from clipjax import norms

GRAD = jnp.array([3.0, 4.0])
angle = jax.jit(clipjax.direction_cosine)


def test_leaf_norms():
    tree = {"a": GRAD * 1e25, "b": {"c": jnp.array([1, 1], jnp.bfloat16)}, "n": None}
    found = jax.jit(clipjax.leaf_norms)(tree)
    assert list(found) == ["a", "b/c"]
    assert float(found["a"]) == pytest.approx(5e25, rel=1e-6)
    assert float(found["b/c"]) == pytest.approx(2**0.5, rel=1e-6)
    assert float(clipjax.leaf_norms({"c": tree["b"]["c"]}, norms.l1)["c"]) == 2
    assert clipjax.leaf_norms({}) == {}


def test_direction_cosine():
    tree = random_tree(0, {"a": (3,), "b": (2, 2)})
    scaled = jax.tree.map(lambda leaf: 0.1 * leaf, tree)
    opposite = jax.tree.map(lambda leaf: -leaf, tree)
    assert float(angle(tree, scaled)) == pytest.approx(1, rel=1e-6)
    assert float(angle(tree, opposite)) == pytest.approx(-1, rel=1e-6)
    one, other = jnp.array([1.0, 0]), jnp.array([1.0, 1.0]) * 1e25
    assert float(angle(one, other)) == pytest.approx(0.5**0.5, rel=1e-6)
    for nothing in (jnp.zeros(2), one * jnp.nan, one.at[1].set(jnp.inf)):
        assert np.isnan(angle(one, nothing))
    first, second = np.array([1 + 2j, 3]), np.array([2j, 1 - 1j])
    mixed = [
        {"z": jnp.asarray(z, "complex64"), "h": jnp.float16(2)} for z in (first, second)
    ]
    assert float(angle(*mixed)) == pytest.approx(cosine(*mixed), rel=1e-6)


def test_direction_cosine_of_trees_that_do_not_fit():
    for nothing in ({}, None, {"i": jnp.arange(2)}):
        assert np.isnan(clipjax.direction_cosine(nothing, nothing))
    with pytest.raises(ValueError, match="the leaves of after have no leaf a"):
        clipjax.direction_cosine({"a": GRAD}, {"b": GRAD})
    with pytest.raises(ValueError, match=r"shapes, got \(2,\) and \(1,\) at 'a'"):
        clipjax.direction_cosine({"a": GRAD}, {"a": jnp.ones(1)})


def test_direction_cosine_at_extreme_magnitudes():
    other = {"a": jnp.array([1.0, 0.0, 0.0]), "b": jnp.zeros(0)}
    for size in (1e-37, 3.4e38):
        tree = {"a": jnp.full((3,), size, jnp.float32), "b": jnp.zeros(0)}
        assert float(angle(tree, tree)) == pytest.approx(1, rel=1e-6)
        assert float(angle(tree, other)) == pytest.approx(3**-0.5, rel=1e-6)


def test_shards_are_measured_together():
    trees = [random_tree(seed, {"r": (3,), "s": (8, 2)}) for seed in (0, 1)]
    specs = {"r": PartitionSpec(), "s": PartitionSpec("x")}

    def measured(one, other, **settings):
        return clipjax.direction_cosine(one, other, **settings), clipjax.leaf_norms(
            one, **settings
        )

    mapped = jax.shard_map(
        lambda one, other: measured(one, other, axis_name="x"),
        mesh=jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,)),
        in_specs=(specs, specs),
        out_specs=PartitionSpec(),
    )
    found, lengths = jax.jit(mapped)(*trees)
    assert float(found) == pytest.approx(cosine(*trees), rel=1e-5)
    for name, length in lengths.items():
        assert float(length) == pytest.approx(norm(trees[0][name]), rel=1e-6)


def test_clip_by_value_turns_a_gaussian_by_a_known_angle():
    grads = jnp.asarray(np.random.default_rng(0).standard_normal(100_000), jnp.float32)
    clip = clipjax.clip_by_value(1e-3, report=False)
    updates, _ = jax.jit(clip.update)(grads, clip.init(grads))
    # √(2/π), with the standard error of a mean of 100,000 half-normal entries.
    expected = (2 / np.pi) ** 0.5
    assert float(angle(grads, updates)) == pytest.approx(
        expected, abs=4 * 0.6 / 100_000**0.5
    )


def test_project_onto_ball():
    shapes = {"a": (3,), "b": (2,)}
    one, other = (random_tree(seed, shapes, size=4.0) for seed in (0, 1))
    project = jax.jit(clipjax.project_onto_ball)

    def distance(x, y):
        return norm(jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), x, y))

    for radius in (0.0, 0.5, 3.0, 10.0):
        near, far = (project(tree, radius) for tree in (one, other))
        assert distance(near, far) <= distance(one, other) * (1 + 1e-6)
        assert norm(near) == pytest.approx(min(radius, 4.0), rel=1e-6)
    with pytest.raises(ValueError, match="radius must be .* got -1"):
        clipjax.project_onto_ball(one, -1.0)
