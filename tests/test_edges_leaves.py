"""Sharp edges C and D: kinds of leaves, and groups of them."""

from typing import NamedTuple

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import assert_same_bits, norm

import clipjax

one = clipjax.clip_by_global_norm(1.0)
GRAD = jnp.array([3.0, 4.0])


class Pair(NamedTuple):
    left: object
    right: object


@pytest.mark.parametrize(
    "tree",
    [
        {"w": GRAD, "gone": None},
        [GRAD, None],
        (GRAD, optax.MaskedNode()),
        Pair(GRAD, {}),
        {"w": GRAD, "empty": jnp.zeros((0, 3))},
        GRAD,
    ],
    ids=["dict", "list", "tuple", "namedtuple", "zero-size", "bare"],
)
@pytest.mark.parametrize("name", catalogue.RECIPES)
def test_c24_containers_and_absent_leaves(name, tree):
    clip = catalogue.RECIPES[name]()
    # Tracing is enough to see the structure; the numbers are checked below.
    updates, state = jax.eval_shape(
        lambda tree: clip.update(tree, clip.init(tree), tree), tree
    )
    assert jax.tree.structure(updates) == jax.tree.structure(tree)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(updates)] == shapes


@pytest.mark.parametrize("empty", [{}, (), None, {"a": None}, optax.MaskedNode()])
@pytest.mark.parametrize("name", catalogue.RECIPES)
def test_c24_empty_tree(name, empty):
    clip = catalogue.RECIPES[name]()
    updates, state = clip.update(empty, clip.init(empty), empty)
    assert jax.tree.structure(updates) == jax.tree.structure(empty)
    info = catalogue.clip_state(state).info
    assert float(info.norm) == 0
    assert float(info.factor) == 1
    assert float(info.clipped_fraction) == 0
    assert int(info.nonfinite_count) == 0


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("name", catalogue.RECIPES)
def test_c24_zero_size_array(name, shape):
    clip = catalogue.RECIPES[name]()
    tree = {"empty": jnp.zeros(shape)}
    updates, state = clip.update(tree, clip.init(tree), tree)
    assert_same_bits(updates, tree)
    assert float(catalogue.clip_state(state).info.norm) == 0


def test_c24_zero_size_array_beside_others():
    tree = {"empty": jnp.zeros((0, 3)), "w": GRAD}
    for clip in (one, clipjax.clip_by_leaf_norm(1.0), clipjax.clip_by_value(10.0)):
        updates, state = clip.update(tree, None)
        assert float(state.info.norm) == 5
        assert updates["empty"].shape == (0, 3)


ODD = {
    "integer": jnp.array([7, 8]),
    "bool": jnp.array([True]),
    "float0": np.zeros((2,), jax.dtypes.float0),
    "w": GRAD,
}


@pytest.mark.parametrize("name", catalogue.RECIPES)
def test_c25_integers_and_float0_pass_through(name):
    clip = catalogue.RECIPES[name]()
    updates, state = clip.update(ODD, clip.init(ODD), ODD)
    for key in ("integer", "bool", "float0"):
        assert bytes(np.asarray(updates[key])) == bytes(np.asarray(ODD[key]))
        assert updates[key].dtype == ODD[key].dtype
    alone = {"w": GRAD}
    expected, _ = clip.update(alone, clip.init(alone), alone)
    assert_same_bits(updates["w"], expected["w"])


def test_c26_prng_keys_pass_through():
    tree = {"key": jax.random.key(3), "w": GRAD}
    updates, state = jax.jit(one.update)(tree, one.init(tree))
    assert jnp.array_equal(
        jax.random.key_data(updates["key"]), jax.random.key_data(tree["key"])
    )
    assert float(state.info.norm) == 5


