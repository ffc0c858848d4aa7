"""What a clip does to a potential that is trained, and a flow to a gradient.

Forces and the gradient that is clipped (C26) have tests of their own, and so have the
thresholds of weighted losses (C11, B83).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipjax.demos.models.flow import Flow
from clipjax.demos.models.potential import Potential, forces
from clipjax.demos.probes import potential_regions
from clipjax.diagnostics import jacobian_report


def test_forces_are_the_slope_of_the_learned_energy():
    """C26, B91: a learned force is -dE/dr of the network, at fixed parameters."""
    distances = jnp.linspace(0.8, 2.4, 33)

    @jax.jit
    def force_and_energies():
        model = Potential(width=16, rngs=nnx.Rngs(0))
        return (
            forces(model, distances),
            model(distances - 1e-2),
            model(distances + 1e-2),
        )

    found, before, after = force_and_energies()
    slope = (np.asarray(before) - np.asarray(after)) / 2e-2
    np.testing.assert_allclose(found, slope, rtol=1e-2, atol=1e-3)
    assert np.abs(np.asarray(found)).max() > 0.1


def test_a_fixed_threshold_fits_the_main_region_and_not_the_wall():
    """B91: a small fixed threshold helps the main region, not the full range."""
    loop = potential_regions.make_loop(steps=3000, batch=32)
    free = loop.run(0, learning_rate=1e-4, threshold=np.inf).held_out
    # A threshold at about the median of the norms at the start.
    clipped = loop.run(0, learning_rate=1e-2, threshold=3.0).held_out
    assert clipped["F-rmse main"] < 0.2 * free["F-rmse main"]
    # The wall stays badly fitted: a constant energy has an error of 799.
    assert clipped["F-rmse wall"] > 0.5 * 799
    # Without the clip the higher rate ends in a constant energy.
    dead = loop.run(0, learning_rate=1e-2, threshold=np.inf).held_out
    assert dead["F-rmse wall"] == pytest.approx(799, rel=0.01)


@jax.jit
def at(model, point):
    """The Jacobian at a point, its report, and a cotangent pulled back five times."""
    _, pull = jax.vjp(model, point)
    cotangent = jnp.ones(2)
    for _ in range(5):
        (cotangent,) = pull(cotangent)
    return jax.jacobian(model)(point), jacobian_report(model, point), cotangent


def test_a_flow_of_determinant_one_has_a_large_norm():
    """B82: diag(100, 0.01) has determinant 1 and multiplies gradients by up to 100."""
    model = Flow(layers=1, width=1, rngs=nnx.Rngs(0))
    model.log_stretch[...] = jnp.log(jnp.float32(100))
    jacobian, report, cotangent = at(model, jnp.array([0.3, -0.7]))
    np.testing.assert_allclose(jacobian, np.diag([100, 0.01]), rtol=1e-5)
    assert np.linalg.det(np.asarray(jacobian)) == pytest.approx(1, rel=1e-5)
    assert float(report.spectral_norm) == pytest.approx(100, rel=1e-5)
    # Back through five of them, a gradient along the first axis grows by 100^5.
    np.testing.assert_allclose(cotangent, [1e10, 1e-10], rtol=1e-4)


def test_additive_layers_alone_reach_a_large_norm_too():
    """B82: a shear has determinant 1 at any norm, and so has its inverse."""
    model = Flow(layers=1, width=1, rngs=nnx.Rngs(0))
    (shear,) = model.couplings
    shear.hidden.kernel[...] = jnp.ones((1, 1))
    shear.readout.kernel[...] = jnp.full((1, 1), 30.0)
    jacobian, report, _ = at(model, jnp.zeros(2))
    np.testing.assert_allclose(jacobian, [[1, 0], [30, 1]], rtol=1e-6)
    largest = (30 + (30**2 + 4) ** 0.5) / 2
    assert float(report.spectral_norm) == pytest.approx(largest, rel=1e-5)
    assert float(report.condition_number) == pytest.approx(largest**2, rel=1e-3)
    # Its powers grow by 30 per step and not by a factor: both eigenvalues are 1.
    assert float(report.spectral_radius) == pytest.approx(1, rel=1e-4)
