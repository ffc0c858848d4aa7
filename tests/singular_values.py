"""What the tests of singular values share: matrices, maps, and NumPy's SVD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import random_tree, wide

import clipjax
from clipjax import norms, rules
from clipjax.granularity.singular import singular
from clipjax.recipes.spectral import spectral_clamp, spectral_clip, spectral_soft_clip

SHAPES = {
    "tall": (12, 5),
    "wide": (4, 9),
    "square": (6, 6),
    "row": (1, 6),
    "column": (6, 1),
    "vector": (7,),
    "scalar": (),
    "convolution": (3, 3, 2, 4),
}
MAPS = {
    "hard": (rules.hard, lambda s, c: np.minimum(s, c)),
    "soft": (rules.soft, lambda s, c: s * c / (s + c)),
    "tanh": (rules.tanh, lambda s, c: c * np.tanh(s / c)),
    "sqrt": (rules.sqrt, lambda s, c: s / np.sqrt(1 + (s / c) ** 2)),
}
RATIOS = [1e-2, 1.0, 30.0, 1e3]
RECIPES = {
    "clip": spectral_clip,
    "clamp": spectral_clamp,
    "soft_clip": spectral_soft_clip,
}
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
# How the singular values of a leaf are clipped: by SVD, and by iteration.
WAYS = {"svd": None, "iteration": 12}
every_way = pytest.mark.parametrize("iterations", WAYS.values(), ids=WAYS)


def clip_singular(threshold, rule=rules.sqrt, iterations=None, stacked=None, **parts):
    blocks = singular(stacked, iterations)
    return clipjax.clip_by(
        threshold, granularity=blocks, norm=norms.spectral(), rule=rule, **parts
    )


@functools.cache
def compiled(rule, iterations):
    @jax.jit
    def update(leaf, threshold):
        return clip_singular(threshold, rule, iterations).update(leaf, None)

    return update


@functools.cache
def jitted(recipe):
    """Compiles a recipe with its threshold as an argument."""

    @jax.jit
    def update(tree, threshold):
        return recipe(threshold).update(tree, None)

    return lambda tree, threshold: update(tree, jnp.float32(threshold))


def matrix(leaf):
    array = wide(leaf)
    return array.reshape(-1, array.shape[-1]) if array.ndim else array[None, None]


def sigma(leaf):
    return np.linalg.svd(matrix(leaf), compute_uv=False)


def expected(leaf, function, threshold):
    left, lengths, right = np.linalg.svd(matrix(leaf), full_matrices=False)
    return ((left * function(lengths, threshold)) @ right).reshape(np.shape(leaf))


def leaf_of(shape, largest, dtype=jnp.float32, seed=0):
    leaf = random_tree(seed, shape)
    return (leaf * (largest / sigma(leaf)[0])).astype(dtype)
