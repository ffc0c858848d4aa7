"""Norms against NumPy in float64, at any magnitude, on any granularity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import norm, random_tree

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


@functools.partial(jax.jit, static_argnums=(2, 3))
def by_every_norm(tree, threshold, blocks, names):
    """Clips by these norms in one program, which compiles faster than one for each."""
    found = {}
    for name in names:
        part, _ = POWERS[name]
        clip = clipjax.clip_by(threshold, norm=part, granularity=blocks)
        updates, state = clip.update(tree, None)
        found[name] = updates, state.clip_info
    return found


def clipped(tree, name, blocks=WHOLE, threshold=np.inf, names=tuple(POWERS)):
    return by_every_norm(tree, np.float32(threshold), blocks, names)[name]


def measured(tree, name, blocks=WHOLE, **options):
    return clipped(tree, name, blocks, **options)[1]


@every_norm
def test_against_numpy(name):
    _, power = POWERS[name]
    tree = random_tree(0, SHAPES, size=3.0)
    info = measured(tree, name)
    assert float(info.norm_before) == pytest.approx(norm(tree, power), rel=1e-6)
    info = measured(tree, name, granularity.leaf())
    expected = [norm(tree[leaf], power) for leaf in sorted(tree)]
    np.testing.assert_allclose(info.block_norms_before, expected, rtol=1e-6)
    # The norm of the whole, put together from those of the leaves.
    assert float(info.norm_before) == pytest.approx(norm(tree, power), rel=1e-6)


@every_norm
def test_extreme_magnitudes_in_float32(name):
    _, power = POWERS[name]
    for size in (1e-44, 1e-38, 1e-30, 1e-25, 1e20, 1e30, 5e36):
        entries = {"a": [1.0, -2.0, 2.0], "b": [4.0]}
        tree = {key: np.float32(size * np.array(leaf)) for key, leaf in entries.items()}
        stored = norm(tree, power)
        updates, info = clipped(tree, name, threshold=size)
        # XLA flushes numbers below the smallest normal one to zero.
        smallest = float(np.finfo("f4").tiny)
        if size < smallest:
            expected = pytest.approx(stored, rel=1e-5, abs=smallest)
            assert float(info.norm_before) == expected
            continue
        assert float(info.norm_before) == pytest.approx(stored, rel=1e-5)
        assert norm(updates, power) == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_many_narrow_leaves(name):
    _, power = POWERS[name]
    tree = {f"{i:03}": jnp.full((), 1.1, jnp.bfloat16) for i in range(40)}
    found = measured(tree, name, names=("l1", "l2")).norm_before
    assert found.dtype == jnp.float32
    # In bfloat16 the sum of the last of them would be off by 2e-2.
    assert float(found) == pytest.approx(norm(tree, power), rel=1e-5)


@every_norm
def test_complex_entries_count_their_magnitude(name):
    _, power = POWERS[name]
    tree = {"z": jnp.array([3 + 4j, 1j, 0], jnp.complex64)}
    found = float(measured(tree, name).norm_before)
    assert found == pytest.approx(norm(tree, power), rel=1e-6)


@every_norm
def test_float64(name):
    _, power = POWERS[name]
    with jax.enable_x64(True):
        for size in (1.0, 1e-200, 1e200):
            tree = random_tree(0, SHAPES, jnp.float64, size)
            info = measured(tree, name)
            assert info.norm_before.dtype == jnp.float64
            assert float(info.norm_before) == pytest.approx(
                norm(tree, power), rel=1e-13
            )


@every_norm
def test_a_norm_is_infinite_wherever_the_bad_entry_is(name):
    for bad in (np.nan, np.inf, -np.inf):
        for leaf in SHAPES:
            tree = random_tree(0, SHAPES)
            tree[leaf] = np.full_like(tree[leaf], bad)
            updates, info = clipped(tree, name, threshold=1.0)
            assert info.norm_before == np.inf
            assert int(info.nonfinite_steps) == 1
            assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(updates))


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


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e33])
def test_norms_of_norms_in_arrays_and_in_scalars(size):
    """XLA takes the square of a constant out of the square of a scalar times it."""
    blocks = [np.float32([size, 2 * size]), np.float32(2 * size)]
    for name, found in combined(blocks).items():
        expected = norm(blocks, POWERS[name][1])
        assert float(found) == pytest.approx(expected, rel=1e-5), name


@jax.jit
def combined(blocks):
    return {name: part.combine(blocks, [1, 1]) for name, (part, _) in POWERS.items()}
