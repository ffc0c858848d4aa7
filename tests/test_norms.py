"""Norms against NumPy in float64, at any magnitude, on any granularity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import eps, norm, random_tree

import clipjax
from clipjax import granularity, norms

POWERS = {
    "l1": (norms.l1, 1),
    "l2": (norms.l2, 2),
    "linf": (norms.linf, np.inf),
    "rms": (norms.rms, "rms"),
    "lp3": (norms.lp(3), 3),
    "lp1.5": (norms.lp(1.5), 1.5),
}
every_norm = pytest.mark.parametrize("name", POWERS)
SHAPES = {"a": (3, 4), "b": (5,), "c": ()}
WHOLE = granularity.whole()


@functools.cache
def compiled(part, blocks):
    """Compiles a clip whose threshold is an argument."""

    @jax.jit
    def clip(tree, threshold):
        clip = clipjax.clip_by(threshold, norm=part, granularity=blocks)
        updates, state = clip.update(tree, None)
        return updates, state.clip_info

    return clip


def clipped(tree, part, blocks=WHOLE, threshold=jnp.inf):
    return compiled(part, blocks)(tree, jnp.asarray(threshold, jnp.float32))


def measured(tree, part, blocks=WHOLE, threshold=jnp.inf):
    return clipped(tree, part, blocks, threshold)[1]


@every_norm
def test_against_numpy(name):
    part, power = POWERS[name]
    tree = random_tree(0, SHAPES, size=3.0)
    info = measured(tree, part)
    assert float(info.norm_before) == pytest.approx(norm(tree, power), rel=1e-6)
    info = measured(tree, part, granularity.leaf())
    expected = [norm(tree[leaf], power) for leaf in sorted(tree)]
    np.testing.assert_allclose(info.block_norms_before, expected, rtol=1e-6)
    # The norm of the whole, put together from those of the leaves.
    assert float(info.norm_before) == pytest.approx(norm(tree, power), rel=1e-6)


@every_norm
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1e-25, 1e20, 1e30, 1e37])
def test_extreme_magnitudes_in_float32(name, size):
    part, power = POWERS[name]
    tree = {"a": size * jnp.array([1.0, -2.0, 2.0]), "b": size * jnp.array([4.0])}
    stored = norm(tree, power)
    updates, info = clipped(tree, part, threshold=size)
    # XLA flushes numbers below the smallest normal one to zero.
    smallest = float(np.finfo("f4").tiny)
    if size < smallest:
        assert float(info.norm_before) == pytest.approx(stored, rel=1e-5, abs=smallest)
        return
    assert float(info.norm_before) == pytest.approx(stored, rel=1e-5)
    assert norm(updates, power) == pytest.approx(size, rel=1e-5)


GRANULARITIES = {
    "whole": granularity.whole(),
    "leaf": granularity.leaf(),
    "group": granularity.group(lambda path, leaf: path),
    "unit": granularity.unit(),
    "element": granularity.element(),
}


@pytest.mark.parametrize("blocks", GRANULARITIES)
@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float16", 300.0), ("bfloat16", 1e25), ("float32", 1e20), ("float32", 1e-25)],
)
def test_extreme_magnitudes_at_every_granularity(blocks, dtype, value):
    threshold = value / 100
    grads = {"w": jnp.full((4,), value, dtype), "v": jnp.full((4,), value, dtype)}
    updates, info = clipped(grads, norms.l2, GRANULARITIES[blocks], threshold)
    count = {"whole": 8, "element": 1}.get(blocks, 4)
    expected = threshold / count**0.5
    for leaf in updates.values():
        assert leaf.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(leaf, np.float64), expected, rtol=2 * eps(dtype)
        )
    assert float(info.norm_before) == pytest.approx(norm(grads), rel=1e-6)


@every_norm
def test_many_narrow_leaves(name):
    part, power = POWERS[name]
    tree = {f"{i:03}": jnp.ones((), jnp.bfloat16) for i in range(100)}
    found = measured(tree, part).norm
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(norm(tree, power), rel=1e-5)


@every_norm
def test_complex_entries_count_their_magnitude(name):
    part, power = POWERS[name]
    tree = {"z": jnp.array([3 + 4j, 1j, 0], jnp.complex64)}
    found = float(measured(tree, part).norm)
    assert found == pytest.approx(norm(tree, power), rel=1e-6)


@every_norm
def test_float64(name):
    part, power = POWERS[name]
    with jax.enable_x64(True):
        for size in (1.0, 1e-200, 1e200):
            tree = random_tree(0, SHAPES, jnp.float64, size)
            info = measured(tree, part)
            assert info.norm_before.dtype == jnp.float64
            assert float(info.norm_before) == pytest.approx(norm(tree, power), rel=1e-13)


@every_norm
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_entries_are_never_hidden(name, bad):
    part, _ = POWERS[name]
    for tree in ({"a": jnp.array([1.0, bad])}, {"a": jnp.ones(2), "b": jnp.array(bad)}):
        info = measured(tree, part, threshold=1.0)
        assert not np.isfinite(info.norm_before)
        assert int(info.nonfinite_steps) == 1


def test_names():
    assert [repr(part) for part, _ in POWERS.values()] == [
        "l1",
        "l2",
        "linf",
        "rms",
        "lp(3)",
        "lp(1.5)",
    ]
    assert norms.lp(np.inf) == norms.linf
    assert norms.lp(2) == norms.l2
    assert norms.rms != norms.l2


MATRICES = {
    "tall": (9, 4),
    "wide": (3, 8),
    "square": (5, 5),
    "row": (1, 6),
    "vector": (7,),
    "scalar": (),
    "convolution": (3, 3, 2, 4),
}


def spectral(leaf, iterations=200, stacked=0):
    clip = clipjax.clip_by(
        1.0,
        granularity=granularity.leaf(stacked),
        norm=norms.spectral(iterations),
    )
    return jax.jit(lambda leaf: clip.update(leaf, None))(leaf)


@pytest.mark.parametrize("name", MATRICES)
def test_spectral_norm_against_svd(name):
    leaf = random_tree(4, MATRICES[name], size=7.0)
    matrix = np.asarray(leaf, np.float64)
    matrix = matrix.reshape(-1, matrix.shape[-1]) if matrix.ndim else matrix[None, None]
    largest = np.linalg.svd(matrix, compute_uv=False)[0]
    updates, state = spectral(leaf)
    assert float(state.clip_info.norm_before) == pytest.approx(largest, rel=1e-5)
    shrunk = np.asarray(updates, np.float64).reshape(matrix.shape)
    assert np.linalg.svd(shrunk, compute_uv=False)[0] == pytest.approx(1, rel=1e-5)


def test_spectral_norm_of_stacked_matrices():
    sizes = jnp.array([1e-3, 1.0, 1e3])[:, None, None]
    leaf = random_tree(5, (3, 4, 6), size=1.0) * sizes
    updates, state = spectral(leaf, stacked=1)
    largest = np.linalg.svd(np.asarray(leaf, np.float64), compute_uv=False)[:, 0]
    np.testing.assert_allclose(state.clip_info.block_norms_before, largest, rtol=1e-4)
    shrunk = np.linalg.svd(np.asarray(updates, np.float64), compute_uv=False)[:, 0]
    np.testing.assert_allclose(shrunk, np.minimum(largest, 1), rtol=1e-4)


@pytest.mark.parametrize("size", [1e-30, 1e25, 2e38])
def test_spectral_norm_at_extreme_magnitudes(size):
    leaf = random_tree(6, (4, 3), size=size)
    largest = np.linalg.svd(np.asarray(leaf, np.float64), compute_uv=False)[0]
    assert float(spectral(leaf)[1].clip_info.norm_before) == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize("name", ["l1", "l2", "rms", "lp"])
def test_norms_of_norms_beyond_the_largest_power_of_two_with_a_reciprocal(name):
    """XLA takes 1 / x for zero where x is above 2^126."""
    norm = norms.lp(3) if name == "lp" else getattr(norms, name)
    sizes = jnp.array([1.5e38, 2.5e37])
    whole = norm.accumulate(jnp.array([0.6, 0.1]), None)
    expected = float(norm.finish(whole, 2)) * 2.5e38
    for combine in (norm.combine, jax.jit(norm.combine)):
        found = float(combine(sizes, jnp.ones(2)))
        assert found == pytest.approx(expected, rel=1e-5)


def test_spectral_norm_approaches_from_below():
    leaf = random_tree(8, (30, 30))
    largest = np.linalg.svd(np.asarray(leaf, np.float64), compute_uv=False)[0]
    found = [float(spectral(leaf, n)[1].clip_info.norm_before) for n in (1, 4, 16, 64)]
    assert all(a <= b * (1 + 1e-6) for a, b in zip(found, found[1:], strict=False))
    assert found[-1] <= largest * (1 + 1e-5)
    assert found[2] >= 0.95 * largest


def test_spectral_norm_of_zero_and_nothing():
    def length(leaf):
        return spectral(leaf)[1].clip_info.norm_before

    assert float(length(jnp.zeros((3, 2)))) == 0
    np.testing.assert_array_equal(jax.grad(length)(jnp.zeros((3, 2))), np.zeros((3, 2)))
    assert float(length(jnp.zeros((0, 2)))) == 0
    assert np.isnan(length(jnp.array([[1.0, jnp.nan]])))
    assert np.isinf(length(jnp.array([[1.0, jnp.inf]])))


def test_spectral_norm_of_complex_and_narrow_matrices():
    leaf = random_tree(9, (4, 3)).astype(jnp.complex64) * (0.6 + 0.8j)
    largest = np.linalg.svd(np.asarray(leaf), compute_uv=False)[0]
    assert float(spectral(leaf)[1].clip_info.norm_before) == pytest.approx(largest, rel=1e-5)
    narrow = random_tree(9, (4, 3), jnp.bfloat16)
    largest = np.linalg.svd(np.asarray(narrow, np.float64), compute_uv=False)[0]
    assert float(spectral(narrow)[1].clip_info.norm_before) == pytest.approx(largest, rel=1e-5)
