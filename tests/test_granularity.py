"""Which entries share a norm: blocks, their names, stacks and axes (edges L)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_same_bits, norm, random_tree

import clipjax
from clipjax import granularity, guards, norms

TREE = {"layers": [{"w": (3, 4), "b": (4,)}, {"w": (4, 2), "b": (2,)}], "scale": ()}


def clipped(tree, blocks, threshold=1.0, **parts):
    clip = clipjax.clip_by(threshold, granularity=blocks, **parts)
    return jax.jit(clip.update)(tree, clip.init(tree))


def shorten(array, axes, threshold=1.0):
    """Clips over the given axes in float64."""
    array = np.asarray(array, np.float64)
    lengths = np.sqrt(np.sum(array**2, axis=axes, keepdims=True))
    return array * np.minimum(1, threshold / lengths)


@pytest.fixture(scope="module")
def tree():
    return random_tree(0, TREE, size=10.0)


def test_leaf(tree):
    updates, state = clipped(tree, granularity.leaf())
    for before, after in zip(
        jax.tree.leaves(tree), jax.tree.leaves(updates), strict=True
    ):
        np.testing.assert_allclose(after, shorten(before, None), rtol=1e-6)
    names = ("layers/0/b", "layers/0/w", "layers/1/b", "layers/1/w", "scale")
    assert state.block_names == names
    leaves = jax.tree.leaves(tree)
    lengths = [norm(leaf) for leaf in leaves]
    np.testing.assert_allclose(state.info.blocks.norm, lengths, rtol=1e-6)
    assert float(state.info.norm) == pytest.approx(10, rel=1e-6)
    fraction = np.mean([length > 1 for length in lengths])
    assert float(state.info.clipped_fraction) == pytest.approx(fraction)


def test_group_by_function_and_by_prefix_tree(tree):
    by_path = granularity.group(lambda path, leaf: path.split("/")[0])
    by_tree = granularity.group({"layers": "layers", "scale": "scale"})
    expected, state = clipped(tree, by_path)
    assert_same_bits(clipped(tree, by_tree)[0], expected)
    assert state.block_names == ("layers", "scale")
    assert norm(expected["layers"]) == pytest.approx(1, rel=1e-6)
    factor = 1 / norm(tree["layers"])
    np.testing.assert_allclose(
        expected["layers"][0]["w"],
        np.float64(tree["layers"][0]["w"]) * factor,
        rtol=1e-6,
    )


def test_whole_has_no_blocks(tree):
    _, state = clipped(tree, granularity.whole())
    assert state.block_names == () and state.info.blocks == ()
    assert len(jax.tree.leaves(state)) == 12  # scalars only
    assert all(leaf.shape == () for leaf in jax.tree.leaves(state))


def test_element(tree):
    updates, state = clipped(tree, granularity.element(), 0.5)
    for before, after in zip(
        jax.tree.leaves(tree), jax.tree.leaves(updates), strict=True
    ):
        assert_same_bits(after, jnp.clip(before, -0.5, 0.5))
    entries = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    fraction = np.mean(np.abs(entries) > 0.5)
    assert float(state.info.clipped_fraction) == pytest.approx(fraction)


def test_element_is_the_same_for_every_norm(tree):
    expected, _ = clipped(tree, granularity.element(), 0.5)
    for norm_part in (norms.l1, norms.linf, norms.rms):
        updates, _ = clipped(tree, granularity.element(), 0.5, norm=norm_part)
        assert_same_bits(updates, expected)


DEFAULT_AXES = {
    (): None,
    (5,): None,
    (1, 5): None,
    (5, 1): None,
    (3, 4): 0,
    (2, 3, 4): 0,
    (2, 2, 3, 4): (0, 1, 2),
    (2, 2, 2, 3, 4): (0, 1, 2, 3),
}


@pytest.mark.parametrize("shape", DEFAULT_AXES, ids=str)
def test_l74_unit_axes_by_rank(shape):
    grads = random_tree(1, shape, size=10.0)
    updates, _ = clipped(grads, granularity.unit())
    expected = shorten(grads, DEFAULT_AXES[shape])
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_l74_rank_six_needs_axes():
    grads = jnp.ones((2,) * 6)
    with pytest.raises(ValueError, match="axes must be given .* rank 0 to 5"):
        clipped(grads, granularity.unit())
    updates, _ = clipped(grads, granularity.unit((0, 1, 2)))
    np.testing.assert_allclose(updates, shorten(grads, (0, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    "axes",
    [
        1,
        (1, 2),
        [-1, 1],
        lambda path, leaf: (1, 2),
        {"w": (1, 2)},
        {"other": 0, "w*": -1},
    ],
)
def test_l74_unit_axes_given(axes):
    grads = {"w": random_tree(2, (2, 3, 4), size=10.0)}
    updates, _ = clipped(grads, granularity.unit(axes))
    chosen = {"w": (1, 2)}
    reduced = {1: 1}.get(axes if isinstance(axes, int) else None, chosen["w"])
    if isinstance(axes, dict) and "other" in axes:
        reduced = 2
    np.testing.assert_allclose(updates["w"], shorten(grads["w"], reduced), rtol=1e-6)


def test_l74_scalars_and_zero_parameters():
    clip = clipjax.adaptive_grad_clip(0.1, eps=0.01)
    grads = {"scalar": jnp.array(5.0), "zeros": jnp.ones((2, 2))}
    params = {"scalar": jnp.array(-2.0), "zeros": jnp.zeros((2, 2))}
    updates, _ = clip.update(grads, clip.init(params), params)
    assert float(updates["scalar"]) == pytest.approx(0.2, rel=1e-6)
    lengths = np.linalg.norm(updates["zeros"], axis=0)
    np.testing.assert_allclose(lengths, 1e-3, rtol=1e-6)


def test_l73_stacked_layers_are_clipped_one_by_one():
    params = jnp.ones((2, 4, 3))
    quiet, loud = 1e-3 * jnp.ones((4, 3)), 10 * jnp.ones((4, 3))
    grads = jnp.stack([quiet, loud])
    clip = clipjax.adaptive_grad_clip(0.01, stacked=1)
    updates, _ = clip.update(grads, clip.init(params), params)
    assert_same_bits(updates[0], quiet)  # norm 2e-3 of 0.02 allowed
    np.testing.assert_allclose(np.linalg.norm(updates[1], axis=0), 0.02, rtol=1e-6)


STACKED = {"blocks": {"w": (3, 2, 2)}, "head": (4,)}


def test_stacked_leaves():
    grads = random_tree(3, STACKED, size=1.0)
    grads["blocks"]["w"] *= jnp.array([1e-3, 1.0, 100.0])[:, None, None]
    updates, state = clipped(grads, granularity.leaf({"blocks/*": 1}), 0.5)
    np.testing.assert_allclose(
        updates["blocks"]["w"], shorten(grads["blocks"]["w"], (1, 2), 0.5), rtol=1e-6
    )
    assert_same_bits(updates["blocks"]["w"][0], grads["blocks"]["w"][0])
    names = ("blocks/w[0]", "blocks/w[1]", "blocks/w[2]", "head")
    assert state.block_names == names
    assert float(state.info.norm) == pytest.approx(norm(grads), rel=1e-6)


def test_stacks_of_more_than_ten_layers_keep_their_order():
    grads = jnp.arange(1.0, 13.0)[:, None]
    _, state = clipped(grads, granularity.leaf(1), 5.0)
    assert state.block_names[2] == "[02]"
    np.testing.assert_array_equal(state.info.blocks.norm, np.arange(1.0, 13.0))


def test_thresholds_per_layer_of_a_stack():
    grads = jnp.ones((3, 4))
    clip = clipjax.clip_by_leaf_norm({"w": np.array([0.5, 1.0, 9.0])}, stacked=1)
    updates, _ = clip.update({"w": grads}, None)
    lengths = np.linalg.norm(updates["w"], axis=1)
    np.testing.assert_allclose(lengths, [0.5, 1, 2], rtol=1e-6)


@pytest.mark.parametrize("bad", [-1, True, 1.5, lambda path, leaf: "two"])
def test_bad_stacks_are_refused(bad):
    with pytest.raises(ValueError, match="stacked must be a number of leading axes"):
        clipped({"w": jnp.ones((2, 2))}, granularity.leaf(bad))


def test_paths_that_read_alike_are_told_apart():
    grads = {"a": [jnp.ones(2)], "a/0": 2 * jnp.ones(2)}
    _, state = clipped(grads, granularity.leaf())
    assert len(set(state.block_names)) == 2
    np.testing.assert_allclose(
        sorted(np.asarray(state.info.blocks.norm)), [2**0.5, 8**0.5], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (granularity.element(), "element"),
        (granularity.unit(), "unit"),
        (granularity.unit(0), "unit(reduced=0)"),
        (granularity.leaf(), "leaf"),
        (granularity.leaf(1), "leaf(stacked=1)"),
        (granularity.group({"a": "x"}), "group"),
        (granularity.whole(), "whole"),
    ],
)
def test_names(part, text):
    assert repr(part) == text


def test_unit_thresholds_from_a_table():
    grads = {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 3))}
    clip = clipjax.clip_by({"a": 1.0, "b": None}, granularity=granularity.unit())
    updates, state = clip.update(grads, clip.init(grads))
    np.testing.assert_allclose(np.linalg.norm(updates["a"], axis=0), 1, rtol=1e-6)
    assert_same_bits(updates["b"], grads["b"])
    np.testing.assert_array_equal(state.info.blocks.threshold, [1.0, np.inf])
    assert float(state.info.clipped_fraction) == 0.5


@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf, -1.0])
@pytest.mark.parametrize("blocks", [granularity.element(), granularity.unit()])
def test_an_invalid_threshold_is_not_reported_as_none(blocks, value):
    grads = {"w": jnp.array([1.0, 0.2, 3.0])}
    clip = clipjax.clip_by(jnp.float32(value), granularity=blocks)
    for update in (clip.update, jax.jit(clip.update)):
        updates, state = update(grads, None)
        assert not jnp.any(updates["w"])
        assert not float(state.info.threshold) >= 0
        assert int(state.info.invalid_threshold_count) == 1


@pytest.mark.parametrize("guard", [guards.propagate, guards.zero])
def test_only_leaves_without_nan_count_as_changed(guard):
    """As for leaves, of which the one with NaN does not count."""
    grads = {"bad": jnp.array([9.0, jnp.nan, 3.0]), "good": jnp.array([5.0, 0.1])}
    for blocks, fraction in (
        (granularity.element(), 1 / 5),
        (granularity.unit(), 1 / 2),
        (granularity.leaf(), 1 / 2),
    ):
        clip = clipjax.clip_by(0.5, granularity=blocks, nonfinite=guard)
        info = clip.update(grads, None)[1].info
        assert float(info.clipped_fraction) == pytest.approx(fraction)


def test_an_infinite_entry_without_a_threshold_is_not_changed():
    grads = {"w": jnp.array([jnp.inf, 1.0])}
    info = clipjax.clip_by_value(jnp.float32(jnp.inf)).update(grads, None)[1].info
    assert float(info.clipped_fraction) == 0


def test_a_schedule_may_give_integers():
    clip = clipjax.clip_by_value(lambda count: count + 1)
    updates, state = clip.update({"w": jnp.array([2.0, 0.5])}, None)
    np.testing.assert_array_equal(updates["w"], [1.0, 0.5])
    assert float(state.info.threshold) == 1
