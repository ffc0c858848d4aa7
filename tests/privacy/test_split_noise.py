"""What a gradient and a noisy count of the same batch cost together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax import privacy

SIZE = 40.0
Z, SIGMA_B = 1.0, 3.0


@functools.cache
def pair_of():
    """Gives the function of a batch to its gradient and count, with a traced C."""

    @jax.jit
    def pair(threshold, x, padding):
        grad = clipjax.clipped_grad(
            lambda w, x: jnp.sum(x @ w),
            l2_clip_norm=threshold,
            rescale_to_unit_norm=True,
            return_grad_norms=True,
            normalize_by=SIZE,
        )
        total, output = grad(jnp.zeros(3), x, is_padding_example=padding)
        count = SIZE * privacy.noisy_clip_fraction(
            output.grad_norms,
            threshold,
            count_deviation=1e-6,
            expected_size=SIZE,
            key=jax.random.key(0),
            is_padding_example=padding,
        )
        return total, count, jnp.float32(grad.sensitivity())

    return pair


@pytest.mark.parametrize("threshold", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(
    "relation", ["ADD_OR_REMOVE_ONE", "REPLACE_SPECIAL", "REPLACE_ONE"]
)
def test_one_example_changes_the_pair_by_1_over_z_and_no_more(relation, threshold):
    generator = np.random.default_rng(0)
    split = privacy.split_noise_multiplier(Z, SIGMA_B, relation)
    unit = 2.0 if relation == "REPLACE_ONE" else 1.0
    worst = 0.0
    for trial in range(60):
        x = generator.standard_normal((4, 3)).astype(np.float32)
        x *= threshold * np.exp(2 * generator.standard_normal((4, 1)))
        if trial == 0:  # the worst: opposite, one of norm C and one above it
            x[0] = threshold * np.array([0.999999, 0, 0])
            x[1] = threshold * np.array([-2.0, 0, 0])
        elif trial == 1:
            x[0] = np.nan
        x = x.astype(np.float32)
        without = np.array([True, True, False, False])
        first, second = without.copy(), without.copy()
        first[0] = False
        if relation == "REPLACE_ONE":
            second[1] = False
        elif trial % 2:
            first, second = second, first
        one, other = (pair_of()(threshold, x, pad) for pad in (first, second))
        # The sensitivity is 1/m whatever C is, and each part in units of its noise:
        assert float(one[2]) == pytest.approx(1 / SIZE)
        gradient = (one[0] - other[0]) * SIZE / (unit * split)
        count = (one[1] - other[1]) / SIGMA_B
        worst = max(worst, float(np.hypot(np.linalg.norm(gradient), count)))
    assert 0.999 / Z < worst < (1 + 1e-5) / Z


@pytest.mark.parametrize("sampling_rate", [1.0, 0.01])
def test_accountants_see_the_noise_multiplier_that_was_split(sampling_rate):
    accounting = pytest.importorskip("dp_accounting")
    split = privacy.split_noise_multiplier(1.2, 2.5)
    pair = accounting.ComposedDpEvent(
        [accounting.GaussianDpEvent(split), accounting.GaussianDpEvent(2 * 2.5)]
    )
    single = accounting.GaussianDpEvent(1.2)
    found = []
    for event in (pair, single):
        event = accounting.PoissonSampledDpEvent(sampling_rate, event)
        accountant = accounting.rdp.RdpAccountant()
        found.append(accountant.compose(event, 100).get_epsilon(1e-5))
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    if sampling_rate == 1:
        found = []
        for event in (pair, single):
            accountant = accounting.pld.PLDAccountant()
            found.append(accountant.compose(event, 4).get_epsilon(1e-5))
        assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_the_split_of_andrew_et_al():
    for z, sigma_b in [(1.0, 12.8), (0.5, 0.3), (3.0, 1.6)]:
        expected = (z**-2 - (2 * sigma_b) ** -2) ** -0.5
        assert privacy.split_noise_multiplier(z, sigma_b) == pytest.approx(expected)
        expected = z**-2 - (2 * sigma_b) ** -2
        found = privacy.split_noise_multiplier(z, 2 * sigma_b, "REPLACE_ONE")
        assert found**-2 == pytest.approx(expected)


def test_members_of_dp_accounting_are_relations():
    accounting = pytest.importorskip("dp_accounting")
    relation = accounting.NeighboringRelation.REPLACE_ONE
    of_name = privacy.split_noise_multiplier(1.0, 2.0, "REPLACE_ONE")
    assert privacy.split_noise_multiplier(1.0, 2.0, relation) == of_name


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((1.0, 0.5), ValueError, "above 0.5 .* ADD_OR_REMOVE_ONE"),
        ((1.0, 1.0, "REPLACE_ONE"), ValueError, "above 1 .* REPLACE_ONE"),
        ((0.0, 1.0), ValueError, "noise_multiplier must be above 0"),
        ((1.0, 0.0), ValueError, "count_deviation must be above 0"),
        ((np.nan, 1.0), ValueError, "noise_multiplier"),
        ((1.0, jnp.float32(1.0)), TypeError, "count_deviation must be a number"),
        ((1.0, 1.0, "zero-out"), ValueError, "neighboring_relation"),
    ],
)
def test_what_cannot_be_split(arguments, error, words):
    with pytest.raises(error, match=words):
        privacy.split_noise_multiplier(*arguments)
