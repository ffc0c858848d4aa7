"""Which entries share a norm: blocks, stacks of layers, axes of units, labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_same_bits, norm, random_tree

import clipjax
from clipjax import granularity, guards

TREE = {"layers": [{"w": (3, 4), "b": (4,)}, {"w": (4, 2), "b": (2,)}], "scale": ()}
GRADS = random_tree(0, TREE, size=10.0)
NAMES = ["layers/0/b", "layers/0/w", "layers/1/b", "layers/1/w", "scale"]


def clipped(tree, blocks, threshold=1.0, **parts):
    clip = clipjax.clip_by(threshold, granularity=blocks, **parts)
    updates, state = jax.jit(clip.update)(tree, clip.init(tree))
    return updates, state.clip_info, clip.block_names(tree)


def shorten(array, axes, threshold=1.0):
    """Clips over the given axes in float64; None stands for all of them."""
    array = np.asarray(array, np.float64)
    lengths = np.sqrt(np.sum(array**2, axis=axes, keepdims=True))
    return array * np.minimum(1, threshold / lengths)


def test_leaf():
    updates, info, names = clipped(GRADS, granularity.leaf())
    leaves = jax.tree.leaves(GRADS)
    for before, after in zip(leaves, jax.tree.leaves(updates), strict=True):
        np.testing.assert_allclose(after, shorten(before, None), rtol=1e-6)
    assert names == NAMES
    lengths = [norm(leaf) for leaf in leaves]
    np.testing.assert_allclose(info.block_norms_before, lengths, rtol=1e-6)
    after = [norm(leaf) for leaf in jax.tree.leaves(updates)]
    np.testing.assert_allclose(info.block_norms_after, after, rtol=1e-6)
    np.testing.assert_array_equal(info.block_thresholds, np.ones(5))
    assert float(info.norm_before) == pytest.approx(10, rel=1e-6)
    fraction = np.mean([length > 1 for length in lengths])
    assert float(info.clipped_fraction) == pytest.approx(fraction)


def top_level(tree):
    """Labels a tree as ``optax.partition`` has it: a function of the tree."""
    return {key: key for key in tree}


def test_group():
    """Labels by path and leaf, by a prefix tree, and as Optax takes them."""
    factor = 1 / norm(GRADS["layers"])
    expected = shorten(GRADS["layers"][0]["w"], (), 1e9) * factor
    for labels in (
        lambda path, leaf: path.split("/")[0],
        {"layers": "layers", "scale": "scale"},
        top_level,
    ):
        updates, info, names = clipped(GRADS, granularity.group(labels))
        assert names == ["layers", "scale"]
        np.testing.assert_allclose(updates["layers"][0]["w"], expected, rtol=1e-6)
        assert abs(updates["scale"]) == pytest.approx(min(1, abs(GRADS["scale"])))
        lengths = norm(GRADS["layers"]), norm(GRADS["scale"])
        np.testing.assert_allclose(info.block_norms_before, lengths, rtol=1e-6)


def test_whole_and_unit_report_no_blocks():
    for blocks in (granularity.whole(), granularity.unit()):
        updates, info, names = clipped(GRADS, blocks)
        assert names == [] and info.block_norms_before == ()
        assert float(info.norm_after) == pytest.approx(norm(updates), rel=1e-6)
    assert norm(clipped(GRADS, granularity.whole())[0]) == pytest.approx(1, rel=1e-6)


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


def test_units_by_rank():
    """As Optax chooses them (edges L74)."""
    grads = {str(shape): random_tree(1, shape, size=10.0) for shape in DEFAULT_AXES}
    updates, _, _ = clipped(grads, granularity.unit())
    for shape, axes in DEFAULT_AXES.items():
        expected = shorten(grads[str(shape)], axes)
        np.testing.assert_allclose(updates[str(shape)], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="axes must be given for 'w' .* rank 0 to 5"):
        clipped({"w": jnp.ones((2,) * 6)}, granularity.unit())


@pytest.mark.parametrize(
    ("axes", "summed"),
    [
        (1, 1),
        ([-1, 1], (1, 2)),
        (lambda path, leaf: (1, 2), (1, 2)),
        ({"other": 0, "w*": (2, 1)}, (1, 2)),
    ],
)
def test_units_by_given_axes(axes, summed):
    tree = {"w": (2, 3, 4), "other": (2, 3, 4)}
    grads = random_tree(2, tree, size=10.0)
    updates, _, _ = clipped(grads, granularity.unit(axes))
    np.testing.assert_allclose(updates["w"], shorten(grads["w"], summed), rtol=1e-6)
    for wrong in (3, (0, -4)):
        with pytest.raises(ValueError, match="axes must be axes of 'other'"):
            clipped(grads, granularity.unit(wrong))


def test_units_of_scalars_and_of_zero_parameters():
    clip = clipjax.adaptive_grad_clip(0.1, eps=0.01)
    grads = {"scalar": jnp.array(5.0), "zeros": jnp.ones((2, 2))}
    params = {"scalar": jnp.array(-2.0), "zeros": jnp.zeros((2, 2))}
    updates, _ = jax.jit(clip.update)(grads, clip.init(params), params)
    assert float(updates["scalar"]) == pytest.approx(0.2, rel=1e-6)
    lengths = np.linalg.norm(updates["zeros"], axis=0)
    np.testing.assert_allclose(lengths, 1e-3, rtol=1e-6)


def test_units_of_stacked_layers():
    """A quiet layer is not clipped for a loud one (edges L73)."""
    quiet, loud = np.full((4, 3), 1e-3, "f4"), np.full((4, 3), 10, "f4")
    grads, params = np.stack([quiet, loud]), np.ones((2, 4, 3), "f4")
    clip = clipjax.adaptive_grad_clip(0.01, stacked=1)
    updates, _ = jax.jit(clip.update)(grads, clip.init(params), params)
    updates = np.asarray(updates)
    assert_same_bits(updates[0], quiet)  # norm 2e-3 of 0.02 allowed
    np.testing.assert_allclose(np.linalg.norm(updates[1], axis=0), 0.02, rtol=1e-6)


def test_leaves_that_stack_layers():
    grads = random_tree(3, {"blocks": {"w": (3, 2, 2)}, "head": (4,)})
    sizes = np.float32([1e-3, 1.0, 100.0])[:, None, None]
    grads["blocks"]["w"] = np.asarray(grads["blocks"]["w"]) * sizes
    for stacked in ({"blocks/*": 1}, lambda path, leaf: int(leaf.ndim == 3)):
        updates, info, names = clipped(grads, granularity.leaf(stacked), 0.5)
        expected = shorten(grads["blocks"]["w"], (1, 2), 0.5)
        np.testing.assert_allclose(updates["blocks"]["w"], expected, rtol=1e-6)
        quiet = np.asarray(updates["blocks"]["w"])[0]
        assert_same_bits(quiet, grads["blocks"]["w"][0])
        assert names == ["blocks/w[0]", "blocks/w[1]", "blocks/w[2]", "head"]
        lengths = [norm(layer) for layer in [*grads["blocks"]["w"], grads["head"]]]
        np.testing.assert_allclose(info.block_norms_before, lengths, rtol=1e-6)
        assert float(info.norm_before) == pytest.approx(norm(grads), rel=1e-6)


def test_stacks_of_more_than_ten_layers_keep_their_order():
    grads = np.arange(1, 13, dtype="f4")[:, None]
    _, info, names = clipped(grads, granularity.leaf(1), 5.0)
    assert names[2] == "[02]"
    np.testing.assert_array_equal(info.block_norms_before, np.arange(1.0, 13.0))


def test_thresholds_per_layer_of_a_stack():
    grads = {"w": jnp.ones((3, 4))}
    clip = clipjax.clip_by_leaf_norm({"w": np.array([0.5, 1.0, 9.0])}, stacked=1)
    updates, _ = jax.jit(clip.update)(grads, None)
    lengths = np.linalg.norm(updates["w"], axis=1)
    np.testing.assert_allclose(lengths, [0.5, 1, 2], rtol=1e-6)


def test_stacks_that_do_not_fit_the_tree_are_refused():
    grads = {"w": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="stacked must be a number of leading axes"):
        clipped(grads, granularity.leaf(lambda path, leaf: "two"))
    with pytest.raises(ValueError, match="stacked must be at most the rank of 'w'"):
        clipped(grads, granularity.leaf(3))


def test_parts_print_and_compare_by_their_settings():
    parts = {
        "unit": granularity.unit(),
        "unit(axes=0)": granularity.unit(0),
        "leaf": granularity.leaf(),
        "leaf(stacked=1)": granularity.leaf(1),
        "leaf(stacked={'a': 1})": granularity.leaf({"a": 1}),
        "group(x, y)": granularity.group({"a": "y", "b": "x"}),
        "group": granularity.group(top_level),
        "whole": granularity.whole(),
    }
    assert {repr(part): part for part in parts.values()} == parts
    assert len(set(parts.values())) == len(parts)
    assert granularity.leaf({"a": 1}) == parts["leaf(stacked={'a': 1})"]
    assert granularity.group({"a": "y", "b": "x"}) == parts["group(x, y)"]


def test_a_table_of_thresholds_for_units():
    grads = {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 3))}
    updates, info, _ = clipped(grads, granularity.unit(), {"a": 1.0, "b": None})
    np.testing.assert_allclose(np.linalg.norm(updates["a"], axis=0), 1, rtol=1e-6)
    assert_same_bits(updates["b"], grads["b"])
    assert float(info.clip_threshold) == 1 and float(info.clipped_fraction) == 0.5


@jax.jit
def by_threshold(grads, value):
    clips = (
        clipjax.clip_entries(value),
        clipjax.clip_by(value, granularity=granularity.unit()),
        clipjax.clip_by_leaf_norm({"w": value}),
    )
    return [clip.update(grads, None) for clip in clips]


@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf, -1.0])
def test_an_invalid_threshold_is_not_reported_as_none(value):
    grads = {"w": jnp.array([1.0, 0.2, 3.0])}
    for updates, state in by_threshold(grads, jnp.float32(value)):
        assert not np.any(updates["w"])
        assert not float(state.clip_info.clip_threshold) >= 0
        assert int(state.clip_info.invalid_threshold_steps) == 1


@pytest.mark.parametrize("guard", [guards.zero])
def test_a_step_with_nan_counts_as_bad_and_not_as_clipped(guard):
    grads = {"bad": jnp.array([9.0, jnp.nan, 3.0]), "good": jnp.array([5.0, 0.1])}
    for blocks in (granularity.unit(), granularity.leaf(), granularity.whole()):
        _, info, _ = clipped(grads, blocks, 0.5, nonfinite=guard)
        assert int(info.nonfinite_steps) == 1 and int(info.first_nonfinite_leaf) == 0
        assert float(info.clipped_fraction) == 0 and int(info.clipped_steps) == 0
        assert float(info.norm_before) == np.inf
