"""What one example adds to a step, and what it does to trained parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax.diagnostics import influence, leave_one_out

NORMS = jnp.float32([0.5, 2.0, 100.0, 0.0])


def test_contributions_are_what_clipped_grad_adds():
    inputs = jnp.float32(np.random.default_rng(0).standard_normal((8, 3)))
    inputs = inputs.at[5].mul(50)
    params = jnp.ones(3)

    def loss(params, inputs):
        return jnp.sum(jnp.tanh(inputs @ params) + 0.5 * (inputs @ params) ** 2)

    z = np.float64(inputs).sum(axis=1)  # the gradient is a multiple of the input
    slopes = 1 - np.tanh(z) ** 2 + z
    norms = jnp.float32(np.abs(slopes) * np.linalg.norm(np.float64(inputs), axis=1))
    found = influence(norms, 2.0, rule=clipjax.rules.soft)
    clip = clipjax.clipped_grad(
        loss,
        l2_clip_norm=2.0,
        rule=clipjax.rules.soft,
        normalize_by=8.0,
        method="vmap",
    )
    alone = jax.jit(jax.vmap(lambda x: clip(params, x[None])))(inputs)
    np.testing.assert_allclose(  # clipped_grad is up to 1e-4 shorter
        found.contributions, np.linalg.norm(alone, axis=1), rtol=2e-4
    )
    assert int(found.example) == 5
    assert float(found.largest) < float(found.bound) == 0.25


@pytest.mark.parametrize(
    "threshold, rule, expected, bound",
    [
        (1.0, clipjax.rules.hard, [0.125, 0.25, 0.25, 0], 0.25),
        (np.inf, clipjax.rules.hard, [0.125, 0.5, 25, 0], np.inf),
        (0.0, clipjax.rules.hard, [0, 0, 0, 0], 0),
        (1.0, clipjax.rules.normalise, [0.25, 0.25, 0.25, 0], 0.25),
        (1.0, clipjax.rules.floored(0.1), [0.125, 0.25, 2.5, 0], np.inf),
    ],
)
def test_known_contributions(threshold, rule, expected, bound):
    found = influence(NORMS, threshold, rule=rule)
    np.testing.assert_allclose(found.contributions, expected, rtol=1e-6)
    assert float(found.bound) == bound
    assert float(found.largest) == pytest.approx(max(expected))


def test_odd_inputs():
    measure = jax.jit(lambda norms, c: influence(norms, c, normalize_by=2.0))
    found = measure(NORMS.at[:2].set(jnp.array([jnp.nan, jnp.inf])), 3.0)
    assert found.contributions.tolist() == [0, 0, 1.5, 0]
    for invalid in (-1.0, jnp.nan):
        assert float(measure(NORMS, invalid).largest) == 0


@pytest.mark.parametrize(
    "error, message, arguments",
    [
        (ValueError, "threshold must be .* got -1", (NORMS, -1.0)),
        (ValueError, r"shape \[B\] with B at least 1, got \(0,\)", ([], 1.0)),
        (ValueError, r"shape \[B\] with B at least 1, got \(\)", (1.0, 1.0)),
        (TypeError, "example_norms must be an array of real", ("many", 1.0)),
    ],
)
def test_influence_refuses(error, message, arguments):
    with pytest.raises(error, match=message):
        influence(*arguments)


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_leave_one_out_of_least_squares(method):
    """θ₋ᵢ − θ = −(XᵀX)⁻¹ xᵢ rᵢ / (1 − hᵢ), with hᵢ = xᵢᵀ (XᵀX)⁻¹ xᵢ."""
    random = np.random.default_rng(1)
    inputs, noise = random.standard_normal((12, 2)), random.standard_normal(12)
    targets = inputs @ [1.0, -2.0] + 0.1 * noise
    targets[7] += 5
    inverse = np.linalg.inv(inputs.T @ inputs)
    residuals = targets - inputs @ (inverse @ inputs.T @ targets)
    leverages = np.einsum("ni,ij,nj->n", inputs, inverse, inputs)
    moves = (inputs @ inverse) * (residuals / (1 - leverages))[:, None]

    @jax.jit
    def train(weights):
        x, y = jnp.float32(inputs), jnp.float32(targets)
        weighted = x * weights[:, None]
        (a, b), (_, d) = weighted.T @ x
        right = weighted.T @ y
        solution = jnp.stack(
            [d * right[0] - b * right[1], a * right[1] - b * right[0]]
        ) / (a * d - b * b)
        return {"w": solution[:1], "v": solution[1:]}

    found = leave_one_out(train, 12, method=method)
    np.testing.assert_allclose(
        found.changes, np.linalg.norm(moves, axis=1), rtol=1e-3, atol=1e-5
    )
    assert int(found.example) == np.linalg.norm(moves, axis=1).argmax()
    assert found.largest == found.changes.max()


def test_leave_one_out_refuses():
    with pytest.raises(TypeError, match="train must be a function of the weights"):
        leave_one_out(3, 3)
    with pytest.raises(ValueError, match="count must be an integer of at least 1"):
        leave_one_out(lambda weights: weights, 0)
    with pytest.raises(ValueError, match="method must be one of 'vmap', 'loop'"):
        leave_one_out(lambda weights: weights, 2, method="map")
    with pytest.raises(ValueError, match="parameters of train must have a floating"):
        leave_one_out(lambda weights: 1, 2)
