"""What one number of a Jacobian says about products of Jacobians, and what not."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clipjax
from clipjax.demos.probes import (
    attention_scaling,
    concatenation,
    costates,
    depthwise,
    euler,
    flow_jacobian,
    normalization_bounds,
    recurrent_gates,
    residual,
    spectral_radius,
)
from clipjax.diagnostics import jacobian_report

SMALL = {
    attention_scaling: {"seeds": 1, "pairs": 1000, "queries": 80},
    concatenation: {"seeds": 1, "width": 16},
    costates: {},
    depthwise: {"seeds": 1, "size": 4},
    euler: {},
    flow_jacobian: {"seeds": 2, "width": 4},
    normalization_bounds: {"seeds": 2, "size": 8},
    recurrent_gates: {"seeds": 1, "hidden": 8, "steps": 60},
    residual: {"seeds": 1, "layers": 300, "width": 8},
    spectral_radius: {"steps": 100},
}


@functools.cache
def found(probe):
    return probe.measure(**SMALL[probe])


def test_norm_above_one_bounds_growth_and_radius_decides_it():
    """C19, B68: a largest singular value above 1 is necessary, not sufficient.

    The growth per step tends to the spectral radius, after a transient.
    """
    measured = found(spectral_radius)
    name = spectral_radius.NON_NORMAL
    norms = np.exp(measured.log_norms[name])
    matrix = np.array(spectral_radius.MATRICES[name])
    for power in (1, 3, 10, 50):
        exact = np.linalg.norm(np.linalg.matrix_power(matrix, power), 2)
        assert norms[power - 1] == pytest.approx(exact, rel=1e-4)
    assert measured.singular[name] == pytest.approx(10.025, rel=1e-3)
    assert norms[0] > 10 and norms[49] < 1e-12
    growth = measured.log_norms[name][-1] - measured.log_norms[name][-2]
    assert growth == pytest.approx(np.log(0.5), abs=0.02)
    for each, bounds in measured.log_bounds.items():
        assert (measured.log_norms[each] <= bounds + 1e-4).all()
        # The derivative of tanh is at most 1.
        assert measured.tanh_log_norms[each][-1] < measured.log_norms[each][-1]


def test_norm_below_one_vanishes():
    """B68: a largest singular value below 1 makes every product vanish."""
    rotation = 0.9 * jnp.array([[0.0, -1.0], [1.0, 0.0]])
    report = clipjax.diagnostics.jacobian_product_report(
        lambda x, _: jnp.tanh(rotation @ x), jnp.ones(2), jnp.zeros(200)
    )
    assert report.log_norms[-1] < 200 * np.log(0.9) + 1e-3


def test_condition_number_does_not_explode():
    """B69: diag(1, 1e-6) has condition 1e6 and never grows; 2 I has 1 and doubles."""
    measured = found(spectral_radius)
    name = "diag(1, 1e-6)"
    assert measured.condition[name] == pytest.approx(1e6, rel=1e-3)
    np.testing.assert_allclose(measured.log_norms[name], 0, atol=1e-5)
    rotation = "1.1 × rotation"
    assert measured.condition[rotation] == pytest.approx(1, rel=1e-5)
    steps = np.arange(1, 101)
    np.testing.assert_allclose(
        measured.log_norms[rotation], steps * np.log(1.1), rtol=1e-4
    )


def test_euler_limit():
    """B70: Euler steps of a stable system diverge above h = -2 Re(λ) / |λ|²."""
    measured = found(euler)
    stiff = measured.radius["diag(-1, -100)"]
    sizes = list(measured.sizes)
    assert stiff[sizes.index(0.03)] == pytest.approx(2, rel=1e-4)
    assert stiff[sizes.index(0.019)] == pytest.approx(0.981, rel=1e-4)
    assert measured.theory == pytest.approx(
        {"diag(-1, -100)": 0.02, "oscillating": 2 / 101}
    )
    assert measured.limit == pytest.approx(measured.theory, rel=1e-4)


def test_costates_are_gradients():
    """B71: the costate recursion of optimal control equals `jax.grad`."""
    measured = found(costates)
    assert measured.difference < 1e-13
    assert measured.gradients.dtype == np.float64
    assert np.linalg.norm(measured.costates[0]) > 0.1
    np.testing.assert_allclose(measured.control_gradients, measured.controls, 1e-10)


@pytest.mark.parametrize("decay, steps", [(0.01, 150), (1.5, 4)])
def test_weight_decay_shrinks_the_radius_of_any_matrix(decay, steps):
    """B72, C19: L2 multiplies the radius by |1 - ηλ| a step; no symmetry is needed.

    It does so where the loss has no gradient, for any ηλ below 2.
    """
    weights = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    assert np.abs(weights - weights.T).max() > 1
    optimizer = optax.chain(
        clipjax.clip_by_global_norm(1.0), optax.add_decayed_weights(decay), optax.sgd(1)
    )

    @jax.jit
    def train(weights):
        def step(carry, _):
            weights, state = carry
            grads = jnp.zeros_like(weights)
            updates, state = optimizer.update(grads, state, weights)
            return (optax.apply_updates(weights, updates), state), None

        start = weights, optimizer.init(weights)
        return jax.lax.scan(step, start, None, steps)[0][0]

    def radius(matrix):
        return np.abs(np.linalg.eigvals(np.asarray(matrix, np.float64))).max()

    shrunk = radius(train(weights)) / radius(weights)
    assert shrunk == pytest.approx(abs(1 - decay) ** steps, rel=1e-3)


def test_gates_move_the_jacobian_to_the_identity():
    """B73: ‖J - I‖ falls with the gate bias; product of an exploding net is tamed."""
    measured = found(recurrent_gates)
    for distance in (measured.gru_distance, measured.lstm_distance):
        assert (np.diff(distance[0]) < 0).all()
        assert distance[0, -1] < 0.1
    assert measured.gru_distance[0, 0] > 1.5
    assert 0.5 < measured.gru_product[0, -1] < 3


def test_gate_jacobian_has_the_derivative_of_the_gate():
    """B73: diag(z) + diag((1 - z)(1 - c²)) W lacks diag((h - c) z (1 - z)) U."""
    random = np.random.default_rng(0)
    weights, gates = random.standard_normal((2, 8, 8)) / 8**0.5
    hidden = random.standard_normal(8)

    def step(hidden):
        gate = jax.nn.sigmoid(jnp.float32(gates) @ hidden)
        return gate * hidden + (1 - gate) * jnp.tanh(jnp.float32(weights) @ hidden)

    exact = np.asarray(jax.jit(jax.jacobian(step))(jnp.float32(hidden)))
    gate = 1 / (1 + np.exp(-gates @ hidden))
    candidate = np.tanh(weights @ hidden)
    short = np.diag(gate) + ((1 - gate) * (1 - candidate**2))[:, None] * weights
    rest = ((hidden - candidate) * gate * (1 - gate))[:, None] * gates
    np.testing.assert_allclose(exact, short + rest, atol=1e-5)
    assert np.linalg.norm(exact - short, 2) > 0.1


def test_scaled_residual_is_bounded_and_can_vanish():
    """B74: ‖J‖ <= 1 where α‖f'‖ <= β; then it may vanish, which α = 1/L does not."""
    measured = found(residual)
    ends = {name: values[0, -1] for name, values in measured.log_norms.items()}
    assert measured.largest_step["α = β = 1/2"] <= 1 + 1e-5
    assert measured.largest_step["α = β = 1/L"] <= 1 + 1e-5
    assert measured.largest_step["x + f(x)"] > 1.3
    assert ends["α = β = 1/2"] < -100
    assert ends["x + f(x)"] > 5
    assert ends["α = 1/L, β = 0"] == pytest.approx(0, abs=0.3)
    assert ends["α = β = 1/L"] == pytest.approx(-1, abs=0.3)
    assert measured.short["α = β = 1/2"][0] < -60


