"""The drop-ins give Optax's numbers on finite float32 input, and pass Optax's tests."""

import functools
import importlib.util
import types
import unittest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import eps, flat, norm, random_tree

import clipjax

SHAPES = {"a": {"bias": (5,), "kernel": (4, 5)}, "scale": ()}
PAIRS = {
    "clip_by_global_norm": (clipjax.clip_by_global_norm, optax.clip_by_global_norm),
    "clip_by_block_rms": (clipjax.clip_by_block_rms, optax.clip_by_block_rms),
    "clip_by_value": (clipjax.clip_by_value, optax.clip),
}


def assert_within_ulps(actual, expected, ulps=3):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for mine, theirs in zip(
        jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
        assert mine.dtype == theirs.dtype == np.float32
        np.testing.assert_array_max_ulp(mine, theirs, maxulp=ulps)


def cases(shapes):
    generator = np.random.default_rng(0)
    for seed in range(20):
        size = 10.0 ** generator.uniform(-4, 4)
        threshold = size * 10.0 ** generator.uniform(-2, 1)
        yield random_tree(seed, shapes, size=size), np.float32(threshold)


def updates_of(recipe):
    return lambda grads, limit: recipe(limit).update(grads, optax.EmptyState())[0]


@pytest.mark.parametrize("name", PAIRS)
def test_random_trees_and_thresholds(name):
    eager = [updates_of(recipe) for recipe in PAIRS[name]]
    compiled = [jax.jit(function) for function in eager]
    # Run op by op, each shape compiles programs of its own.
    one_shape = {"a": {"bias": (4, 5), "kernel": (4, 5)}}
    for (ours, theirs), shapes in ((compiled, SHAPES), (eager, one_shape)):
        clipped = 0
        for grads, threshold in cases(shapes):
            limit = jnp.asarray(threshold)
            expected = theirs(grads, limit)
            # Clips of entries have nothing to round.
            ulps = 0 if name == "clip_by_value" else 3
            assert_within_ulps(ours(grads, limit), expected, ulps)
            clipped += not np.array_equal(expected["a"]["kernel"], grads["a"]["kernel"])
        assert 5 <= clipped <= 20


@pytest.mark.parametrize("name", ["clip_by_global_norm", "clip_by_block_rms"])
def test_as_near_to_float64_as_optax(name):
    errors = {"ours": [], "theirs": []}
    steps = [jax.jit(updates_of(recipe)) for recipe in PAIRS[name]]
    shapes = {str(s): s for s in [(1000,), (16, 16, 15)]}
    for seed in range(10):
        grads = random_tree(seed, shapes, size=100.0)
        rms = "rms" in name
        blocks = list(grads.values()) if rms else [grads]
        exact = [norm(block, "rms" if rms else 2) for block in blocks]
        truth = [
            flat(b) * (np.float32(0.1) / n) for b, n in zip(blocks, exact, strict=True)
        ]
        for key, step in zip(errors, steps, strict=True):
            found = flat(step(grads, jnp.float32(0.1)))
            errors[key].append(np.abs(found / np.concatenate(truth) - 1).max())
    slack = 3 * eps(jnp.float32)
    assert max(errors["ours"]) <= max(errors["theirs"]) + slack


RANKS = [(), (6,), (1, 6), (4, 6), (2, 3, 4), (2, 3, 2, 4), (2, 2, 2, 3, 2)]


@pytest.mark.parametrize(
    ("shapes", "axis"),
    [(RANKS, None), ([(4, 6)], 1), ([(2, 3, 2, 4), (3, 4)], (0, 1))],
)
def test_adaptive_grad_clip(shapes, axis):
    tree = {str(shape): shape for shape in shapes}
    params, found = random_tree(0, tree, size=5.0), []
    for recipe in (clipjax.adaptive_grad_clip, optax.adaptive_grad_clip):
        clip = recipe(0.1, axis=axis)
        update = jax.jit(lambda g, clip=clip: clip.update(g, clip.init(params), params))
        with jax.numpy_rank_promotion("allow"):  # Optax relies on it
            grads = [random_tree(1, tree, size=size) for size in (0.1, 5.0)]
            found.append([update(g)[0] for g in grads])
    assert_within_ulps(*found)
    assert not np.array_equal(flat(found[0][1]), flat(grads[1]))


def test_adaptive_grad_clip_with_zero_parameters():
    params, grads = jnp.zeros((3, 2)), jnp.ones((3, 2))
    ours = clipjax.adaptive_grad_clip(0.1, 0.01)
    theirs = optax.adaptive_grad_clip(0.1, 0.01)
    expected, mine = (
        jax.jit(clip.update)(grads, clip.init(params), params)[0]
        for clip in (theirs, ours)
    )
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


# Optax's own tests ship with it. Left out are those of what clipjax has other forms of:
# per-example clips, which take all gradients at once, and the norm that units have.
OPTAX_TESTS = importlib.util.find_spec("optax.transforms._clipping_test")
DROP_INS = {
    "clip": clipjax.clip_by_value,
    "clip_by_block_rms": clipjax.clip_by_block_rms,
    "clip_by_global_norm": clipjax.clip_by_global_norm,
    "adaptive_grad_clip": clipjax.adaptive_grad_clip,
}


def compiled(recipe):
    """Compiles a recipe once for all thresholds: Optax's tests make a clip for each."""

    @functools.partial(jax.jit, static_argnames="axis")
    def update(updates, state, params, clipping, **settings):
        return recipe(clipping, **settings).update(updates, state, params)

    def make(clipping, **settings):
        return optax.GradientTransformation(
            recipe(clipping, **settings).init,
            lambda updates, state, params=None: update(
                updates, state, params, clipping, **settings
            ),
        )

    return make


@pytest.mark.skipif(OPTAX_TESTS is None, reason="this Optax comes without its tests")
@pytest.mark.filterwarnings("default")
def test_optax_own_tests_pass_with_clipjax():
    pytest.importorskip("absl.testing")
    # A copy of the module, whose name for Optax's clips is made to mean clipjax's.
    module = importlib.util.module_from_spec(OPTAX_TESTS)
    OPTAX_TESTS.loader.exec_module(module)
    helpers = {"unitwise_norm": module._clipping.unitwise_norm}
    drop_ins = {name: compiled(recipe) for name, recipe in DROP_INS.items()}
    module._clipping = types.SimpleNamespace(**drop_ins, **helpers)

    class Tests(module.ClippingTest):
        def assertAlmostEqual(self, first, second, places=6):
            """Compares to 1e-6, for Optax's 7 places: clipjax rounds to 3 ulps."""
            super().assertAlmostEqual(first, second, places=min(places, 6))

    names = unittest.TestLoader().getTestCaseNames(Tests)
    chosen = [n for n in names if n.startswith(tuple(f"test_{d}" for d in DROP_INS))]
    assert {f"test_{name}" for name in DROP_INS} <= set(chosen)
    suite = unittest.TestSuite(map(Tests, chosen))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        result = unittest.TextTestRunner(verbosity=0).run(suite)
    assert result.testsRun == len(chosen)
    problems = [*result.failures, *result.errors]
    assert result.wasSuccessful(), "\n".join(text for _, text in problems)
