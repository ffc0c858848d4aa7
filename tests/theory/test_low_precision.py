"""Loss scales, and norms in 16 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clipjax
from clipjax.demos.probes import low_precision


@pytest.fixture(scope="module")
def measured():
    with jax.numpy_dtype_promotion("standard"):
        return low_precision.measure(seeds=4)


def test_gradients_are_unscaled_before_the_clip(measured):
    """B66: unscale, then clip; the other order clips the loss scale, not the step."""
    at = list(measured.scales).index(2.0**16)
    np.testing.assert_allclose(measured.right[at], [0.03, 0.04], rtol=1e-6)
    wrong = np.array([0.6, 0.8]) / 2**16
    np.testing.assert_allclose(measured.wrong[at], wrong, rtol=1e-6)
    # Powers of two change no bit of the right step.
    assert len(np.unique(measured.right, axis=0)) == 1
    assert (np.diff(np.linalg.norm(measured.wrong, axis=1)) <= 0).all()


def test_norms_of_float16_overflow_and_underflow(measured):
    """C27: sums of squares in float16 overflow and underflow; add in float32."""
    assert np.isinf(measured.optax_norms[:3]).all() and measured.optax_norms[3] == 0
    np.testing.assert_allclose(measured.norms, measured.true_norms, rtol=1e-5)
    np.testing.assert_array_equal(measured.optax_steps[:3], 0)
    np.testing.assert_allclose(measured.steps[:3], 1, rtol=1e-3)


def test_norms_of_bfloat16_have_three_digits(measured):
    """B66: a norm in bfloat16 is off by up to 0.4 %, and so is the clip's factor."""
    assert 1e-3 < measured.optax_errors.max() < 1e-2
    assert measured.errors.max() < 1e-6


def test_a_gradient_that_is_not_finite_is_skipped(measured):
    """C27: a norm that is not finite means to skip the step, not a factor of 0."""
    assert np.isnan(measured.infinite_optax[0]) and measured.infinite_optax[1] == 0
    np.testing.assert_array_equal(measured.infinite, 0)
    assert measured.skipped == 1
    # With factor 0 the parameters stand still, but momentum decays as after a step.
    momentum = optax.trace(0.9)
    grads = jnp.ones(4, jnp.float32)
    bad = jnp.array([jnp.inf, 1, 1, 1], jnp.float32)
    zeroed = jax.tree.map(jnp.zeros_like, bad)
    _, first = momentum.update(grads, momentum.init(grads))
    _, decayed = momentum.update(zeroed, first)
    np.testing.assert_allclose(decayed.trace, 0.9, rtol=1e-6)
    chain = optax.chain(clipjax.clip_by_global_norm(10.0), momentum)
    optimizer = clipjax.skip_nonfinite(chain)
    update = jax.jit(optimizer.update)
    _, state = update(grads, optimizer.init(grads))
    updates, state = update(bad, state)
    np.testing.assert_array_equal(updates, 0)
    np.testing.assert_array_equal(optax.tree.get(state, "trace"), 1)


def test_the_report_counts_what_is_wrong(measured):
    report = low_precision.report(measured)
    assert "off by more than 1 % are 4 of 4" in report.findings[1]
    assert "and 0 of clipjax" in report.findings[1]
    assert {row[-1] for row in report.tables[0].rows} == {"agrees"}
