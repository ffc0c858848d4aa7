"""The drop-ins give Optax's numbers on finite float32 input, to one ulp or the bit.

That is where Optax's own sum of squares is right. XLA's CPU backend adds up to 4,096
entries one after another, which costs Optax some ulps of the norm from a few dozen
entries on; there the drop-ins are held to float64 instead.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import eps, flat, norm, random_tree

import clipjax

pytestmark = pytest.mark.optimized

SHAPES = {"a": {"bias": (5,), "kernel": (4, 5)}, "scale": ()}
PAIRS = {
    "clip_by_global_norm": (clipjax.clip_by_global_norm, optax.clip_by_global_norm),
    "clip_by_block_rms": (clipjax.clip_by_block_rms, optax.clip_by_block_rms),
    "clip_by_value": (clipjax.clip_by_value, optax.clip),
}


def assert_within_ulps(actual, expected, ulps=1):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for mine, theirs in zip(
        jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
        assert mine.dtype == theirs.dtype == np.float32
        np.testing.assert_array_max_ulp(mine, theirs, maxulp=ulps)


def cases():
    generator = np.random.default_rng(0)
    for seed in range(20):
        size = 10.0 ** generator.uniform(-4, 4)
        threshold = size * 10.0 ** generator.uniform(-2, 1)
        yield random_tree(seed, SHAPES, size=size), np.float32(threshold)


@pytest.mark.parametrize("mode", ["eager", "jit"])
@pytest.mark.parametrize("name", PAIRS)
def test_random_trees_and_thresholds(name, mode):
    compiled = jax.jit if mode == "jit" else lambda function: function
    recipe, peer = PAIRS[name]
    ours = compiled(lambda grads, limit: recipe(limit).update(grads, None)[0])
    theirs = compiled(
        lambda grads, limit: peer(limit).update(grads, optax.EmptyState())[0]
    )
    clipped = 0
    for grads, threshold in cases():
        limit = jnp.asarray(threshold)
        expected = theirs(grads, limit)
        assert_within_ulps(ours(grads, limit), expected)
        clipped += not np.array_equal(expected["a"]["kernel"], grads["a"]["kernel"])
    assert 5 <= clipped <= 20


@pytest.mark.parametrize("shape", [(1000,), (23, 37), (3, 3, 8, 16), (16, 16, 15)])
@pytest.mark.parametrize("name", ["clip_by_global_norm", "clip_by_block_rms"])
def test_nearer_to_float64_than_optax(name, shape):
    errors = {"ours": [], "theirs": []}
    steps = {
        key: jax.jit(lambda grads, recipe=recipe: recipe(0.1).update(grads, None)[0])
        for key, recipe in zip(errors, PAIRS[name], strict=True)
    }
    for seed in range(10):
        grads = random_tree(seed, {"w": shape}, size=100.0)
        exact = norm(grads) / (1 if "global" in name else np.prod(shape) ** 0.5)
        truth = flat(grads) * (np.float32(0.1) / exact)
        for key, step in steps.items():
            errors[key].append(np.abs(flat(step(grads)) / truth - 1).max())
    assert max(errors["ours"]) <= max(errors["theirs"])
    assert max(errors["ours"]) <= 2 * eps(jnp.float32)  # of the norm, and of the entry


RANKS = [(), (6,), (1, 6), (4, 6), (2, 3, 4), (2, 3, 2, 4), (2, 2, 2, 3, 2)]


@pytest.mark.parametrize(
    ("shape", "mode"), [*((shape, "jit") for shape in RANKS), ((4, 6), "eager")]
)
def test_adaptive_grad_clip_rank_by_rank(shape, mode):
    generator = np.random.default_rng(len(shape))
    params = jnp.asarray(generator.standard_normal(shape), "f4")
    ours, theirs = clipjax.adaptive_grad_clip(0.1), optax.adaptive_grad_clip(0.1)
    for size in (0.01, 1.0):
        grads = jnp.asarray(size * generator.standard_normal(shape), "f4")
        update, peer = ours.update, theirs.update
        if mode == "jit":
            update, peer = jax.jit(update), jax.jit(peer)
        # Optax relies on rank promotion.
        with jax.numpy_rank_promotion("allow"):
            expected, _ = peer(grads, theirs.init(params), params)
        mine, _ = update(grads, ours.init(params), params)
        assert_within_ulps(mine, expected)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((4, 6), 1), ((2, 3, 4), (1, 2)), ((2, 3, 2, 4), (0, 1)), ((3, 4), (0, 1))],
)
def test_adaptive_grad_clip_with_axis(shape, axis):
    generator = np.random.default_rng(3)
    params, grads = (jnp.asarray(generator.standard_normal(shape), "f4") for _ in "ab")
    ours = clipjax.adaptive_grad_clip(0.1, axis=axis)
    theirs = optax.adaptive_grad_clip(0.1, axis=axis)
    with jax.numpy_rank_promotion("allow"):
        expected, _ = theirs.update(grads, theirs.init(params), params)
    mine, _ = ours.update(grads, ours.init(params), params)
    assert_within_ulps(mine, expected)


def test_adaptive_grad_clip_with_zero_parameters():
    params, grads = jnp.zeros((3, 2)), jnp.ones((3, 2))
    ours = clipjax.adaptive_grad_clip(0.1, 0.01)
    theirs = optax.adaptive_grad_clip(0.1, 0.01)
    expected, _ = theirs.update(grads, theirs.init(params), params)
    mine, _ = ours.update(grads, ours.init(params), params)
    assert_within_ulps(mine, expected)
    np.testing.assert_allclose(np.linalg.norm(mine, axis=0), 1e-3, rtol=1e-6)


def test_clips_are_drop_ins_inside_a_training_loop():
    def train(clip):
        optimizer = optax.chain(clip, optax.sgd(0.1))
        params = random_tree(0, SHAPES)

        @jax.jit
        def step(params, state):
            grads = jax.tree.map(lambda leaf: 3 * leaf, params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state = optimizer.init(params)
        for _ in range(5):
            params, state = step(params, state)
        return params

    ours = train(clipjax.clip_by_global_norm(0.5))
    theirs = train(optax.clip_by_global_norm(0.5))
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=5 * 2.0**-23)
