"""The probe of what one example adds, and does to the trained weights."""

import jax
import numpy as np
import pytest

from clipjax.demos.probes import influence, outliers
from clipjax.demos.tasks.robust import regression_data

EXAMPLES, STEPS = 10, 30


@pytest.fixture(scope="module")
def measured():
    return influence.measure(seeds=1, examples=EXAMPLES, steps=STEPS)


def lengths(weights, inputs, targets):
    return np.linalg.norm(inputs * (inputs @ weights - targets)[:, None], axis=1)


def fit(inputs, targets, threshold, kept):
    """Descend by the mean of the clipped gradients, in float64."""
    rate = 1 / np.linalg.eigvalsh(inputs.T @ inputs / EXAMPLES)[-1]
    weights = np.zeros(2)
    for _ in range(STEPS):
        factors = np.minimum(1, threshold / lengths(weights, inputs, targets))
        terms = (kept * factors * (inputs @ weights - targets))[:, None] * inputs
        weights = weights - rate * terms.sum(axis=0) / EXAMPLES
    return weights


@pytest.mark.parametrize("at", range(4), ids=influence.KINDS)
def test_it_measures_what_a_loop_over_examples_does(measured, at):
    kind = influence.KINDS[at]
    drawn = regression_data(jax.random.key(0), EXAMPLES, 2, kind=kind, count=1)
    truth, inputs, targets = (np.asarray(part, np.float64) for part in drawn)
    for row, threshold in enumerate(outliers.THRESHOLDS):
        whole = fit(inputs, targets, threshold, np.ones(EXAMPLES))
        first, last = (
            min(lengths(weights, inputs, targets).max(), threshold) / EXAMPLES
            for weights in (np.zeros(2), whole)
        )
        kept = 1 - np.eye(EXAMPLES)
        moved = [fit(inputs, targets, threshold, one) - whole for one in kept]
        changes = np.linalg.norm(moved, axis=1)
        found = [
            getattr(measured, name)[at, row, 0]
            for name in ("first", "last", "alone", "changes", "distances")
        ]
        distance = np.linalg.norm(whole - truth)
        expected = [first, last, last, changes.max(), distance]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5)
        is_wrong = kind != "none" and changes.argmax() == 0
        assert measured.is_wrong[at, row, 0] == is_wrong


def test_the_report_says_whether_the_bound_holds(measured):
    assert (measured.bounds == measured.thresholds / EXAMPLES).all()
    report = influence.report(measured)
    assert len(report.tables) == 4 and len(report.tables[0].rows) == 7
    assert report.tables[0].rows[1][:3] == ("C = 10", "1", "1")
    assert report.findings[0].startswith("No example adds more than")
    assert (measured.alone <= measured.bounds[:, None] * (1 + 1e-6)).all()
    beyond = measured._replace(alone=np.full_like(measured.alone, 3.0))
    assert (
        influence.report(beyond)
        .findings[0]
        .startswith("No example adds more than 1000")
    )
    with pytest.raises(ValueError, match="examples must be a whole number from 10"):
        influence.measure(examples=9)
