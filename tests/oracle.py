"""What the answers should be: NumPy in float64, and comparisons bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np


def wide(leaf):
    """Casts a leaf to float64, or complex128, exactly."""
    leaf = np.asarray(leaf)
    is_complex = np.issubdtype(leaf.dtype, np.complexfloating)
    return leaf.astype(np.complex128 if is_complex else np.float64)


def flat(tree):
    """Gives the entries of a tree as one vector in double precision."""
    leaves = [wide(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([np.zeros(0), *leaves])


def norm(tree, p=2):
    """Gives the p-norm of a tree; "rms" for the root mean square."""
    entries = np.abs(flat(tree))
    peak = entries.max(initial=0.0)
    if peak == 0 or p == np.inf:
        return peak
    if p == "rms":
        return peak * np.sqrt(np.mean((entries / peak) ** 2))
    return peak * np.sum((entries / peak) ** p) ** (1 / p)


def hard_clip(tree, threshold, p=2):
    """Gives the clipped tree in double precision."""
    length = norm(tree, p)
    factor = min(1.0, threshold / length) if length > 0 else 1.0
    return jax.tree.map(lambda leaf: wide(leaf) * factor, tree)


def block_norms(name, tree):
    """Gives, for each entry, the norm of its block in a clip of `catalogue`.

    Args:
        name: of a representative.
        tree: one of `catalogue.SHAPES`.
    """
    if name in ("whole", "zero", "drop", "linf", "learnt"):
        length = norm(tree, np.inf if name == "linf" else 2)
        return jax.tree.map(lambda leaf: np.full(np.shape(leaf), length), tree)
    if name == "group":
        vectors = norm([tree["dense"]["bias"], tree["scale"]])
        return jax.tree.map(
            lambda leaf: np.full(
                np.shape(leaf), norm(leaf) if np.ndim(leaf) > 1 else vectors
            ),
            tree,
        )
    if name.startswith("entries"):
        return jax.tree.map(lambda leaf: np.abs(wide(leaf)), tree)
    by_axis = {"unit": 0, "learnt-unit": 0, "params": 0, "stacked": 1}.get(name)

    def of_leaf(leaf):
        leaf = wide(leaf)
        if leaf.ndim == 2 and name in ("spectral", "svd"):
            return np.full(leaf.shape, np.linalg.norm(leaf, 2))
        if leaf.ndim < 2 or by_axis is None:
            return np.full(leaf.shape, norm(leaf, "rms" if name == "rms" else 2))
        peak = np.abs(leaf).max(initial=0.0) or 1.0
        length = peak * np.linalg.norm(leaf / peak, axis=by_axis, keepdims=True)
        return np.broadcast_to(length, leaf.shape)

    return jax.tree.map(of_leaf, tree)


def clipped(name, tree, threshold, params):
    """Gives what a representative of `catalogue` makes of a finite tree."""

    def clip(leaf, length, weight):
        leaf = wide(leaf)
        if name == "svd" and leaf.ndim == 2:
            left, sigma, right = np.linalg.svd(leaf, full_matrices=False)
            return (left * np.minimum(sigma, threshold)) @ right
        limit = threshold * (np.maximum(weight, 1e-3) if name == "params" else 1.0)
        return leaf * np.minimum(1, limit / np.where(length > 0, length, np.inf))

    lengths, weights = block_norms(name, tree), block_norms(name, params)
    return jax.tree.map(clip, tree, lengths, weights)


def eps(dtype):
    """Gives one ulp at 1."""
    return float(jnp.finfo(dtype).eps)


def random_tree(seed, shapes, dtype=jnp.float32, size=1.0):
    """Makes Gaussian leaves, scaled to an overall L2 norm of ``size``."""
    generator = np.random.default_rng(seed)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    drawn = jax.tree.map(generator.standard_normal, shapes, is_leaf=is_shape)
    scale = size / norm(drawn)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf * scale, dtype), drawn)


def bits(leaf):
    """Gives what a leaf is to the bit."""
    leaf = np.asarray(leaf)
    return leaf.dtype, leaf.shape, leaf.tobytes()


def assert_same_bits(actual, expected):
    """Compares two trees to the bit, signs of zeros included."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for mine, theirs in zip(
        jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
        assert bits(mine) == bits(theirs), (mine, theirs)


def assert_close(actual, expected, rtol=1e-6, atol=0.0):
    """Compares two trees leaf by leaf; a name in the message is the leaf's path."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    mine = jax.tree_util.tree_leaves_with_path(actual)
    for (path, leaf), other in zip(mine, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            wide(leaf),
            wide(other),
            rtol=rtol,
            atol=atol,
            err_msg=jax.tree_util.keystr(path),
        )


def kinds(tree):
    """Gives structure, shapes, dtypes and weak types."""
    types = [jax.typeof(leaf) for leaf in jax.tree.leaves(tree)]
    kinds = [(kind.shape, kind.dtype, kind.weak_type) for kind in types]
    return jax.tree.structure(tree), kinds


def cosine(one, other):
    """Gives the cosine of the angle between two trees as vectors."""
    one, other = flat(one), flat(other)
    one, other = one / np.abs(one).max(), other / np.abs(other).max()
    product = np.real(np.vdot(one, other))
    return product / (np.linalg.norm(one) * np.linalg.norm(other))
