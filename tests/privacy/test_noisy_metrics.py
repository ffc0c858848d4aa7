"""The noisy fraction of clipped examples: one bit an example, and the noise's law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clipjax import privacy

SIZE, DEVIATION = 64.0, 5.0
TRIALS = 4000  # the mean of as many has a deviation of 1/63 of the noise's
FIVE = 5 / np.sqrt(TRIALS)  # five standard deviations: 6e-7 for a test to fail


@jax.jit
def fraction(norms, deviation, key, padding=None):
    return privacy.noisy_clip_fraction(
        norms,
        1.0,
        count_deviation=deviation,
        expected_size=SIZE,
        key=key,
        is_padding_example=padding,
    )


def plain(norms, padding=None):
    """Gives the fraction with next to no noise, times the divisor."""
    norms = jnp.asarray(norms, jnp.float32)
    padding = np.zeros(len(norms), bool) if padding is None else np.asarray(padding)
    return SIZE * float(fraction(norms, 1e-7, jax.random.key(0), padding))


def test_counts_of_examples():
    absent = SIZE / 2
    rest = [0.0] * 5
    # Each example adds 1/2 if it is clipped and takes 1/2 if not, beside half of m.
    for norm, clipped in {
        0.0: False,
        1.0: False,
        np.nextafter(np.float32(1), np.float32(2)): True,
        1e30: True,
        np.inf: True,
        np.nan: True,
    }.items():
        found = plain([norm, *rest]) - absent
        assert found == pytest.approx((0.5 if clipped else -0.5) - 2.5, abs=1e-4)
    # Of six examples with two clipped: as (2 + (m - 6) / 2) / m.
    assert plain([2.0, 3.0, 0.1, 0.2, 0.3, 0.4]) == pytest.approx(
        2 + (SIZE - 6) / 2, abs=1e-4
    )


def test_padding_counts_as_absent():
    norms = [2.0, np.nan, 0.1, np.inf, 0.2, 5.0]
    assert plain(norms, [False, True, False, True, True, True]) == SIZE / 2
    assert plain(norms, [True] * 6) == SIZE / 2
    assert plain([]) == SIZE / 2


@pytest.mark.parametrize("value", [0.0, 1.0, 7.0, np.inf, np.nan])
def test_one_example_changes_the_count_by_a_half(value):
    norms = np.array([0.5, 2.0, 3.0, 0.1, value, 1.0], np.float32)
    present, absent = np.zeros(6, bool), np.arange(6) == 4
    key = jax.random.key(3)  # the same noise in both
    change = fraction(norms, DEVIATION, key, present)
    change -= fraction(norms, DEVIATION, key, absent)
    assert SIZE * abs(float(change)) == pytest.approx(0.5, abs=1e-5)


def test_the_law_of_the_noise_and_its_independence_of_the_gradients():
    norms = np.linspace(0, 4, 64, dtype=np.float32)  # 16 of them are at most 1
    keys = jax.random.split(jax.random.key(7), TRIALS)

    @jax.jit
    @jax.vmap
    def draw(key):
        noise = privacy.gaussian_noise(1.0, 1.0, key)
        gradient, _ = noise.update(jnp.zeros(()), noise.init(None))
        return fraction(norms, DEVIATION, key), gradient

    found, gradient = map(np.asarray, draw(keys))
    noise = (found.astype(np.float64) - 48 / 64) * SIZE / DEVIATION
    assert abs(noise.mean()) < FIVE
    assert abs(noise.std() - 1) < FIVE / np.sqrt(2)
    assert len(np.unique(noise)) > 0.99 * TRIALS
    assert abs(np.corrcoef(noise, gradient)[0, 1]) < FIVE


def test_it_is_released_as_it_is_outside_of_0_to_1():
    norms = np.zeros(64, np.float32)
    keys = jax.random.split(jax.random.key(0), 50)
    found = [fraction(norms, 20.0, key) for key in keys]
    assert np.min(found) < 0 < np.max(found)


def test_on_meshes():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")
    norms = np.linspace(0, 4, 64, dtype=np.float32)
    sharded = jax.device_put(norms, NamedSharding(mesh, rows))
    assert plain(sharded) == pytest.approx(plain(norms), abs=1e-4) == 48
    each = jax.shard_map(
        lambda norms: fraction(norms, 1.0, jax.random.key(0)),
        mesh=mesh,
        in_specs=rows,
        out_specs=PartitionSpec(),
    )
    with pytest.raises(ValueError, match="differ over the mesh axes .*data"):
        each(norms)


def test_keys_in_the_old_style_and_float64_norms():
    with jax.enable_x64(True):
        norms = jnp.array([0.5, 2.0], jnp.float64)
        of = privacy.noisy_clip_fraction
        options = {"count_deviation": 1.0, "expected_size": 2.0}
        old = of(norms, 1.0, key=jax.random.PRNGKey(4), **options)
        new = of(norms, jnp.float32(1.0), key=jax.random.key(4), **options)
    assert old.dtype == np.float32 and old == new


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"count_deviation": 0.0}, ValueError, "count_deviation must be above 0"),
        ({"count_deviation": -1.0}, ValueError, "count_deviation"),
        ({"expected_size": 0}, ValueError, "expected_size must be above 0"),
        ({"expected_size": np.inf}, ValueError, "expected_size"),
        ({"key": 0}, TypeError, "key"),
        ({"example_norms": np.zeros((2, 2), np.float32)}, TypeError, r"shape \[B\]"),
        ({"example_norms": np.zeros(2, int)}, TypeError, "floating-point"),
        ({"is_padding_example": np.zeros(3, bool)}, ValueError, "is_padding_example"),
        ({"threshold": np.zeros((2, 1))}, ValueError, r"threshold .*shape \(2, 1\)"),
    ],
)
def test_bad_input(change, error, words):
    arguments = {
        "example_norms": np.zeros(2, np.float32),
        "threshold": 1.0,
        "count_deviation": 1.0,
        "expected_size": 2.0,
        "key": jax.random.key(0),
    }
    with pytest.raises(error, match=words):
        privacy.noisy_clip_fraction(**(arguments | change))
