"""Sensitivity of clipped gradients, and Gaussian noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax.demos.probes import sensitivity


@pytest.fixture(scope="module")
def measured():
    return sensitivity.measure()


def test_the_sensitivity_depends_on_the_adjacency(measured):
    """C12, B84: 2C/m for one replaced, C/m for one removed with a fixed divisor."""
    assert measured.replaced == pytest.approx(2 / 8, rel=1e-4)
    assert measured.removed == pytest.approx(1 / 8, rel=1e-4)
    # A divisor that counts the examples gives back what was won.
    assert measured.removed_actual == pytest.approx(2 / 8, rel=1e-4)
    # A clip of the mean bounds the mean and not what one example does: 2C.
    assert measured.replaced_unclipped == pytest.approx(2, rel=1e-4)


def test_no_pair_of_data_sets_exceeds_the_sensitivity():
    """C12, B84: 2C/m is a bound over all pairs, also those with random examples."""
    grad = clipjax.clipped_grad(
        lambda params, example: jnp.sum(example @ params),
        l2_clip_norm=0.5,
        normalize_by=4.0,
    )
    bound = grad.sensitivity("REPLACE_ONE")
    assert bound == 2 * 0.5 / 4 and grad.sensitivity() == 0.5 / 4
    mean = jax.jit(jax.vmap(lambda data: grad(jnp.zeros(3), data)))
    data = np.random.default_rng(0).standard_cauchy((50, 5, 3)).astype(np.float32)
    # Four examples each, of which one is not in the other: as one replaced.
    distance = np.linalg.norm(mean(data[:, 1:]) - mean(data[:, :-1]), axis=1)
    assert bound / 4 < distance.max() <= bound * (1 + 1e-6)


def test_laplace_noise_needs_the_l1_sensitivity(measured):
    """C12, B85: the L1 sensitivity is up to √d times as large, 2C√d/m."""
    assert measured.replaced_l1 == pytest.approx(2 * 20**0.5 / 8, rel=1e-4)
    assert measured.replaced_l1 > 4 * measured.replaced


def test_the_classical_noise_is_for_epsilon_up_to_one(measured):
    """C12, B85: the true δ of the classical Gaussian noise exceeds its target."""
    found = [measured.delta[measured.epsilons == e].item() for e in (1, 8, 10, 20)]
    assert found[0] < 1e-5
    np.testing.assert_allclose(found[1:], [8.0e-6, 2.3e-5, 1.5e-3], rtol=0.03)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 10.0])
def test_the_least_delta_is_an_integral(epsilon):
    """C12: δ is the integral of max(0, p - exp(ε) q) over two shifted Gaussians."""
    x, width = np.linspace(-12, 12, 400_001, retstep=True)
    noise = 0.7

    def density(middle):
        bell = np.exp(-0.5 * ((x - middle) / noise) ** 2)
        return bell / (noise * np.sqrt(2 * np.pi))

    excess = np.maximum(0, density(1) - np.exp(epsilon) * density(0))
    found = sensitivity.gaussian_delta(epsilon, noise)
    assert found == pytest.approx(excess.sum() * width, rel=1e-3)


def test_steps_compose():
    """C12: a hundred steps need more noise than one; √k times as much at equal δ."""
    noise = sensitivity.classical_noise(1.0, 1e-5)
    once = sensitivity.gaussian_delta(1.0, noise)
    # k results with noise σ are one with sensitivity √k.
    often = sensitivity.gaussian_delta(1.0, noise, sensitivity=10.0)
    assert once < 1e-5 and often > 0.5
    repaired = sensitivity.gaussian_delta(1.0, 10 * noise, sensitivity=10.0)
    assert repaired == pytest.approx(once)


def test_the_probe_refuses():
    with pytest.raises(ValueError, match="dimension must be a whole number"):
        sensitivity.measure(dimension=0)
    with pytest.raises(ValueError, match="target must be below 1, got 2"):
        sensitivity.measure(target=2)
