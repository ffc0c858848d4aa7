"""Clips of singular values against NumPy's SVD in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_same_bits, eps, random_tree, wide
from singular_values import (
    MAPS,
    WAYS,
    compiled,
    expected,
    leaf_of,
    sigma,
    tree_of,
)

from clipjax import guards, rules
from clipjax.spectral import SVD, NewtonSchulz, PowerIteration, clip_singular_values

RATIOS = [1e-2, 1.0, 30.0, 1e3]
every_way = pytest.mark.parametrize("method", WAYS.values(), ids=WAYS)


@pytest.mark.parametrize("rule", ["hard", "tanh"])
def test_svd_against_numpy(rule):
    part, function = MAPS[rule]
    for ratio in RATIOS:
        grads = tree_of(0.7 * ratio)
        # A report of one rule tells for both.
        report = rule == "tanh"
        updates, info = compiled(SVD(), part, report=report)(grads, 0.7)
        for name, leaf in grads.items():
            error = np.abs(wide(updates[name]) - expected(leaf, function, 0.7)).max()
            assert error <= 0.7 * min(ratio, 1) * 2e-6 + 0.7 * ratio * 2e-7, name
            assert sigma(updates[name])[0] <= 0.7 * (1 + 1e-5), name
        if report:
            before, after = 0.7 * ratio, function(0.7 * ratio, 0.7)
            np.testing.assert_allclose(info.block_norms_before, before, rtol=1e-5)
            np.testing.assert_allclose(info.block_norms_after, after, rtol=1e-5)


def test_iteration_against_numpy():
    for ratio in (*RATIOS, 1e4):
        grads = tree_of(0.7 * ratio)
        updates, _ = compiled(NewtonSchulz(), report=False)(grads, 0.7)
        short = 2e-4 if ratio > 3e3 else 0
        bound = 0.7 * min(ratio, 1) * (2e-6 + short) + 0.7 * ratio * 2e-7
        for name, leaf in grads.items():
            want = expected(leaf, MAPS["sqrt"][1], 0.7)
            assert np.abs(wide(updates[name]) - want).max() <= bound, name
            assert sigma(updates[name])[0] <= 0.7 * (1 + 1e-5), name


def test_power_iteration_scales_each_leaf_by_its_largest_singular_value():
    method = PowerIteration(64)
    for ratio in RATIOS:
        grads = tree_of(0.7 * ratio)
        updates, _ = compiled(method, rules.hard, report=False)(grads, 0.7)
        for name, leaf in grads.items():
            want = wide(leaf) * min(1, 1 / ratio)
            np.testing.assert_allclose(updates[name], want, rtol=1e-4, err_msg=name)


def shortfall(ratio, iterations):
    """Gives the fraction by which the iteration leaves a singular value short."""
    low = 1 / np.sqrt(1 + ratio**2)
    for _ in range(iterations):
        a = np.sqrt(3 / (1 + max(low, 1e-3) + max(low, 1e-3) ** 2))
        low = min(a / 2 * low * (3 - (a * low) ** 2), 1)
    return 1 - low


# The 12 of the recipe are above.
@pytest.mark.parametrize("iterations", [1, 8])
def test_iteration_is_as_good_as_documented(iterations):
    left, _, right = np.linalg.svd(random_tree(0, (40, 30)), full_matrices=False)
    update = compiled(NewtonSchulz(iterations), report=False)
    for ratio in (1.0, 10.0, 100.0, 1e3):
        lengths = ratio * np.logspace(0, -4, 30)
        leaf = np.float32((left * lengths) @ right)
        updates, _ = update(leaf, 1.0)
        found = np.diag(left.T @ wide(updates) @ right.T)
        exact = MAPS["sqrt"][1](lengths, 1.0)
        bound = np.linalg.norm(lengths**2) ** 0.5
        rounding = 2e-6 * min(ratio, 1) + 1e-7 * ratio
        assert np.all(found <= exact + rounding)
        assert np.all(found >= exact * (1 - shortfall(bound, iterations)) - rounding)
    documented = {(10, 6): 2e-10, (100, 8): 1e-7, (1e3, 8): 0.1, (1e3, 10): 7e-6}
    for (ratio, steps), promised in documented.items():
        assert shortfall(ratio, steps) == pytest.approx(promised, rel=0.4)


@every_way
def test_rank_deficient_and_repeated(method):
    thin = random_tree(1, {"left": (6, 2), "right": (2, 4)}, size=9.0)
    product = np.asarray(thin["left"]) @ np.asarray(thin["right"])
    grads = [product, 5 * np.eye(6, 4, dtype="f4"), np.ones((6, 4), "f4")]
    updates, _ = compiled(method)(grads, 1.0)
    for leaf, update in zip(grads, updates, strict=True):
        want = expected(leaf, MAPS["sqrt"][1], 1.0)
        np.testing.assert_allclose(wide(update), want, atol=1e-5)


@every_way
def test_extreme_magnitudes(method):
    for size in (1e-30, 1e-12, 1e12, 1e30):
        leaves = [leaf_of((6, 4), size, seed=seed) for seed in range(3)]
        for ratio in (1e-3, 1.0, 1e8):
            updates, info = compiled(method)(leaves, size / ratio)
            assert float(info.norm_before) == pytest.approx(size, rel=0.05)
            for leaf, update in zip(leaves, updates, strict=True):
                assert sigma(update)[0] <= size / ratio * (1 + 1e-5)
                if ratio <= 1:
                    want = expected(wide(leaf) / size, MAPS["sqrt"][1], 1 / ratio)
                    np.testing.assert_allclose(wide(update) / size, want, atol=1e-5)


def test_narrow_dtypes_are_rounded_once():
    grads = {d: leaf_of((12, 8), 20.0, d) for d in ("bfloat16", "float16")}
    updates, _ = compiled(SVD(), report=False)(grads, 1.0)
    for dtype, leaf in grads.items():
        assert updates[dtype].dtype == dtype
        want = expected(leaf, MAPS["sqrt"][1], 1.0)
        half_ulp = eps(dtype) * np.maximum(np.abs(want), 1e-3) / 2
        assert np.all(np.abs(wide(updates[dtype]) - want) <= half_ulp + 1e-5)


@every_way
def test_float64_and_complex(method):
    with jax.enable_x64(True):
        real = np.asarray(random_tree(4, (6, 4), jnp.float64, size=30.0))
        grads = [real, real + 2j * real[::-1]]
        clip = clip_singular_values(0.5, method=method, rule=rules.sqrt)
        updates = jax.jit(lambda grads: clip.update(grads, None)[0])(grads)
        for leaf, update in zip(grads, updates, strict=True):
            assert update.dtype == leaf.dtype
            want = expected(leaf, MAPS["sqrt"][1], 0.5)
            np.testing.assert_allclose(update, want, atol=1e-12)


@pytest.mark.parametrize("guard", [guards.zero, guards.drop])
def test_guards(guard):
    leaf = leaf_of((4, 3), 5.0)
    bad, without = leaf.copy(), leaf.copy()
    bad[1, 2], without[1, 2] = np.nan, 0
    method = SVD() if guard == guards.zero else NewtonSchulz()
    clip = clip_singular_values(1.0, method=method, rule=rules.sqrt, nonfinite=guard)
    updates, state = jax.jit(clip.update)(bad, None)
    if guard == guards.zero:
        assert_same_bits(updates, np.zeros_like(leaf))
    else:
        want = expected(without, MAPS["sqrt"][1], 1.0)
        np.testing.assert_allclose(updates, want, atol=1e-5)
    assert int(state.clip_info.nonfinite_steps) == 1


def test_slices_of_a_stack_are_clipped_by_themselves():
    sizes = np.float32([1e-3, 1.0, 1e3])[:, None, None, None]
    leaf = np.asarray(random_tree(5, (3, 2, 4, 6))) * sizes
    stacked = {"blocks/*": 1}
    clip = clip_singular_values(
        0.5, method=NewtonSchulz(), rule=rules.sqrt, stacked=stacked
    )
    grads = {"blocks": {"w": leaf}, "head": 10 * leaf[1, 0]}
    updates, state = jax.jit(clip.update)(grads, clip.init(grads))
    slices = [*leaf, grads["head"]]
    clipped = [*np.asarray(updates["blocks"]["w"]), updates["head"]]
    for before, after in zip(slices, clipped, strict=True):
        want = expected(before, MAPS["sqrt"][1], 0.5)
        np.testing.assert_allclose(after, want, rtol=1e-4, atol=2e-5)
    names = [f"blocks/w[{i}]" for i in range(3)] + ["head"]
    assert clip.block_names(grads) == names
    largest = [sigma(part)[0] for part in slices]
    found = state.clip_info.block_norms_before
    np.testing.assert_allclose(found, largest, rtol=0.02)


def test_odd_stacks():
    shapes = [((3, 1), 1), ((3, 1), 2), ((1, 4, 3), 1)]
    shapes += [((2, 1, 3), 2), ((3,), 1)]
    grads = [random_tree(6, shape, size=9.0) for shape, _ in shapes]
    table = {str(i): stacked for i, (_, stacked) in enumerate(shapes)}
    clip = clip_singular_values(0.5, method=SVD(), stacked=table)
    updates, state = jax.jit(clip.update)(grads, None)
    lengths = []
    for (shape, stacked), leaf in zip(shapes, updates, strict=True):
        slices = np.asarray(leaf).reshape(-1, *shape[stacked:])
        lengths += [sigma(part)[0] for part in slices]
    assert max(lengths) <= 0.5 * (1 + 1e-5)
    np.testing.assert_allclose(state.clip_info.block_norms_after, lengths, rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "method"), [(rules.hard, SVD()), (rules.sqrt, NewtonSchulz())]
)
def test_derivatives(rule, method):
    """By differences, where nothing is clipped, and where singular values are equal."""
    shape, one, step = (4, 3), 1.0, 1e-6
    with jax.enable_x64(True):
        weights = random_tree(7, shape, jnp.float64)

        def total(leaf, threshold):
            clip = clip_singular_values(threshold, method=method, rule=rule)
            updates, _ = clip.update(leaf, None)
            return jnp.sum(updates * weights)

        slopes = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        value = lambda leaf, threshold: float(slopes(leaf, threshold)[0])  # noqa: E731
        leaf = np.asarray(random_tree(8, shape, jnp.float64, size=6.0))
        found, by_threshold = slopes(leaf, one)[1]
        for i in [(0, 0), (1, 2)]:
            shift = np.zeros(shape)
            shift[i] = step
            slope = (value(leaf + shift, one) - value(leaf - shift, one)) / (2 * step)
            assert float(found[i]) == pytest.approx(slope, abs=1e-8)
        slope = (value(leaf, one + step) - value(leaf, one - step)) / (2 * step)
        assert float(by_threshold) == pytest.approx(slope, abs=1e-8)
        for small in (np.zeros(shape), 1e-9 * leaf):
            found, _ = slopes(small, one)[1]
            np.testing.assert_allclose(found, weights, rtol=1e-6)
        if isinstance(method, NewtonSchulz):
            # Of s·I, the soft clip moves by f(s)/s times an antisymmetric change.
            found, _ = slopes(2.0 * np.eye(*shape), one)[1]
            turn = np.zeros(shape)
            turn[0, 1], turn[1, 0] = 1, -1
            slope = np.sum(wide(weights) * turn) / np.sqrt(1 + 4)
            assert float(np.sum(wide(found) * turn)) == pytest.approx(slope, rel=1e-5)


def test_the_svd_is_computed_once():
    clip = clip_singular_values(1.0, method=SVD())
    text = jax.jit(clip.update).lower(jnp.ones((6, 4)), None).compile().as_text()
    assert text.count('custom_call_target="lapack_sgesdd') == 1