def test_c27_python_floats_and_numpy():
    tree = {"python": 3.0, "numpy": np.array([4.0], np.float32), "integer": 5}
    updates, state = one.update(tree, one.init(tree))
    assert float(state.info.norm) == 5
    assert float(updates["python"]) == pytest.approx(0.6)
    assert jax.typeof(updates["python"]).weak_type
    np.testing.assert_allclose(updates["numpy"], [0.8], rtol=1e-6)
    assert updates["numpy"].dtype == np.float32
    assert updates["integer"] == 5


def test_c28_gradients_that_are_none_where_parameters_are_not():
    clip = clipjax.adaptive_grad_clip(0.1)
    params = {"w": jnp.ones((2, 2)), "frozen": jnp.ones(3)}
    grads = {"w": jnp.ones((2, 2), jnp.bfloat16), "frozen": None}
    updates, state = clip.update(grads, clip.init(params), params)
    assert updates["frozen"] is None
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(updates["w"], np.float32), 0.1, rtol=2.0**-8)
    with pytest.raises(ValueError, match="needs params: call update"):
        clip.update(grads, clip.init(params))
    with pytest.raises(ValueError, match="params have no leaf w"):
        clip.update(grads, clip.init(params), {"frozen": jnp.ones(3)})


def test_c29_a_tied_array_counts_as_often_as_it_stands_in_the_tree():
    _, state = one.update({"a": GRAD, "b": GRAD}, None)
    assert float(state.info.norm) == pytest.approx(50**0.5, rel=1e-6)


def test_d30_frozen_leaves_do_not_starve_the_rest():
    grads = {"a": jnp.ones(4), "b": 100 * jnp.ones(4)}
    labels = {"a": "train", "b": "freeze"}
    optimizer = optax.partition({"train": one, "freeze": optax.set_to_zero()}, labels)
    updates, state = optimizer.update(grads, optimizer.init(grads))
    assert norm(updates["a"]) == pytest.approx(1, rel=1e-6)
    assert float(clipjax.metrics(state)["clip/grad_norm_raw"]) == 2
    clip = clipjax.clip_by_group_norm(labels, {"train": 1.0, "freeze": None})
    updates, state = clip.update(grads, clip.init(grads))
    assert norm(updates["a"]) == pytest.approx(1, rel=1e-6)
    assert float(clipjax.metrics(state)["clip/grad_norm_raw/train"]) == 2


def test_d31_two_groups_or_one_budget():
    grads = {"a": 10 * jnp.ones(4), "b": 100 * jnp.ones(4)}
    labels = {"a": "a", "b": "b"}
    groups = clipjax.clip_by_group_norm(labels, {"a": 1.0, "b": 1.0})
    updates, _ = groups.update(grads, None)
    assert norm(updates["a"]) == pytest.approx(1, rel=1e-6)
    assert norm(updates) == pytest.approx(2**0.5, rel=1e-6)
    updates, _ = one.update(grads, None)
    assert norm(updates) == pytest.approx(1, rel=1e-6)


def test_d33_a_group_without_a_clip_and_an_empty_one():
    grads = {"a": 10 * jnp.ones(4), "b": 100 * jnp.ones(4)}
    max_norms = {"first": None, "second": 1.0, "absent": 3.0}
    clip = clipjax.clip_by_group_norm({"a": "first", "b": "second"}, max_norms)
    updates, state = clip.update(grads, clip.init(grads))
    assert_same_bits(updates["a"], grads["a"])
    assert norm(updates["b"]) == pytest.approx(1, rel=1e-6)
    metrics = clipjax.metrics(state)
    assert float(metrics["clip/grad_norm_raw/absent"]) == 0
    assert float(metrics["clip/clip_ratio/absent"]) == 1
    assert float(metrics["clip/threshold/absent"]) == 3
    assert float(metrics["clip/clipped_fraction"]) == 0.5
    with pytest.raises(ValueError, match="labels gives 'third' for 'b'"):
        clipjax.clip_by_group_norm({"a": "first", "b": "third"}, max_norms).update(
            grads, None
        )
    with pytest.raises(ValueError, match="labels must be a prefix"):
        clipjax.clip_by_group_norm({"a": "first"}, max_norms).update(grads, None)
