"""Local smoothness, the fit of (L0, L1)-smoothness, and the gradient noise scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.diagnostics import (
    fit_smoothness,
    gradient_noise_scale,
    least_l0,
    local_smoothness,
)

SIZE = 6


def symmetric(seed, eigenvalues):
    random = np.random.default_rng(seed).standard_normal([len(eigenvalues)] * 2)
    basis, _ = np.linalg.qr(random)
    return (basis * eigenvalues) @ basis.T


def quadratic(params, hessian):
    """The Hessian is that of the two leaves as one vector."""
    vector = jnp.concatenate([params["a"], params["b"].astype(jnp.float32).ravel()])
    return 0.5 * vector @ hessian @ vector


def tree(vector, dtype=jnp.float32):
    return {"a": jnp.float32(vector[:2]), "b": jnp.asarray(vector[2:], dtype)}


smoothness = jax.jit(
    local_smoothness, static_argnames=("loss", "method", "iterations", "radius")
)
POINT = np.arange(1.0, SIZE + 1)


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [5, 3, 2, 1, -1, 0.5],
        [1, 2, 3, 1, -5, 0.5],
        [5, -5, 3, 2, 1, 0],
        [5e-25, 3e-25, -1e-25, 0, 0, 0],
        [5e25, 3e25, -1e25, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ],
    ids=["positive", "negative", "both signs", "tiny", "huge", "zero"],
)
def test_the_largest_eigenvalue_of_either_sign(eigenvalues):
    hessian = symmetric(0, eigenvalues)
    found = smoothness(
        quadratic, tree(POINT), jnp.float32(hessian), "hessian", iterations=40
    )
    largest = np.abs(eigenvalues).max()
    assert float(found.value) == pytest.approx(largest, rel=1e-5)
    assert float(found.residual) < 1e-4
    gradient = np.linalg.norm(hessian @ POINT)
    assert float(found.grad_norm) == pytest.approx(gradient, rel=1e-5)
    if -largest not in eigenvalues or largest not in eigenvalues:
        expected = max(eigenvalues, key=abs)
        assert float(found.curvature) == pytest.approx(expected, rel=1e-5)


def test_few_iterations_show_in_the_residual_and_never_overshoot():
    hessian = symmetric(1, [5, 4.9, 3, 2, 1, 0])
    found = [
        smoothness(
            quadratic, tree(POINT), jnp.float32(hessian), "hessian", iterations=n
        )
        for n in (2, 40)
    ]
    start = np.float64(jax.random.normal(jax.random.key(0), (SIZE,)))
    start /= np.linalg.norm(start)
    once, square = hessian @ start, hessian @ hessian @ start
    residual = np.linalg.norm(square / (once @ once) - start)
    assert float(found[0].residual) == pytest.approx(residual, rel=1e-4)
    values = [float(each.value) for each in found]
    assert values[0] < values[1] <= 5 * (1 + 1e-6)
    assert float(found[0].residual) > 10 * float(found[1].residual) > 0


def test_the_hessian_of_a_network_with_integers_among_its_parameters():
    random = np.random.default_rng(2)
    params = {
        "w": jnp.float32(random.standard_normal((3, 4))),
        "v": jnp.float32(random.standard_normal(4)),
        "step": jnp.int32(2),
        "none": None,
    }
    inputs = jnp.float32(random.standard_normal((8, 3)))

    def loss(params, inputs):
        hidden = jnp.tanh(inputs @ params["w"])
        return params["step"].astype(jnp.float32) * jnp.mean(
            (hidden @ params["v"]) ** 2
        )

    def of_vector(vector):
        parts = {"w": vector[:12].reshape(3, 4), "v": vector[12:]}
        return loss(params | parts, inputs)

    vector = jnp.concatenate([params["w"].ravel(), params["v"]])
    exact = np.linalg.eigvalsh(np.float64(jax.jit(jax.hessian(of_vector))(vector)))
    found = smoothness(loss, params, inputs, iterations=100)
    assert float(found.value) == pytest.approx(np.abs(exact).max(), rel=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_secant_divides_by_the_step_that_was_taken(dtype):
    """In bfloat16 a step of 0.01 from 1 moves nothing, or one of 1/128."""
    hessian = symmetric(3, [5, -4, 3, 2, 1, 0])
    start = tree(POINT, dtype)
    step = np.array([0.01, 0, 0.01, -0.01, 0, 0.02])

    def loss(params, hessian):  # its gradient is small, which bfloat16 rounds little
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        return quadratic(jax.tree.map(jnp.subtract, wide, tree(POINT)), hessian)

    moved = jax.tree.map(lambda x, d: x.astype(d.dtype) + d, start, tree(step))
    moved = jax.tree.map(lambda m, x: m.astype(x.dtype), moved, start)
    taken = np.concatenate(
        [np.float64(moved[name]) - np.float64(start[name]) for name in "ab"]
    )
    found = smoothness(
        loss, start, jnp.float32(hessian), "secant", step=tree(step, jnp.float32)
    )
    expected = np.linalg.norm(hessian @ taken) / np.linalg.norm(taken)
    accuracy = 1e-3 if dtype == jnp.float32 else 0.01
    assert float(found.value) == pytest.approx(expected, rel=accuracy)
    curvature = taken @ hessian @ taken / (taken @ taken)
    assert float(found.curvature) == pytest.approx(curvature, rel=accuracy)
    if dtype == jnp.bfloat16:
        assert np.linalg.norm(taken) > 1.2 * np.linalg.norm(step)
    assert float(found.residual) == 0


def test_a_random_direction_gives_the_frobenius_norm_and_not_the_largest_eigenvalue():
    eigenvalues = np.array([100.0] + [1.0] * 49)
    params, keys = jnp.ones(50), jax.random.split(jax.random.key(0), 4096)

    def loss(x, scales):
        return 0.5 * jnp.sum(scales * x**2)

    def measure(key, radius):
        scales = jnp.float32(eigenvalues)
        return local_smoothness(loss, params, scales, "random", key=key, radius=radius)

    found = jax.jit(jax.vmap(measure, in_axes=(0, None)))(keys, 0.5)
    root_mean_square = np.sqrt(np.mean(np.float64(found.value) ** 2))
    expected = np.sqrt(np.sum(eigenvalues**2) / 50)  # 14.2
    # One square has the relative deviation √2, its mean over 4,096 keys 0.022.
    assert root_mean_square == pytest.approx(expected, rel=0.05)
    assert found.value.max() < 100
    # The mean curvature is the mean eigenvalue.
    assert float(found.curvature.mean()) == pytest.approx(2.98, rel=0.1)
    assert "Frobenius" in found.estimate


def test_estimates_without_an_answer():
    hessian = jnp.eye(SIZE)
    still = smoothness(
        quadratic, tree(POINT), hessian, "secant", step=tree(np.zeros(SIZE))
    )
    assert np.isnan(still.value) and float(still.grad_norm) > 0
    broken = smoothness(
        quadratic, tree(POINT), hessian * jnp.nan, "hessian", iterations=40
    )
    assert np.isnan(broken.value) and np.isnan(broken.grad_norm)


@pytest.mark.parametrize(
    "error, message, arguments",
    [
        (ValueError, "method must be one of 'hessian', 'secant'", {"method": "newton"}),
        (ValueError, "step must be the update.* got NoneType", {"method": "secant"}),
        (ValueError, "step must be the update.* got float", {"step": 1.0}),
        (ValueError, "key must be a JAX PRNG key", {"method": "random"}),
        (ValueError, "radius must be .* got 0", {"radius": 0}),
        (TypeError, "iterations must be an integer", {"iterations": 2.0}),
        (ValueError, "iterations must be an integer of at least 2", {"iterations": 1}),
        (ValueError, "params must have a floating-point leaf", {"params": {"n": 1}}),
        (TypeError, "params must be real, got complex64 at 'z'", {"params": "complex"}),
        (
            ValueError,
            r"shapes of params, got \(\) for \(2,\) at 'x'",
            {"method": "secant", "step": {"x": 1.0}},
        ),
    ],
)
def test_smoothness_refuses(error, message, arguments):
    params = arguments.pop("params", {"x": jnp.ones(2)})
    if params == "complex":
        params = {"z": jnp.ones(1, jnp.complex64)}
    with pytest.raises(error, match=message):
        local_smoothness(lambda x, _: jnp.sum(x["x"] ** 2), params, None, **arguments)


def test_fit_is_numpys_at_any_magnitude():
    random = np.random.default_rng(4)
    norms = random.uniform(0.5, 3, 50)
    smoothness = 2 + 5 * norms + random.standard_normal(50)
    slope, intercept = np.polyfit(norms, smoothness, 1)
    line = intercept + slope * norms
    r2 = 1 - np.var(smoothness - line) / np.var(smoothness)
    for size in (1, 1e25, 1e-25):
        fit = jax.jit(fit_smoothness)(
            jnp.float32(norms * size), jnp.float32(smoothness * size)
        )
        assert float(fit.l0) == pytest.approx(intercept * size, rel=1e-4)
        assert float(fit.l1) == pytest.approx(slope, rel=1e-5)
        assert float(fit.r2) == pytest.approx(r2, rel=1e-5)
        residuals = np.float64(fit.residuals) / size
        np.testing.assert_allclose(residuals, smoothness - line, atol=1e-4)
        assert fit.is_reliable and int(fit.count) == 50 and fit.warning == ""


def test_fit_leaves_out_what_is_not_finite():
    norms, smoothness = np.arange(12.0), 1 + 2 * np.arange(12.0)
    norms[3], smoothness[5] = np.nan, np.inf
    fit = fit_smoothness(norms, smoothness)
    assert int(fit.count) == 10 and fit.is_reliable
    assert float(fit.l1) == pytest.approx(2, rel=1e-5)
    assert np.isnan(fit.residuals).nonzero()[0].tolist() == [3, 5]


@pytest.mark.parametrize(
    "norms, smoothness, warning",
    [
        (np.arange(20), 20 - np.arange(20), "slope -1, not positive"),
        (np.arange(20), np.arange(20) - 3, "intercept -3, negative"),
        (np.arange(4), np.arange(4), "4 points, fewer than 10"),
        (np.arange(20), np.arange(20) % 2 + 0.001 * np.arange(20), "R² 0.01, below"),
        (np.ones(20), np.arange(20), "R² nan, below 0.5; slope nan"),
        ([], [], "0 points, fewer than 10; R² nan"),
    ],
)
def test_fit_warns(norms, smoothness, warning):
    fit = fit_smoothness(norms, smoothness)
    assert warning in fit.warning
    assert not fit.is_reliable


def test_fit_refuses():
    with pytest.raises(ValueError, match=r"one shape \[n\], got \(2,\) and \(3,\)"):
        fit_smoothness(np.ones(2), np.ones(3))
    with pytest.raises(TypeError, match="norms must be .* got dtype complex64"):
        fit_smoothness(np.ones(2, np.complex64), np.ones(2))
    with pytest.raises(TypeError, match="smoothness must be an array of real numbers"):
        fit_smoothness(np.ones(2), ["1", "2"])


@pytest.mark.parametrize("p", [2, 3, 4, 6])
def test_least_l0_of_powers(p):
    """L0 = p ((p − 2) / L1)^(p − 2), attained at x = (p − 2) / L1."""
    l1 = np.array([0.5, 2.0, 7.0])

    def needed(l1):
        return least_l0(lambda x: x**p, l1, (-0.1, 10.0))

    found = jax.jit(jax.vmap(needed))(jnp.float32(l1))
    np.testing.assert_allclose(found.l0, p * ((p - 2) / l1) ** (p - 2), rtol=1e-5)
    np.testing.assert_allclose(found.location, (p - 2) / l1, atol=1e-2)


def test_least_l0_where_none_is_needed_and_where_there_is_no_answer():
    assert float(least_l0(jnp.exp, 2.0, (-1.0, 1.0)).l0) == 0
    assert np.isnan(least_l0(jnp.sqrt, 1.0, (-1.0, 1.0)).l0)
    for interval in ((1.0, 1.0), (2.0, 1.0), (0.0, np.inf)):
        with pytest.raises(ValueError, match="interval must be two finite ends"):
            least_l0(jnp.exp, 1.0, interval)
    with pytest.raises(ValueError, match="l1 must be a number of at least 0.* got -1"):
        least_l0(jnp.exp, -1.0, (0.0, 1.0))


@pytest.mark.parametrize("size", [1, 1e25, 1e-18])
def test_noise_scale_of_exact_mean_squares(size):
    signal, trace = 4.0, 36.0
    norms = [size * np.sqrt(signal + trace / batch) for batch in (8, 64)]
    found = jax.jit(gradient_noise_scale, static_argnums=(2, 3))(*norms, 8, 64)
    assert float(found.noise_scale) == pytest.approx(trace / signal, rel=1e-4)
    if size == 1:
        assert float(found.trace) == pytest.approx(trace, rel=1e-4)
        assert float(found.squared_grad_norm) == pytest.approx(signal, rel=1e-4)


def test_noise_scale_of_drawn_gradients_is_unbiased():
    random = np.random.default_rng(5)
    mean, deviation, entries = 0.5, 2.0, 10
    steps = [
        np.linalg.norm(
            mean + deviation * random.standard_normal((20_000, entries)) / batch**0.5,
            axis=1,
        )
        for batch in (4, 16)
    ]
    found = gradient_noise_scale(*steps, 4, 16)
    # The standard error of the mean of 20,000 squares leaves 1 % and 2 %.
    assert float(found.trace) == pytest.approx(entries * deviation**2, rel=0.04)
    signal = entries * mean**2
    assert float(found.squared_grad_norm) == pytest.approx(signal, rel=0.06)


def test_noise_scale_without_signal_and_refusals():
    assert gradient_noise_scale(3.0, 1.0, 1, 4).noise_scale == jnp.inf
    assert np.isnan(gradient_noise_scale([1.0, np.nan], 1.0, 1, 4).noise_scale)
    with pytest.raises(ValueError, match="big_batch must be .* at least 9, got 8"):
        gradient_noise_scale(1.0, 1.0, 8, 8)
    with pytest.raises(ValueError, match=r"not be empty, got shapes \(0,\) and \(\)"):
        gradient_noise_scale([], 1.0, 1, 2)
