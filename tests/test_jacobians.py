"""Singular values and eigenvalues of Jacobians and of their products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.diagnostics import jacobian_product_report, jacobian_report


@jax.jit
def report_of(matrix):
    return jacobian_report(lambda x: matrix @ x, jnp.ones(matrix.shape[1]))


@pytest.mark.parametrize("shape", [(7, 7), (3, 7), (7, 3), (1, 1)], ids=str)
def test_numbers_are_numpys(shape):
    matrix = np.random.default_rng(0).standard_normal(shape)
    found = report_of(jnp.float32(matrix))
    values = np.linalg.svd(matrix, compute_uv=False)
    assert float(found.spectral_norm) == pytest.approx(values[0], rel=1e-5)
    assert float(found.condition_number) == pytest.approx(
        np.linalg.cond(matrix), rel=1e-4
    )
    if shape[0] == shape[1]:
        radius = np.abs(np.linalg.eigvals(matrix)).max()
        assert float(found.spectral_radius) == pytest.approx(radius, rel=1e-5)
    else:
        assert np.isnan(found.spectral_radius)


@pytest.mark.parametrize(
    "matrix, radius, condition",
    [
        ([[0.0, -2.0], [2.0, 0.0]], 2, 1),  # a rotation: complex eigenvalues
        ([[3.0, 0.0], [0.0, -3.0]], 3, 1),
        ([[0.0, 1e4], [0.0, 0.0]], 0, np.inf),  # nilpotent
        ([[1.0, 1.0], [0.0, 1.0]], 1, (3 + 5**0.5) / 2),  # a Jordan block
        ([[1.0, 0.0], [0.0, 1e-6]], 1, 1e6),
        ([[0.0, 0.0], [0.0, 0.0]], 0, np.inf),
        ([[1e25, 0.0], [1e25, 1e20]], 1e25, 2e5),
        ([[1e-25, 0.0], [0.0, 1e-25]], 1e-25, 1),
        ([[np.nan, 0.0], [0.0, 1.0]], np.nan, np.nan),
    ],
)
def test_matrices_with_known_answers(matrix, radius, condition):
    found = report_of(jnp.float32(matrix))
    assert float(found.spectral_radius) == pytest.approx(radius, rel=1e-5, nan_ok=True)
    assert float(found.condition_number) == pytest.approx(
        condition, rel=1e-2, nan_ok=True
    )


def test_trees_count_as_one_vector():
    x = {"h": jnp.ones(2, jnp.bfloat16), "c": jnp.ones((1, 2)), "step": jnp.int32(3)}

    def swap(x):
        return {"h": 2 * x["c"], "c": 0.5 * x["h"].astype(jnp.float32)}

    found = jax.jit(lambda x: jacobian_report(swap, x))(x)
    assert float(found.spectral_norm) == 2
    assert float(found.spectral_radius) == pytest.approx(1, rel=1e-6)


def test_a_norm_above_one_is_not_growth():
    """The product follows NumPy, its rate the spectral radius, its bound neither."""
    matrix = np.array([[0.5, 10.0], [0.0, 0.5]])
    inputs = jnp.zeros(400)
    cell = lambda hidden, _: jnp.float32(matrix) @ hidden  # noqa: E731
    report = jax.jit(lambda: jacobian_product_report(cell, jnp.ones(2), inputs))()
    for steps in (1, 2, 5, 400):
        exact = np.linalg.norm(np.linalg.matrix_power(matrix, steps), 2)
        assert float(report.log_norms[steps - 1]) == pytest.approx(
            np.log(exact), abs=1e-3
        )
    assert report.log_norms[0] > report.log_norms[3] > 0 > report.log_norms[-1]
    assert float(report.log_norms[-1] / 400) == pytest.approx(np.log(0.5), abs=0.05)
    assert float(report.log_bounds[-1]) == pytest.approx(
        400 * np.log(np.linalg.norm(matrix, 2)), rel=1e-4
    )
    assert float(report.steps.spectral_radius[7]) == pytest.approx(0.5, rel=1e-5)


def test_products_neither_overflow_nor_underflow():
    def measure(scale):
        cell = lambda hidden, _: scale * hidden  # noqa: E731
        return jacobian_product_report(cell, jnp.ones(2), jnp.zeros(400)).log_norms[-1]

    found = jax.jit(jax.vmap(measure))(jnp.array([1e6, 1e-6, 0.0]))
    expected = [400 * np.log(1e6), 400 * np.log(1e-6), -np.inf]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_layers_of_a_deep_net():
    random = np.random.default_rng(1)
    widths = [3, 5, 5, 3]
    weights = [
        random.standard_normal((outputs, inputs))
        for inputs, outputs in zip(widths, widths[1:], strict=False)
    ]
    layer = lambda weight, x: jnp.tanh(weight @ x)  # noqa: E731
    layers = [functools.partial(layer, jnp.float32(weight)) for weight in weights]
    x = random.standard_normal(3)
    report = jax.jit(lambda x: jacobian_product_report(layers, x))(jnp.float32(x))
    product = np.eye(3)
    for k, weight in enumerate(weights):
        x = np.tanh(weight @ x)
        jacobian = (1 - x**2)[:, None] * weight
        product = jacobian @ product
        assert float(report.log_norms[k]) == pytest.approx(
            np.log(np.linalg.norm(product, 2)), abs=1e-4
        )
        assert float(report.steps.spectral_norm[k]) == pytest.approx(
            np.linalg.norm(jacobian, 2), rel=1e-4
        )
    assert np.isnan(report.steps.spectral_radius).tolist() == [True, False, True]


def test_a_recurrent_cell_at_its_own_states():
    """Each Jacobian is at the state that the steps before have led to."""
    random = np.random.default_rng(2)
    weight, inputs = random.standard_normal((4, 4)), random.standard_normal((6, 4))

    def cell(hidden, entry):
        return jnp.tanh(jnp.float32(weight) @ hidden + entry)

    report = jacobian_product_report(cell, np.zeros(4, np.float32), jnp.float32(inputs))
    hidden, product = np.zeros(4), np.eye(4)
    for k, entry in enumerate(inputs):
        hidden = np.tanh(weight @ hidden + entry)
        product = (1 - hidden**2)[:, None] * weight @ product
        assert float(report.log_norms[k]) == pytest.approx(
            np.log(np.linalg.norm(product, 2)), abs=1e-4
        )


def test_a_gate_that_opens_brings_the_jacobian_to_the_identity():
    """h' = z h + (1 − z) tanh(W h) with a constant z: at h = 0, J = z I + (1 − z) W."""
    weight = np.random.default_rng(3).standard_normal((6, 6))
    eigenvalues = np.linalg.eigvals(weight)

    def gated(z):
        cell = lambda h: z * h + (1 - z) * jnp.tanh(jnp.float32(weight) @ h)  # noqa: E731
        return jacobian_report(cell, jnp.zeros(6))

    gates = np.array([0.0, 0.5, 0.99, 1.0])
    found = jax.jit(jax.vmap(gated))(jnp.float32(gates))
    expected = [np.abs(z + (1 - z) * eigenvalues).max() for z in gates]
    np.testing.assert_allclose(found.spectral_radius, expected, rtol=1e-5)
    assert found.spectral_norm[-1] == found.condition_number[-1] == 1


def test_refusals():
    ones = jnp.ones(2)
    with pytest.raises(TypeError, match="x must be real, got complex64"):
        jacobian_report(jnp.sin, ones.astype(jnp.complex64))
    with pytest.raises(ValueError, match="result of the function must have a floating"):
        jacobian_report(lambda x: jnp.int32(x), ones)
    with pytest.raises(ValueError, match="at least one function, got none"):
        jacobian_product_report([], ones)
    with pytest.raises(TypeError, match="a sequence of functions of one argument, or"):
        jacobian_product_report(jnp.sin, ones)
    with pytest.raises(TypeError, match="must be a cell, a function of hidden state"):
        jacobian_product_report([jnp.sin], ones, ones)
    with pytest.raises(
        ValueError, match=r"of the shape and dtype .* pass lambda hidden, input"
    ):
        jacobian_product_report(lambda h, x: (h, h), ones, ones)