def test_normalization_bound_is_no_constant():
    """C16, B76, B77: the norm is max|gain| / √(σ² + ε): up to max|gain| / √ε."""
    measured = found(normalization_bounds)
    for norms in (measured.layer, measured.batch):
        np.testing.assert_allclose(
            norms, np.broadcast_to(measured.bound, norms.shape), rtol=2e-3
        )
        # No absolute constant: 1.5 / √1e-5 = 474 for small σ, more with the gain.
        assert norms[0, 1, 0] == pytest.approx(474, rel=2e-3)
        assert norms[0, 2, 0] == pytest.approx(948, rel=2e-3)
    # One gain per feature: reached by batch norm, a bound for layer norm.
    np.testing.assert_allclose(measured.batch_ratio, 1, rtol=2e-3)
    assert (measured.layer_ratio <= 1 + 2e-3).all()
    assert measured.layer_ratio.min() > 0.5


def test_attention_logits():
    """B78: logits have variance d and derivatives of norm √d; scaled ones 1."""
    measured = found(attention_scaling)
    wide = measured.widths.astype(float)
    np.testing.assert_allclose(measured.variance[:, 0], wide, rtol=0.15)
    np.testing.assert_allclose(measured.scaled_variance, 1, rtol=0.15)
    np.testing.assert_allclose(measured.gradient[1:, 0], wide[1:] ** 0.5, rtol=0.02)


