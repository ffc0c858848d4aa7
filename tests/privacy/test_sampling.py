"""Poisson subsampling: its law, restarts, and batches of a fixed shape."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax import privacy

STEPS, EXAMPLES, RATE = 400, 500, 0.3
DEVIATIONS = 4  # of the statistic tested: exceeded by chance once in 16,000


def sampler_of(examples=EXAMPLES, rate=RATE, seed=0, batch_size=64):
    return privacy.PoissonSampler(
        examples, rate, jax.random.key(seed), batch_size=batch_size
    )


@pytest.fixture(scope="module")
def drawn():
    """Whether each example is in the sample of each step."""
    sampler, table = sampler_of(), np.zeros((STEPS, EXAMPLES))
    for step in range(STEPS):
        table[step, sampler.sample(step)] = 1
    return table


def test_mean(drawn):
    """The mean of all coins has the variance q(1 - q) / number."""
    deviation = np.sqrt(RATE * (1 - RATE) / drawn.size)
    assert abs(drawn.mean() - RATE) < DEVIATIONS * deviation


@pytest.mark.parametrize("axis", [0, 1], ids=["by example", "by step"])
def test_variance(drawn, axis):
    """Sums of k coins have the variance k q(1 - q): neither too even nor too uneven.

    By step these are sizes of samples, by example how often each took part. The sum of
    squared, standardized deviations of many of them is about chi-squared.
    """
    sums, k = drawn.sum(axis), drawn.shape[axis]
    squares = (sums - k * RATE) ** 2 / (k * RATE * (1 - RATE))
    number = squares.size
    assert abs(squares.sum() - number) < DEVIATIONS * np.sqrt(2 * number)


@pytest.mark.parametrize("shift", [(0, 1), (0, 4), (1, 0), (1, 1), (2, 0)])
def test_independence(drawn, shift):
    """Two examples, one example in two steps, and both: no covariance.

    A product of two centred coins has the mean 0 and the variance (q(1 - q))^2, and
    such products have no covariance with each other.
    """
    steps, examples = shift
    centred = drawn - RATE
    products = (
        centred[steps:, examples:] * centred[: STEPS - steps, : -examples or None]
    )
    deviation = RATE * (1 - RATE) / np.sqrt(products.size)
    assert abs(products.mean()) < DEVIATIONS * deviation


def test_small_rate():
    """A rate below the resolution of 32-bit random numbers, which is 2^-24.

    The number drawn is binomial, with a variance of about its mean. At the resolution
    of 32-bit numbers the mean would be 8.
    """
    rate, examples, steps = 2.0**-30, 2**23, 16
    count = sum(len(sampler_of(examples, rate).sample(step)) for step in range(steps))
    mean = rate * examples * steps
    assert mean == 0.125 and count <= mean + DEVIATIONS * np.sqrt(mean)


def test_any_order():
    """A sampler made anew, or in another process, goes on where one stopped."""
    first = [list(sampler_of().batches(step)) for step in range(4)]
    other = pickle.loads(pickle.dumps(sampler_of()))
    for step in (3, 0, 2, 1):
        for mine, theirs in zip(first[step], other.batches(step), strict=True):
            np.testing.assert_array_equal(mine[0], theirs[0])
            assert mine[1] == theirs[1]


@pytest.mark.parametrize("words", [(0, 1), (1, 0)])
def test_another_key_or_step(words):
    """Samples that share as many examples as independent ones do."""
    mean = EXAMPLES * RATE**2
    limit = DEVIATIONS * np.sqrt(mean * (1 - RATE**2))
    key = jax.random.wrap_key_data(jnp.array(words, jnp.uint32))
    other = privacy.PoissonSampler(EXAMPLES, RATE, key, batch_size=64)
    base = sampler_of().sample(5)
    for sample in (other.sample(5), sampler_of().sample(6), sampler_of().sample(2**40)):
        assert abs(len(np.intersect1d(base, sample)) - mean) < limit


def test_one_more_example_changes_no_other():
    """Neighboring datasets: also beyond what is drawn at a time."""
    few, many = (sampler_of(n, 1e-4).sample(0) for n in (2**20 + 1, 2**21 + 1))
    np.testing.assert_array_equal(few, many[many <= 2**20])
    later = many[many >= 2**20] - 2**20
    assert len(later) and not np.isin(later, few).all()
    assert set(few) <= set(sampler_of(2**20 + 1, 1e-3).sample(0))


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_keys_of_every_generator(kind):
    made = [
        privacy.PoissonSampler(50, 0.5, jax.random.key(seed, impl=kind), batch_size=50)
        for seed in (0, 1)
    ]
    assert not np.array_equal(made[0].sample(0), made[1].sample(0))
    assert len(made[0].key_words) == {"threefry2x32": 2, "rbg": 4}[kind]


def test_raw_keys_and_repr():
    typed, raw = (
        privacy.PoissonSampler(50, 0.5, key, batch_size=50)
        for key in (jax.random.key(987654321), jax.random.PRNGKey(987654321))
    )
    assert typed == raw and hash(typed) == hash(raw)
    assert "987654321" not in repr(typed)
    with pytest.raises(dataclasses.FrozenInstanceError):
        typed.batch_size = 3
    assert typed.expected_size == 25.0


@pytest.mark.parametrize(
    ("examples", "rate", "lengths"),
    [
        (1, 1e-9, [0]),
        (7, 1.0, [7]),
        (8, 1.0, [8]),
        (9, 1.0, [8, 1]),
        (16, 1.0, [8, 8]),
        (17, 1.0, [8, 8, 1]),
    ],
)
def test_batches(examples, rate, lengths):
    """Real indices first, then padding, and nothing lost."""
    found = list(sampler_of(examples, rate, batch_size=8).batches(0))
    assert [is_last for _, is_last in found] == [False] * (len(lengths) - 1) + [True]
    for (indices, _), length in zip(found, lengths, strict=True):
        assert indices.shape == (8,) and indices.dtype == np.int32
        assert (indices[:length] >= 0).all() and (indices[length:] == -1).all()
    real = np.concatenate([indices for indices, _ in found])
    np.testing.assert_array_equal(real[real >= 0], np.arange(sum(lengths)))


def test_no_index_twice():
    sampler = sampler_of(batch_size=10)
    for step in range(10):
        rows = np.concatenate([indices for indices, _ in sampler.batches(step)])
        real = rows[rows >= 0]
        assert len(real) == len(np.unique(real)) == len(sampler.sample(step))


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_take_and_padding_counts_for_nothing(xp):
    """The same clipped sum with NaN where there is padding."""
    grad = jax.jit(
        clipjax.clipped_grad(
            lambda w, x, y: jnp.sum(jnp.tanh(x @ w) - y),
            l2_clip_norm=1.0,
            batch_argnums=(1, 2),
        )
    )
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(30, 3)).astype(np.float32)
    data = {"x": xp.asarray(inputs), "y": xp.arange(30, dtype=xp.float32)}
    sampler, w = sampler_of(30, 0.4, batch_size=8), jnp.ones(3)
    sample, seen, padded = sampler.sample(0), [], 0
    for batch, is_padding, is_last in sampler.take(data, 0):
        assert is_last == (len(seen) == len(sample) // 8)
        assert isinstance(batch["x"], np.ndarray if xp is np else jax.Array)
        poisoned = np.array(batch["x"])
        poisoned[is_padding] = np.nan
        found = [
            grad(w, x, batch["y"], is_padding_example=is_padding)
            for x in (batch["x"], poisoned)
        ]
        np.testing.assert_array_equal(*found)
        assert np.isfinite(found[0]).all()
        padded += is_padding.sum()
        seen.append(np.asarray(batch["y"])[~is_padding])
    assert padded > 0 and len(seen) == 2
    np.testing.assert_array_equal(np.concatenate(seen), sample)


def test_take_refuses_other_data():
    with pytest.raises(ValueError, match="30 examples along the first axis"):
        list(sampler_of(30).take({"x": np.ones((29, 2))}, 0))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"sampling_rate": 0.0}, ValueError, "above 0 and at most 1, got 0.0"),
        ({"sampling_rate": 1e-30}, ValueError, "above 0"),
        ({"sampling_rate": 1.01}, ValueError, "at most 1"),
        ({"sampling_rate": -0.1}, ValueError, "sampling_rate"),
        ({"sampling_rate": np.nan}, ValueError, "sampling_rate"),
        ({"sampling_rate": "0.1"}, TypeError, "sampling_rate"),
        ({"sampling_rate": jnp.float32(0.1)}, TypeError, "sampling_rate"),
        ({"examples": 0}, ValueError, "examples"),
        ({"examples": 10.0}, TypeError, "examples"),
        ({"examples": 2**31}, ValueError, "examples"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": True}, TypeError, "batch_size"),
        ({"key": 0}, TypeError, "key"),
        ({"key": jax.random.split(jax.random.key(0))}, ValueError, "single key"),
    ],
)
def test_refused_arguments(change, error, match):
    arguments = {
        "examples": 10,
        "sampling_rate": 0.1,
        "key": jax.random.key(0),
        "batch_size": 2,
    }
    with pytest.raises(error, match=match):
        privacy.PoissonSampler(**(arguments | change))


@pytest.mark.parametrize(("step", "error"), [(-1, ValueError), (1.0, TypeError)])
def test_refused_steps(step, error):
    with pytest.raises(error, match="step must be an integer"):
        sampler_of().sample(step)
