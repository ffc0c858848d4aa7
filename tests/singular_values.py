"""What the tests of singular values share: matrices, maps, and NumPy's SVD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from oracle import random_tree, wide

from clipjax import rules
from clipjax.spectral import SVD, NewtonSchulz, PowerIteration, clip_singular_values

# Three leaves are matrices of one shape, or its transpose: XLA compiles their loops
# once.
SHAPES = {
    "tall": (9, 4),
    "wide": (4, 9),
    "row": (1, 6),
    "column": (6, 1),
    "vector": (7,),
    "scalar": (),
    "convolution": (3, 1, 3, 4),
}
MAPS = {
    "hard": (rules.hard, lambda s, c: np.minimum(s, c)),
    "soft": (rules.soft, lambda s, c: s * c / (s + c)),
    "tanh": (rules.tanh, lambda s, c: c * np.tanh(s / c)),
    "sqrt": (rules.sqrt, lambda s, c: s / np.sqrt(1 + (s / c) ** 2)),
}
# Two ways to the same result: by SVD, and by iteration.
WAYS = {"svd": SVD(), "newton-schulz": NewtonSchulz()}
# The three recipes, and how exact the largest singular value of their results is.
RECIPES = {
    "spectral_clip": (PowerIteration(), rules.hard),
    "spectral_clamp": (SVD(), rules.hard),
    "spectral_soft_clip": (NewtonSchulz(), rules.sqrt),
}


@functools.cache
def compiled(method, rule=rules.sqrt, *, report=True):
    """Compiles a clip of trees, with its threshold as an argument.

    Without the report it compiles in half the time.
    """

    @jax.jit
    def update(tree, threshold):
        clip = clip_singular_values(threshold, method=method, rule=rule)
        updates, state = clip.update(tree, None)
        return updates, state.clip_info if report else None

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
    """Makes a leaf by NumPy: JAX would compile a product for every shape."""
    leaf = np.asarray(random_tree(seed, shape))
    return (leaf * np.float32(largest / sigma(leaf)[0])).astype(jnp.dtype(dtype))


def tree_of(largest, dtype=jnp.float32):
    """Makes a leaf of each shape, with this largest singular value."""
    return {name: leaf_of(shape, largest, dtype) for name, shape in SHAPES.items()}