def test_attention_saturates_and_explodes():
    """B79: without 1/√d most derivatives of the output vanish and some are large."""
    measured = found(attention_scaling)
    assert measured.output_median[-1, 0] < 0.02
    assert measured.output_largest[-1, 0] > 10
    assert 0.1 < measured.scaled_output_median[-1, 0] < 0.6
    assert measured.scaled_output_largest[-1, 0] < 3


def test_concatenation_against_sum():
    """C17, B80: √k against k only for one branch used k times.

    For independent branches the sum grows like √k, too; with respect to stacked inputs
    the sum is the larger one, and a fan-in-scaled next layer takes the growth away.
    """
    measured = found(concatenation)
    counts = measured.counts
    np.testing.assert_allclose(measured.same_sum[0], counts, rtol=1e-4)
    np.testing.assert_allclose(measured.same_concat[0], counts**0.5, rtol=1e-4)
    np.testing.assert_allclose(measured.random_sum[0], counts**0.5, rtol=0.25)
    assert measured.random_sum[0, -1] < 0.3 * measured.same_sum[0, -1]
    assert (measured.random_concat[0] <= counts**0.5).all()
    np.testing.assert_allclose(measured.stacked_sum[0], counts**0.5, rtol=1e-4)
    np.testing.assert_allclose(measured.stacked_concat[0], 1, rtol=1e-4)
    np.testing.assert_allclose(measured.next_layer[0], 1.8, rtol=0.25)


def test_gains_of_a_convolution_are_those_of_its_matrix():
    kernel = np.random.default_rng(0).standard_normal((3, 2, 3, 3))

    def convolve(image):
        padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1)), mode="wrap")
        return jax.lax.conv(padded[None], jnp.float32(kernel), (1, 1), "VALID")[0]

    norm, rms = depthwise.gains(kernel, 4)
    matrix = np.asarray(jax.jit(jax.jacobian(convolve))(jnp.zeros((2, 4, 4))))
    matrix = matrix.reshape(48, 32)
    report = jacobian_report(lambda x: jnp.asarray(matrix) @ x, jnp.zeros(32))
    assert norm == pytest.approx(float(report.spectral_norm), rel=1e-5)
    assert rms == pytest.approx(np.linalg.norm(matrix) / 32**0.5, rel=1e-5)


def test_depthwise_separable_gain():
    """C18, B81: √2 is the ratio of RMS gains; that of spectral norms is above 2."""
    random = np.random.default_rng(0)
    pairs = [
        [depthwise.gains(kernel, 8) for kernel in depthwise.kernels(64, random)]
        for _ in range(3)
    ]
    (norm, rms), (separable_norm, separable_rms) = np.moveaxis(pairs, 0, -1)
    assert (separable_rms / rms).mean() == pytest.approx(2**0.5, rel=0.05)
    assert (separable_norm / norm).min() > 1.8
    assert norm.mean() == pytest.approx(2 * 2**0.5, rel=0.05)


def test_volume_says_nothing_about_norms():
    """B82: flows with determinant 1 multiply gradients by more than 1."""
    measured = found(flow_jacobian)
    assert measured.stretch_determinant == pytest.approx(1)
    assert measured.stretch_norm == pytest.approx(100)
    np.testing.assert_allclose(measured.log_determinant, 0, atol=1e-4)
    assert (measured.log_norms[:, -1] > 1).all()


@pytest.mark.parametrize("probe", SMALL, ids=lambda probe: probe.__name__)
def test_report(probe):
    report = probe.report(found(probe))
    cells = [cell for table in report.tables for row in table.rows for cell in row]
    texts = " ".join([*cells, *report.findings])
    assert cells and not re.search(r"\bnan\b", texts)
    assert report.figure.axes[0].get_lines()


@pytest.mark.parametrize(
    "probe, arguments, said",
    [
        (attention_scaling, {"queries": 0}, "queries"),
        (concatenation, {"width": 1.5}, "width"),
        (costates, {"gain": -1.0}, "gain"),
        (depthwise, {"size": 2}, "size"),
        (euler, {"steps": 0}, "steps"),
        (flow_jacobian, {"layers": 0}, "layers"),
        (normalization_bounds, {"size": 2}, "size"),
        (recurrent_gates, {"gain": 0.0}, "gain"),
        (residual, {"layers": True}, "layers"),
        (spectral_radius, {"steps": 49}, "steps"),
    ],
)
def test_mistakes_name_argument_and_value(probe, arguments, said):
    ((_, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{said} must be .*{value!r}"):
        probe.measure(**arguments)
