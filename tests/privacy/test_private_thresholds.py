"""Thresholds that follow a quantile of norms by noisy counts, and what they cost."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax import privacy

STEPS, BATCH, SIZE = 4000, 32, 40.0
FIVE = 5 / np.sqrt(STEPS)  # five deviations of a mean of as many: 6e-7 to fail
OPTIONS = {
    "initial": 0.1,
    "quantile": 0.5,
    "learning_rate": 0.2,
    "count_deviation": 2.0,
    "floor": 0.0,
    "cap": np.inf,
}


@functools.partial(jax.jit, static_argnames="steps")
def scanned(options, key, norms, padding, is_last, state, steps=None):
    """Gives the states after each batch; the numbers are traced."""
    options = {name: jnp.float32(value) for name, value in options.items()}
    thresholds = privacy.quantile_threshold(
        **options, expected_size=SIZE, key=key, steps=steps
    )
    start = thresholds.init() if state is None else state

    def step(state, batch):
        norms, padding, is_last = batch
        state = thresholds.update(norms, state, padding, is_last=is_last)
        return state, state

    return jax.lax.scan(step, start, (norms, padding, is_last))[1]


def run(norms, *, padding=None, is_last=None, key=1, state=None, steps=None, **changes):
    norms = np.asarray(norms, np.float32)
    padding = np.zeros(norms.shape, bool) if padding is None else padding
    is_last = np.ones(len(norms), bool) if is_last is None else is_last
    states = scanned(
        OPTIONS | changes, jax.random.key(key), norms, padding, is_last, state, steps
    )
    return jax.tree.map(np.asarray, states)


def lognormal(seed=0, steps=STEPS):
    generator = np.random.default_rng(seed)
    return np.exp(generator.standard_normal((steps, BATCH))).astype(np.float32)


def fractions(norms, thresholds, padding):
    """Gives the fraction of clipped examples without noise."""
    clipped = ~(norms <= thresholds[:, None])
    shifted = np.where(padding, 0, clipped - 0.5)
    return 0.5 + shifted.sum(1) / SIZE


def test_the_update_against_numpy():
    norms = lognormal()
    generator = np.random.default_rng(1)
    norms[generator.random(norms.shape) < 0.05] = np.nan
    norms[generator.random(norms.shape) < 0.05] = np.inf
    padding = generator.random(norms.shape) < 0.2
    padding[7] = True
    states = run(norms, padding=padding, quantile=0.6, floor=0.3, cap=1.8)
    before = np.concatenate([[0.3], states.threshold[:-1]]).astype(np.float32)
    before[0] = 0.1  # the limits act on what follows
    atmost = 1 - states.noisy_clip_fraction.astype(np.float64)
    expected = np.clip(before * np.exp(-0.2 * (atmost - 0.6)), 0.3, 1.8)
    np.testing.assert_allclose(states.threshold, expected, rtol=1e-5)
    assert states.threshold.min() == np.float32(0.3)
    assert states.threshold.max() == np.float32(1.8)
    np.testing.assert_array_equal(states.threshold_steps, np.arange(1, STEPS + 1))
    assert not states.pending_excess.any()

    # What is left of the fraction is the noise, of the stated law.
    exact = fractions(norms, before, padding)
    noise = (states.noisy_clip_fraction - exact) * SIZE / 2.0
    assert abs(noise.mean()) < FIVE
    assert abs(noise.std() - 1) < FIVE / np.sqrt(2)
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < FIVE
    assert len(np.unique(noise.round(6))) > 0.99 * STEPS


def test_its_noise_is_none_of_that_of_gradients_and_metrics():
    key = jax.random.key(1)
    states = run(np.zeros((STEPS, BATCH)), padding=np.ones((STEPS, BATCH), bool))
    own = (states.noisy_clip_fraction - 0.5) * SIZE / 2.0
    gaussian = privacy.gaussian_noise(1.0, 1.0, key)

    @jax.jit
    def others():
        def step(state, number):
            noisy, state = gaussian.update(jnp.zeros(()), state)
            fraction = privacy.noisy_clip_fraction(
                jnp.zeros(0),
                1.0,
                count_deviation=1.0,
                expected_size=1.0,
                key=jax.random.fold_in(key, number),
            )
            return state, (noisy, fraction)

        return jax.lax.scan(step, gaussian.init(None), jnp.arange(STEPS))[1]

    for other in others():
        assert abs(np.corrcoef(own, other)[0, 1]) < FIVE


@pytest.mark.parametrize("quantile, z", [(0.5, 0.0), (0.9, 1.2815516)])
def test_it_converges_to_the_quantile(quantile, z):
    """The mean and variance of x = log C, with norms of a lognormal distribution.

    Near the quantile z of log n, of density f, each step takes η (f (x - z) + s ξ) off
    x, where s² = γ(1 - γ)/m + (σ_b/m)² is the variance of b̃. The mean over T steps has
    the deviation s / (f √T), and the bend of the distribution function, -z f, shifts it
    by z var(x) / 2. The variance is η s² / (2 f - η f²); over T steps it is as well
    known as by η f T independent ones, 130 for the larger quantile: 5 √(2 / 130) = 0.6.
    """
    norms = np.exp(np.random.default_rng(2).standard_normal((STEPS, int(SIZE))))
    logs = np.log(run(norms, quantile=quantile).threshold[100:].astype(np.float64))
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    variance = quantile * (1 - quantile) / SIZE + (2.0 / SIZE) ** 2
    spread = 0.2 * variance / (2 * density - 0.2 * density**2)
    deviation = np.sqrt(variance / len(logs)) / density
    assert abs(logs.mean() - z - z * spread / 2) < 5 * deviation
    assert 0.4 * spread < logs.var() < 1.6 * spread


def test_the_threshold_stays_positive_and_finite():
    small, large = np.zeros((STEPS, BATCH)), np.full((STEPS, BATCH), np.nan)
    low = run(small, learning_rate=1.0).threshold
    high = run(large, learning_rate=1.0).threshold
    assert low[-1] == np.finfo(np.float32).tiny
    assert high[-1] == np.finfo(np.float32).max
    assert run(small, floor=0.05).threshold[-1] == np.float32(0.05)
    assert run(large, cap=7.0).threshold[-1] == np.float32(7.0)


def test_a_batch_in_parts_is_one_batch_with_one_noise():
    norms = lognormal(3)
    padding = np.random.default_rng(4).random(norms.shape) < 0.3
    whole = run(norms, padding=padding)
    # The same examples, in two halves of the batch, with padding in place of the rest.
    first = np.arange(BATCH) < 20
    parts = np.stack([padding | first, padding | ~first], 1)[: STEPS // 2]
    parts = parts.reshape(norms.shape)
    split = run(
        np.repeat(norms[: STEPS // 2], 2, 0),
        padding=parts,
        is_last=np.arange(STEPS) % 2 == 1,
    )
    for name, found in split._asdict().items():
        if name != "pending_excess":
            expected = getattr(whole, name)[: STEPS // 2]
            np.testing.assert_array_equal(found[1::2], expected, err_msg=name)
    assert split.pending_excess[::2].any() and not split.pending_excess[1::2].any()
    # Between the parts, nothing but the count has changed.
    for name in ("threshold", "threshold_steps", "noisy_clip_fraction"):
        found = getattr(split, name)
        np.testing.assert_array_equal(found[2::2], found[1:-1:2], err_msg=name)


def test_a_restored_state_goes_on_bit_by_bit():
    norms = lognormal(5)
    once = run(norms)
    state = jax.tree.map(lambda leaf: leaf[99], once)
    state = pickle.loads(pickle.dumps(state))  # arrays of NumPy, no typed key
    rest = np.concatenate([norms[100:], norms[:100]])
    # The key is that of the state, whatever the object was built with.
    again = run(rest, state=jax.tree.map(jnp.asarray, state), key=9)
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one[100:], other[: STEPS - 100])


def test_after_the_planned_steps_nothing_is_released():
    norms = lognormal(6)
    free, planned = run(norms), run(norms, steps=50)
    for name in ("threshold", "noisy_clip_fraction"):
        one, other = getattr(free, name), getattr(planned, name)
        np.testing.assert_array_equal(one[:50], other[:50])
        assert (other[50:] == other[49]).all()
        assert (one[50:] != one[49]).any()
    np.testing.assert_array_equal(free.threshold_steps, planned.threshold_steps)


def test_the_structure_is_constant():
    thresholds = privacy.quantile_threshold(
        count_deviation=1, expected_size=4, key=jax.random.key(0)
    )
    state = thresholds.init()
    shapes = jax.eval_shape(thresholds.update, jnp.ones(4), state)
    assert shapes == jax.eval_shape(lambda: state)
    assert type(shapes) is privacy.QuantileState
    names = {"threshold_key": np.uint32, "threshold_steps": np.int32}
    names |= {"threshold": np.float32, "noisy_clip_fraction": np.float32}
    assert {name: getattr(shapes, name).dtype for name in names} == names
    donated = jax.jit(lambda state: state, donate_argnums=0)
    for _ in range(2):
        donated(thresholds.init())  # a state owns its arrays, the key's too


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"initial": 0.0}, ValueError, "initial must be above 0"),
        ({"initial": -1.0}, ValueError, "initial"),
        ({"initial": "0.1"}, TypeError, "initial"),
        ({"quantile": 0.0}, ValueError, "quantile must be above 0"),
        ({"quantile": 1.0}, ValueError, "quantile must be between 0 and 1"),
        ({"quantile": -0.5}, ValueError, "quantile"),
        ({"learning_rate": -0.1}, ValueError, "learning_rate"),
        ({"count_deviation": 0}, ValueError, "count_deviation must be above 0"),
        ({"count_deviation": -2.0}, ValueError, "count_deviation"),
        ({"expected_size": 0}, ValueError, "expected_size must be above 0"),
        ({"key": 3}, TypeError, "key"),
        ({"floor": -1.0}, ValueError, "floor"),
        ({"floor": 2.0, "cap": 1.0}, ValueError, "cap"),
        ({"floor": 0.2}, ValueError, "initial must be from floor=0.2"),
        ({"cap": 0.05}, ValueError, "initial must be from"),
        ({"steps": 0}, ValueError, "steps"),
        ({"count_deviation": 1e-40}, ValueError, "range of float32"),
        ({"expected_size": np.ones(2)}, ValueError, "single number"),
    ],
)
def test_bad_input(change, error, words):
    options = {"count_deviation": 1.0, "expected_size": 4, "key": jax.random.key(0)}
    with pytest.raises(error, match=words):
        privacy.quantile_threshold(**(options | change))


def test_states_and_flags_of_others():
    thresholds = privacy.quantile_threshold(
        count_deviation=1.0, expected_size=4, key=jax.random.key(0)
    )
    state, norms = thresholds.init(), jnp.ones(4)
    for other in (None, (), tuple(state), state._replace(threshold=jnp.ones(2))):
        with pytest.raises(ValueError, match="quantile_threshold"):
            thresholds.update(norms, other)
    with pytest.raises(TypeError, match="is_last must be a bool"):
        thresholds.update(norms, state, is_last=1)


def test_training_clips_by_the_threshold_before_its_update():
    """Five steps of regression against NumPy, with noise on the count alone."""
    generator = np.random.default_rng(8)
    x = generator.standard_normal((5, 16, 3)).astype(np.float32)
    y = generator.standard_normal((5, 16)).astype(np.float32)
    thresholds = privacy.quantile_threshold(
        0.5, count_deviation=3.0, expected_size=16, key=jax.random.key(2)
    )
    noise = privacy.gaussian_noise(1 / 16, 0.0, jax.random.key(3))

    @jax.jit
    def train(w, x, y):
        def step(carry, batch):
            w, noise_state, state = carry
            grad = clipjax.clipped_grad(
                lambda w, x, y: jnp.sum((x @ w - y) ** 2) / 2,
                l2_clip_norm=state.threshold,
                batch_argnums=(1, 2),
                rescale_to_unit_norm=True,
                return_grad_norms=True,
                normalize_by=16,
            )
            total, output = grad(w, *batch)
            noisy, noise_state = noise.update(total, noise_state)
            used, w = state.threshold, w - 0.3 * state.threshold * noisy
            state = thresholds.update(output.grad_norms, state)
            return (w, noise_state, state), (used, w, state)

        carry = w, noise.init(w), thresholds.init()
        return jax.lax.scan(step, carry, (x, y))[1]

    used, weights, states = jax.tree.map(
        np.asarray, train(np.zeros(3, np.float32), x, y)
    )
    w, threshold = np.zeros(3), 0.5
    for t in range(5):
        assert used[t] == pytest.approx(threshold, rel=1e-6)
        gradients = (x[t] @ w - y[t])[:, None] * x[t]
        norms = np.linalg.norm(gradients, axis=1)
        weigh = np.minimum(1, threshold / norms)
        w = w - 0.3 * (weigh[:, None] * gradients).mean(0)
        np.testing.assert_allclose(weights[t], w, rtol=1e-4, atol=1e-5)
        noisy = states.noisy_clip_fraction[t].astype(np.float64)
        assert abs(noisy - np.mean(norms > threshold)) < 5 * 3.0 / 16
        threshold *= np.exp(0.2 * (noisy - 0.5))
    assert len(np.unique(used)) == 5
