"""What estimators of smoothness measure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.demos.probes import smoothness_fit
from clipjax.diagnostics import local_smoothness


def loss(params, curvatures):
    return 0.5 * jnp.sum(curvatures * params**2)


def test_a_direction_that_is_not_normalized_overestimates_by_the_root_of_its_size():
    """C15, B59: |∇f(x + εz) − ∇f(x)|/ε with normal z is √P times too large.

    Divided by |εz| it is ‖H‖_F/√P in the root mean square, and not the largest
    eigenvalue.
    """
    size, epsilon = 10_000, 1e-2
    curvatures = jnp.full(size, 3.0)  # so that every direction has the smoothness 3
    params = jnp.zeros(size)
    step = epsilon * jax.random.normal(jax.random.key(0), (size,))
    change = jnp.linalg.norm(jax.grad(loss)(params + step, curvatures))
    assert float(change / epsilon) == pytest.approx(3 * size**0.5, rel=0.02)
    key = jax.random.key(1)
    found = local_smoothness(loss, params, curvatures, "random", key=key)
    assert float(found.value) == pytest.approx(3, rel=1e-3)
    spiked = curvatures.at[0].set(300.0)
    found = local_smoothness(loss, params, spiked, "random", key=key)
    frobenius = float(jnp.linalg.norm(spiked)) / size**0.5
    assert frobenius == pytest.approx(18**0.5, rel=1e-3)
    assert float(found.value) < 10 < 300
    largest = local_smoothness(loss, params, spiked, key=key)
    assert float(largest.value) == pytest.approx(300, rel=1e-2)


def test_the_lines_of_a_report_are_those_of_the_measurements():
    """B33: R² is printed, and no line is promised: a known one, and one without."""
    norms = np.linspace(0.1, 2, 20)[None]
    line, noise = 2 + 3 * norms, np.where(np.arange(20) % 2, 5.0, 1.0)[None]
    constants = np.array([[2.0, 3.0, 1.0]]), np.array([[3.0, 0.0, 0.0]])
    smoothness = {name: np.stack([line, line, noise]) for name in smoothness_fit.ARMS}
    fits = {
        name: np.stack([constants[0], constants[0], constants[1]])
        for name in smoothness_fit.ARMS
    }
    measured = smoothness_fit.Measured(
        dict.fromkeys(smoothness_fit.ARMS, norms), smoothness, fits
    )
    report = smoothness_fit.report(measured)
    assert len(report.tables) == 4
    assert "from 1 to 1" in report.findings[0] and "0 of 3 runs" in report.findings[0]
    labels = [line.get_label() for line in report.figure.axes[0].get_lines()]
    assert "ReLU, He\nL = 2 + 3 ‖g‖, R² = 1.00" in labels


def test_a_network_while_it_trains():
    """B59: the largest eigenvalue is above the secant and far above a random one."""
    run = smoothness_fit._runner(smoothness_fit.ARMS["tanh, LeCun"], 4, 1)
    norms, (hessian, secant, random) = run(jax.random.key(0))
    assert norms.shape == (4,) and (norms > 0).all()
    assert (hessian > 0.8 * secant).all() and (hessian > 20 * random).all()


@pytest.mark.parametrize("name, value", [("probes", 3), ("seeds", 0), ("every", -1)])
def test_what_the_probe_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
        smoothness_fit.measure(**{name: value})
