"""Properties over random trees and eighteen decades of norm, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same_bits, cosine, eps, flat, hard_clip, norm, random_tree

import clipjax
from clipjax import granularity, norms, rules

# Few shapes, so that few programs are compiled.
SHAPES = [
    {"a": (3,), "b": (2, 3)},
    [(5,), ()],
    {"a": {"b": (1,), "c": (2, 2)}},
]
trees = st.builds(
    random_tree,
    st.integers(0, 10_000),
    st.sampled_from(SHAPES),
    st.sampled_from([jnp.float32, jnp.bfloat16]),
    st.floats(-9, 9).map(lambda exponent: 10.0**exponent),
)
wide_trees = st.builds(
    random_tree,
    st.integers(0, 10_000),
    st.sampled_from(SHAPES),
    size=st.floats(-9, 9).map(lambda exponent: 10.0**exponent),
)
thresholds = st.floats(-9, 9).map(lambda exponent: np.float32(10.0**exponent))
POWERS = {"l1": (norms.l1, 1), "l2": (norms.l2, 2), "linf": (norms.linf, np.inf)}
# How often a plain norm of so many entries is rounded, by half a unit at most:
# in every addition; half of each square and addition, and the root; not at all.
ROUNDINGS = {"l1": lambda n: n - 1, "l2": lambda n: n / 2 + 1, "linf": lambda n: 0}


def compiled(**parts):
    """Compiles a clip whose threshold is an argument."""

    @jax.jit
    def clip(grads, threshold):
        updates, state = clipjax.clip_by(threshold, **parts).update(grads, None)
        return updates, state.clip_info

    return clip


CLIPS = {name: compiled(norm=part) for name, (part, _) in POWERS.items()}
soft = compiled(rule=rules.soft)
per_leaf = compiled(granularity=granularity.leaf())
normalise = compiled(rule=rules.normalise)


def rounding(name, grads):
    """Bound the relative error of a clip in float32.

    Beside the norm, its inverse and the products of both with an entry are rounded.
    """
    return (3 + ROUNDINGS[name](flat(grads).size)) * eps(jnp.float32) / 2


def dtype_of(tree):
    return jax.tree.leaves(tree)[0].dtype


@pytest.mark.parametrize("name", POWERS)
@given(grads=trees, threshold=thresholds)
def test_hard_clip(name, grads, threshold):
    power = POWERS[name][1]
    updates, info = CLIPS[name](grads, threshold)
    length, ulp = norm(grads, power), eps(dtype_of(grads))
    assert float(info.norm_before) == pytest.approx(length, rel=1e-5)
    if float(info.norm_before) <= threshold:
        assert_same_bits(updates, grads)
        return
    # An entry of a narrower dtype is rounded once more.
    relative = rounding(name, grads)
    relative += ulp / 2 if ulp > eps(jnp.float32) else 0
    ratio = norm(updates, power) / float(threshold)
    assert 1 - relative <= ratio <= 1 + relative
    assert cosine(grads, updates) >= 1 - ulp
    for mine, exact in zip(
        jax.tree.leaves(updates),
        jax.tree.leaves(hard_clip(grads, float(threshold), power)),
        strict=True,
    ):
        found = np.asarray(mine, np.float64)
        # An entry may end up among the subnormal numbers, which are flushed.
        tiny = float(jnp.finfo(mine.dtype).tiny)
        np.testing.assert_allclose(found, exact, rtol=relative + ulp / 2, atol=tiny)


@given(grads=wide_trees, threshold=thresholds)
def test_a13_sandwich(grads, threshold):
    updates, info = soft(grads, threshold)
    hard = norm(hard_clip(grads, float(threshold)))
    # The rule rounds three times, too: n·c/(n + c).
    slack = 1 + rounding("l2", grads) + 1.5 * eps(jnp.float32)
    assert norm(updates) <= hard * slack
    assert hard <= 2 * norm(updates) * slack
    exact = norm(grads) * float(threshold) / (norm(grads) + float(threshold))
    assert norm(updates) == pytest.approx(exact, rel=1e-5)
    assert cosine(grads, updates) == pytest.approx(1, abs=2 * eps(jnp.float32))


@given(grads=wide_trees, threshold=thresholds)
def test_a17_norm_bound_of_a_clip_per_leaf(grads, threshold):
    updates, _ = per_leaf(grads, threshold)
    count = len(jax.tree.leaves(grads))
    bound = float(threshold) * count**0.5
    assert norm(updates) <= bound * (1 + rounding("l2", grads))
    for before, after in zip(
        jax.tree.leaves(grads), jax.tree.leaves(updates), strict=True
    ):
        expected = min(norm(before), float(threshold))
        assert norm(after) == pytest.approx(expected, rel=1e-5)
    if all(norm(leaf) >= threshold for leaf in jax.tree.leaves(grads)):
        assert norm(updates) == pytest.approx(bound, rel=1e-5)


@given(
    seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)),
    sizes=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    threshold=st.floats(-2, 2),
)
def test_a18_projection_is_non_expansive(seeds, sizes, threshold):
    one, other = (
        random_tree(seed, SHAPES[0], size=10.0**size)
        for seed, size in zip(seeds, sizes, strict=True)
    )
    threshold = np.float32(10.0**threshold)
    near, far = (flat(CLIPS["l2"](tree, threshold)[0]) for tree in (one, other))
    before = np.linalg.norm(flat(one) - flat(other))
    error = rounding("l2", one) * float(threshold)
    assert np.linalg.norm(near - far) <= before + 2 * error
    # The nearest point of the ball: the residual points away from it.
    residual = flat(one) - near
    largest = np.linalg.norm(residual)
    assert residual @ (far - near) <= largest * 2 * error


@given(grads=wide_trees, threshold=thresholds)
def test_clipping_twice_is_clipping_once(grads, threshold):
    once, _ = CLIPS["l2"](grads, threshold)
    twice, _ = CLIPS["l2"](once, threshold)
    # The first clip may leave a norm above the threshold by its rounding; the second
    # shortens it by that, and by a rounding of its own.
    rtol = 2 * rounding("l2", grads)
    np.testing.assert_allclose(flat(twice), flat(once), rtol=rtol)


@given(grads=wide_trees, threshold=thresholds, exponent=st.integers(-20, 20))
def test_scaling_by_a_power_of_two_commutes(grads, threshold, exponent):
    scale = np.float32(2.0**exponent)
    updates, _ = CLIPS["linf"](grads, threshold)
    scaled = jax.tree.map(lambda leaf: leaf * scale, grads)
    found, _ = CLIPS["linf"](scaled, threshold * scale)
    assert_same_bits(found, jax.tree.map(lambda leaf: leaf * scale, updates))


@given(grads=wide_trees, threshold=thresholds)
def test_normalise_gives_the_norm_asked_for(grads, threshold):
    updates, info = normalise(grads, threshold)
    assert norm(updates) == pytest.approx(float(threshold), rel=1e-5)
    assert float(info.norm_after) == threshold
    assert cosine(grads, updates) == pytest.approx(1, abs=2 * eps(jnp.float32))


@given(
    grads=st.lists(
        st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=4, max_size=4
    ),
    threshold=st.floats(0, 2.0**127, width=32),
)
def test_any_four_numbers(grads, threshold):
    # Whatever the bits, there is never a sign flip, and never a silent NaN.
    grads = jnp.asarray(np.array(grads, np.float32))
    updates, info = CLIPS["l2"](grads, np.float32(threshold))
    measurable = bool(np.all(np.isfinite(grads))) and bool(
        np.isfinite(info.norm_before)
    )
    assert int(info.nonfinite_steps) == (not measurable)
    if not measurable:
        assert np.all(np.isnan(updates))
        return
    assert np.all(np.asarray(updates) * np.sign(grads) >= 0)
    assert np.all(np.abs(updates) <= np.abs(grads))
    smallest = float(np.finfo("f4").tiny)
    assert norm(updates) <= threshold * (1 + 4 * eps(jnp.float32)) + 4 * smallest
