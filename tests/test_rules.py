"""Rules as functions of one norm and one threshold, over eighteen decades."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import eps

from clipjax import rules

# By their names: the rule, its formula, and whether it is contractive and bounded.
RULES = {
    "hard": (rules.hard, lambda n, c: np.minimum(n, c), True, True),
    "hard(epsilon=1e-06)": (
        *(rules.Hard(epsilon=1e-6), lambda n, c: n * np.minimum(1, c / (n + 1e-6))),
        *(True, True),
    ),
    "soft": (rules.soft, lambda n, c: n * c / (n + c), True, True),
    "tanh": (rules.tanh, lambda n, c: c * np.tanh(n / c), True, True),
    "sqrt": (rules.sqrt, lambda n, c: n / np.sqrt(1 + (n / c) ** 2), True, True),
    "normalise": (rules.normalise, lambda n, c: c + 0 * n, False, True),
    "band": (rules.band(0.5), lambda n, c: np.clip(n, 0.5 * c, c), False, True),
    "skip": (rules.skip, lambda n, c: np.where(n <= c, n, 0), True, True),
    "floored(fraction=0.01)": (
        *(rules.floored(0.01), lambda n, c: np.maximum(np.minimum(n, c), 0.01 * n)),
        *(True, False),
    ),
    "automatic": (rules.automatic(), lambda n, c: c * n / (n + 0.01), False, True),
    "psac": (rules.psac(), lambda n, c: c * n / (n + 0.01 / (n + 0.01)), False, True),
    "global_adapt(multiple=50)": (
        *(rules.global_adapt(50.0), lambda n, c: np.where(n <= 50 * c, n / 50, c)),
        *(True, True),
    ),
}
every_rule = pytest.mark.parametrize("name", RULES)

# Every pair of norm and threshold from 1e-9 to 1e9, the equal ones among them.
DECADES = 10.0 ** np.arange(-9, 10)
NORMS, THRESHOLDS = (
    np.float32(grid.reshape(-1)) for grid in np.meshgrid(DECADES, DECADES)
)


def lengths_of(rule, norms, thresholds, method="lengths"):
    """Asks a rule, at one shape for all tests, so that operations compile once."""
    norms, thresholds = np.broadcast_arrays(np.float32(norms), np.float32(thresholds))
    padded = [np.resize(array, 400) for array in (norms, thresholds)]
    found = getattr(rule, method)(*map(jnp.asarray, padded))
    return np.asarray(found)[: norms.size]


@every_rule
def test_formula_tags_and_factor(name):
    rule, exact, contractive, bounded = RULES[name]
    lengths = lengths_of(rule, NORMS, THRESHOLDS)
    expected = exact(np.float64(NORMS), np.float64(THRESHOLDS))
    np.testing.assert_allclose(lengths, expected, rtol=8 * eps(jnp.float32))
    # Not one ulp is allowed for: these are the lengths before any scaling.
    assert np.all(lengths >= 0)
    assert contractive == rule.contractive == bool(np.all(lengths <= NORMS))
    assert bounded == rule.bounded == bool(np.all(lengths <= THRESHOLDS))
    factors = lengths_of(rule, NORMS, THRESHOLDS, "factor")
    np.testing.assert_allclose(factors * NORMS, lengths, rtol=2 * eps(jnp.float32))
    np.testing.assert_array_equal(lengths_of(rule, [0], [1], "factor"), [1])
    assert repr(rule) == name


@every_rule
def test_edges(name):
    """Zero norms, thresholds of zero and infinity, and traced ones that are wrong."""
    rule = RULES[name][0]
    lengths = lengths_of(rule, [0, 0, 0, 3, 3], [0, 1, np.inf, 0, np.inf])
    np.testing.assert_array_equal(lengths, [0, 0, 0, 0, 3])
    factors = lengths_of(rule, [3, 3, 3], [-1, np.nan, -np.inf], "factor")
    np.testing.assert_array_equal(factors, [0, 0, 0])


@every_rule
def test_lengths_do_not_leave_the_range_of_float32(name):
    rule = RULES[name][0]
    extremes = np.array([1.2e-38, 1e-30, 1.0, 1e30, 3.3e38], np.float32)
    norms, limits = (grid.ravel() for grid in np.meshgrid(extremes, extremes))
    found = lengths_of(rule, norms, limits)
    assert np.all(np.isfinite(found))
    assert not rule.contractive or np.all(found <= norms)
    assert not rule.bounded or np.all(found <= limits)


@pytest.mark.parametrize("rule", [rules.hard, rules.soft, rules.tanh, rules.sqrt])
def test_what_is_far_below_the_threshold_is_kept(rule):
    shares = np.array([1e-37, 1e-20, 1e-7], np.float32)
    limits = np.repeat(np.float32([1.0, 1e37, 3e38]), 3)
    norms = limits * np.tile(shares, 3)
    found = lengths_of(rule, norms, limits)
    np.testing.assert_allclose(found, norms, rtol=1e-6)


def test_soft_lies_within_a_factor_two_of_hard():
    # ½ min(1, c/n) ≤ c/(n + c) ≤ min(1, c/n).
    soft = lengths_of(rules.soft, NORMS, THRESHOLDS, "factor")
    hard = lengths_of(rules.hard, NORMS, THRESHOLDS, "factor")
    slack = 1 + 4 * eps(jnp.float32)
    assert np.all(soft <= hard)
    assert np.all(hard <= 2 * soft * slack)
    np.testing.assert_array_equal(soft[NORMS == THRESHOLDS], 0.5)


@pytest.mark.parametrize("name", [n for n in RULES if n != "skip"])
def test_length_grows_with_the_norm(name):
    lengths = lengths_of(RULES[name][0], 10.0 ** np.linspace(-9, 9, 400), 1)
    assert np.all(np.diff(lengths) >= -2 * eps(jnp.float32) * lengths[1:])


@pytest.mark.parametrize("rule", [rules.soft, rules.tanh, rules.sqrt])
def test_smooth_rules_are_smooth_at_the_threshold(rule):
    with jax.enable_x64(True):
        points = jnp.array([1 - 1e-6, 1 + 1e-6, 1e-9])
        ones = jnp.ones_like(points)
        total = lambda norms: jnp.sum(rule.lengths(norms, ones))  # noqa: E731
        below, above, origin = jax.grad(total)(points).tolist()
    assert below == pytest.approx(above, abs=1e-5)
    assert origin == pytest.approx(1, abs=1e-6)


def test_arguments_of_rules():
    assert rules.normalize is rules.normalise
    assert repr(rules.band(0.25)) == "band(lower=0.25)"
    assert rules.band(0.25) == rules.band(0.25) != rules.band(0.5)
    for make, argument in [
        (rules.band, "lower"),
        (rules.floored, "fraction"),
        (rules.Hard, "epsilon"),
        (rules.automatic, "stability"),
        (rules.psac, "r"),
        (rules.global_adapt, "multiple"),
    ]:
        for wrong, error in [("1", TypeError), (True, TypeError), (-0.1, ValueError)]:
            with pytest.raises(error, match=f"{argument} must be .*, got {wrong!r}"):
                make(wrong)
    with pytest.raises(ValueError, match="multiple must be a number of at least 1"):
        rules.global_adapt(0.5)
    with pytest.raises(ValueError, match="stability must be .*finite, got inf"):
        rules.automatic(np.inf)


def test_automatic_rules_in_numbers():
    """Worked out by hand: with r = 0.01, √r - r is 0.09, and 2√r - r is 0.19."""
    found = lengths_of(rules.psac(), [0.09, 1e-6], 2.0, "factor")
    np.testing.assert_allclose(found, [2 / 0.19, 2.0], rtol=1e-3)
    assert np.all(lengths_of(rules.psac(), [0.08, 0.1], 2.0, "factor") < found[0])
    found = lengths_of(rules.automatic(0.5), [0.5, 1e-6, 1e30], 2.0, "factor")
    np.testing.assert_allclose(found, [2.0, 4.0, 2e-30], rtol=1e-3)
    for rule in (rules.automatic(0.0), rules.psac(0)):
        lengths = lengths_of(rule, NORMS, THRESHOLDS)
        np.testing.assert_array_equal(lengths, THRESHOLDS)
