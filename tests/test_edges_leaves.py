"""Sharp edges C and D: kinds of leaves, and groups of them."""

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import about
from oracle import assert_same_bits, norm

import clipjax

one = clipjax.clip_by_global_norm(1.0)
GRAD = jnp.array([3.0, 4.0])


# One recipe of each granularity, with and without a memory, a need of parameters, a
# chain.
SOME = (
    "clip_by_value",
    "clip_by_global_norm",
    "clip_by_leaf_norm",
    "adaptive_grad_clip",
    "scale_by_l0_l1",
    "autoclip",
    "adagc",
    "aggc",
    "larc_clip",
    "clippy",
    "quantization_clip",
    "spectral_clamp",
)


def test_c24_trees_without_an_entry():
    """The form of every recipe's result is traced in `test_contracts_form.py`."""
    empty = [{}, (jnp.zeros((3, 0)), {"a": None})]
    for name in SOME:
        clip = catalogue.RECIPES[name]()
        for tree in empty:
            with about(f"{name} on {tree}"):
                updates, state = jax.jit(clip.update)(tree, clip.init(tree), tree)
                assert_same_bits(updates, tree)
                info = catalogue.clip_state(state).clip_info
                assert float(info.norm_before) == float(info.clipped_fraction) == 0
                assert float(info.clip_ratio) == 1
                assert int(info.nonfinite_steps) == 0


def test_c24_zero_size_array_beside_others():
    tree = {"empty": jnp.zeros((0, 3)), "w": GRAD}
    for clip in (one, clipjax.clip_by_leaf_norm(1.0), clipjax.clip_by_value(10.0)):
        updates, state = clip.update(tree, None)
        assert float(state.clip_info.norm_before) == 5
        assert updates["empty"].shape == (0, 3)


ODD = {
    "integer": jnp.array([7, 8]),
    "bool": jnp.array([True]),
    "float0": np.zeros((2,), jax.dtypes.float0),
    "w": GRAD,
}


def test_c25_integers_and_float0_pass_through():
    alone = {"w": GRAD}
    for name in SOME:
        clip = catalogue.RECIPES[name]()
        with about(name):
            updates, _ = clip.update(ODD, clip.init(ODD), ODD)
            for key in ("integer", "bool", "float0"):
                assert bytes(np.asarray(updates[key])) == bytes(np.asarray(ODD[key]))
                assert updates[key].dtype == ODD[key].dtype
            expected, _ = clip.update(alone, clip.init(alone), alone)
            assert_same_bits(updates["w"], expected["w"])


def test_c26_prng_keys_pass_through():
    tree = {"key": jax.random.key(3), "w": GRAD}
    updates, state = jax.jit(one.update)(tree, one.init(tree))
    assert jnp.array_equal(
        jax.random.key_data(updates["key"]), jax.random.key_data(tree["key"])
    )
    assert float(state.clip_info.norm_before) == 5


def test_c27_python_floats_and_numpy():
    tree = {"python": 3.0, "numpy": np.array([4.0], np.float32), "integer": 5}
    updates, state = one.update(tree, one.init(tree))
    assert float(state.clip_info.norm_before) == 5
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
    assert float(state.clip_info.norm_before) == pytest.approx(50**0.5, rel=1e-6)


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


def test_d33_a_group_without_a_clip_and_one_without_a_leaf():
    grads = {"a": 10 * jnp.ones(4), "b": 100 * jnp.ones(4)}
    labels = {"a": "first", "b": "second"}
    clip = clipjax.clip_by_group_norm(labels, {"first": None, "second": 1.0})
    updates, state = clip.update(grads, clip.init(grads))
    assert_same_bits(updates["a"], grads["a"])
    assert norm(updates["b"]) == pytest.approx(1, rel=1e-6)
    metrics = clipjax.metrics(state)
    assert float(metrics["clip/threshold/first"]) == np.inf
    assert float(metrics["clip/clip_ratio/first"]) == 1
    assert float(metrics["clip/clipped_fraction"]) == 0.5
    for max_norms, message in [
        ({"first": 1.0}, "leaf 'b' has the label 'second', which has no thr"),
        (
            {"first": 1.0, "second": 1.0, "absent": 3.0},
            "no leaf has the label 'absent'; the leaves are a, b",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            clipjax.clip_by_group_norm(labels, max_norms).update(grads, None)
    with pytest.raises(ValueError, match="labels must be a prefix"):
        clipjax.clip_by_group_norm({"a": "a"}, {"a": 1.0}).update(grads, None)
