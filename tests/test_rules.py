"""Rules as functions of one norm and one threshold, over eighteen decades."""

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import eps

from clipjax import rules

# Every pair of norm and threshold from 1e-9 to 1e9, the equal ones among them.
DECADES = 10.0 ** np.arange(-9, 10)
NORMS, THRESHOLDS = (
    jnp.asarray(grid.reshape(-1), jnp.float32) for grid in np.meshgrid(DECADES, DECADES)
)
EXACT = {
    "hard": lambda n, c: np.minimum(n, c),
    "hard_epsilon": lambda n, c: n * np.minimum(1, c / (n + 1e-6)),
    "soft": lambda n, c: n * c / (n + c),
    "tanh": lambda n, c: c * np.tanh(n / c),
    "sqrt": lambda n, c: n / np.sqrt(1 + (n / c) ** 2),
    "normalise": lambda n, c: c + 0 * n,
    "band": lambda n, c: np.clip(n, 0.5 * c, c),
    "skip": lambda n, c: np.where(n <= c, n, 0),
    "floored": lambda n, c: np.maximum(np.minimum(n, c), 0.01 * n),
}
every_rule = pytest.mark.parametrize("name", catalogue.RULES)


@every_rule
def test_formula(name):
    rule = catalogue.RULES[name]()
    found = jax.jit(lambda n, c: rules.lengths(rule, n, c))(NORMS, THRESHOLDS)
    exact = EXACT[name](np.float64(NORMS), np.float64(THRESHOLDS))
    np.testing.assert_allclose(found, exact, rtol=8 * eps(jnp.float32))


@every_rule
def test_tags(name):
    rule = catalogue.RULES[name]()
    lengths = rules.lengths(rule, NORMS, THRESHOLDS)
    assert np.all(lengths >= 0)
    # Not one ulp is allowed for: these are the lengths before any scaling.
    assert rule.contractive == bool(np.all(lengths <= NORMS))
    assert rule.bounded == bool(np.all(lengths <= THRESHOLDS))


@every_rule
def test_factor_is_the_ratio(name):
    rule = catalogue.RULES[name]()
    lengths = rules.lengths(rule, NORMS, THRESHOLDS)
    factors = rule.factor(NORMS, THRESHOLDS)
    np.testing.assert_allclose(factors * NORMS, lengths, rtol=2 * eps(jnp.float32))
    assert float(rule.factor(0.0, 1.0)) == 1


@every_rule
def test_special_values(name):
    rule = catalogue.RULES[name]()

    def length(norm, threshold):
        norm, threshold = jnp.float32(norm), jnp.float32(threshold)
        return float(rules.lengths(rule, norm, threshold))

    for threshold in (0.0, 1.0, np.inf, -1.0, np.nan):
        assert length(0, threshold) == 0
    assert length(3.0, 0) == length(3.0, -1) == length(3.0, np.nan) == 0
    assert length(3.0, np.inf) == 3.0
    assert np.isnan(length(np.inf, 1.0)) and np.isnan(length(np.nan, 1.0))


@pytest.mark.parametrize("rule", [rules.hard, rules.soft, rules.tanh, rules.sqrt])
@pytest.mark.parametrize("threshold", [1.0, 1e37, 3e38])
def test_what_is_far_below_the_threshold_is_kept(rule, threshold):
    norms = np.float32(threshold) * np.array([1e-37, 1e-20, 1e-7], np.float32)
    found = rules.lengths(rule, jnp.asarray(norms), jnp.float32(threshold))
    np.testing.assert_allclose(found, norms, rtol=1e-6)


@every_rule
def test_lengths_do_not_leave_the_range_of_float32(name):
    rule = catalogue.RULES[name]()
    extremes = np.array([1.2e-38, 1e-30, 1.0, 1e30, 3.3e38], np.float32)
    grids = np.meshgrid(extremes, extremes)
    norms, thresholds = (jnp.asarray(grid.ravel()) for grid in grids)
    found = rules.lengths(rule, norms, thresholds)
    assert np.all(np.isfinite(found))
    if rule.contractive:
        assert np.all(found <= norms)
    if rule.bounded:
        assert np.all(found <= thresholds)


def test_soft_lies_within_a_factor_two_of_hard():
    # ½ min(1, c/n) ≤ c/(n + c) ≤ min(1, c/n).
    soft = rules.soft.factor(NORMS, THRESHOLDS)
    hard = rules.hard.factor(NORMS, THRESHOLDS)
    slack = 1 + 4 * eps(jnp.float32)
    assert np.all(soft <= hard)
    assert np.all(hard <= 2 * soft * slack)
    equal = NORMS == THRESHOLDS
    np.testing.assert_array_equal(soft[equal], 0.5)


@pytest.mark.parametrize("name", ["hard", "soft", "tanh", "sqrt", "normalise", "band"])
def test_length_grows_with_the_norm(name):
    rule = catalogue.RULES[name]()
    norms = jnp.asarray(10.0 ** np.linspace(-9, 9, 400), jnp.float32)
    lengths = np.asarray(rules.lengths(rule, norms, jnp.ones_like(norms)))
    assert np.all(np.diff(lengths) >= -2 * eps(jnp.float32) * lengths[1:])


@pytest.mark.parametrize("name", ["soft", "tanh", "sqrt"])
def test_smooth_rules_are_smooth_at_the_threshold(name):
    rule = catalogue.RULES[name]()
    with jax.enable_x64(True):
        slope = jax.grad(lambda n: rules.lengths(rule, n, jnp.ones_like(n)))
        sides = slope(jnp.float64(1 - 1e-6)), slope(jnp.float64(1 + 1e-6))
        assert float(sides[0]) == pytest.approx(float(sides[1]), abs=1e-5)
        assert float(slope(jnp.float64(1e-9))) == pytest.approx(1, abs=1e-6)


def test_names():
    found = {name: repr(make()) for name, make in catalogue.RULES.items()}
    assert found == {
        "hard": "hard",
        "hard_epsilon": "hard(epsilon=1e-06)",
        "soft": "soft",
        "tanh": "tanh",
        "sqrt": "sqrt",
        "normalise": "normalise",
        "band": "band",
        "skip": "skip",
        "floored": "floored(fraction=0.01)",
    }
    assert repr(rules.band(0.25)) == "band(lower=0.25)"
