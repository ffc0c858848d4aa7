"""Audits of whole private steps: right ones pass, and each fault is caught."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax import privacy

pytest.importorskip("dp_accounting")
DELTA, ORDINARY, CANARIES, DIVISOR, NOISE = 1e-6, 8, 600, 50.0, 4.0


def loss(params, x, y):
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def linear(width):
    return {"w": jnp.zeros((width, 2)), "b": jnp.zeros((1, 2))}


def claimed(noise_multiplier, sampling_rate, steps, delta):
    """The accountant's ε, for adding or removing one example."""
    return privacy.epsilon(noise_multiplier, delta, sampling_rate, steps)


KNOWN = privacy.canaries(linear(400), CANARIES, jax.random.key(1))


@pytest.mark.parametrize("method", ["ghost", "vmap"])
def test_a_canary_adds_its_direction(method):
    """And nothing else: not its row's loss, and not to other leaves."""
    params = {"table": jnp.arange(3), "scale": jnp.float32(1.0), **linear(5)}
    known = privacy.canaries(params, 13, jax.random.key(0))
    places = zip(known.leaf.tolist(), known.entry.tolist(), strict=True)
    # b of 2, scale of 1, w of 10, in tree order and without the integers.
    every = [(0, 0), (0, 1), (1, 0), *((2, entry) for entry in range(10))]
    assert sorted(places) == every
    assert set(known.sign.tolist()) == {-1.0, 1.0}

    def scaled(params, x, y, weight=1.0):
        return loss(params, x * params["scale"], y) * weight, y

    grad = clipjax.clipped_grad(
        privacy.with_canaries(scaled, known, norm=2.0, has_aux=True),
        l2_clip_norm=10.0,
        batch_argnums=(1, 2, 3),
        method=method,
        has_aux=True,
    )

    @jax.jit
    def total(numbers):
        return grad(params, jnp.ones((1, 5)), jnp.ones((1, 2)), numbers, weight=2.0)

    for number in range(13):
        found, aux = total(jnp.array([number]))
        scores = privacy.canary_scores(found, known)
        np.testing.assert_allclose(scores, 2.0 * (np.arange(13) == number), atol=1e-3)
        np.testing.assert_array_equal(aux.aux, [[1.0, 1.0]])
    ordinary, _ = total(jnp.array([-1]))
    plain = jax.grad(scaled, has_aux=True, allow_int=True)
    expected, _ = plain(params, jnp.ones((1, 5)), jnp.ones((1, 2)), weight=2.0)
    for name in ("w", "b", "scale"):
        np.testing.assert_allclose(ordinary[name], expected[name], rtol=1e-3)


def test_coins_are_fair_and_follow_from_the_key():
    """Of 4000 coins, 2000 and at most 4 deviations of 32."""
    params = jax.ShapeDtypeStruct((100, 100), jnp.bfloat16)
    first, again, other = (
        privacy.canaries(params, 4000, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert abs(int(first.inserted.sum()) - 2000) <= 128
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert c.shape == (4000,)
    assert not np.array_equal(first.entry, other.entry)
    assert not np.array_equal(first.inserted, other.inserted)


def test_wrong_arguments_of_canaries():
    params, key = jnp.zeros((2, 2)), jax.random.key(0)
    with pytest.raises(ValueError, match="at most the 4 entries"):
        privacy.canaries(params, 5, key)
    with pytest.raises(ValueError, match="count"):
        privacy.canaries(params, 0, key)
    known = privacy.canaries(params, 4, key)
    for norm in (-1.0, jnp.inf, jnp.nan):
        with pytest.raises((TypeError, ValueError), match="norm"):
            privacy.with_canaries(jnp.sum, known, norm=float(norm))
    loss = privacy.with_canaries(jnp.sum, known, norm=1.0)
    with pytest.raises(ValueError, match="one example at a time"):
        loss(params, jnp.arange(3))


@functools.partial(jax.jit, static_argnames="reuses")
def one_run(key, inserted, sampled, clip_norm, reuses=False):
    """Return the scores of each step of a run: an array of steps and canaries."""
    params, size = linear(400), ORDINARY + CANARIES
    grad = clipjax.clipped_grad(
        privacy.with_canaries(loss, KNOWN, norm=100.0),
        l2_clip_norm=clip_norm,
        batch_argnums=(1, 2, 3),
        normalize_by=DIVISOR,
    )
    noise = privacy.gaussian_noise(1 / DIVISOR, NOISE, key)
    x, y = jnp.zeros((size, 400)).at[:ORDINARY].set(1.0), jnp.ones((size, 2))
    numbers = jnp.arange(size) - ORDINARY
    absent = jnp.concatenate([jnp.zeros(ORDINARY, bool), ~inserted])

    def step(carry, drawn):
        params, state = carry
        total = grad(
            params,
            x,
            y,
            jnp.maximum(numbers, -1),
            is_padding_example=absent | ~drawn,
        )
        noisy, new = noise.update(total, state)
        params = jax.tree.map(lambda p, u: p - 0.1 * u, params, noisy)
        scores = privacy.canary_scores(noisy, KNOWN)
        return (params, state if reuses else new), scores

    return jax.lax.scan(step, (params, noise.init(params)), sampled)[1]


def run(seed, *, rate=1.0, steps=4, clip_norm=1.0, reuses=False):
    """Return scores by step, which canaries are in, and the claimed ε."""
    inserted = privacy.canaries(linear(400), CANARIES, jax.random.key(seed)).inserted
    sampled = np.random.default_rng(seed).random((steps, ORDINARY + CANARIES)) < rate
    scores = one_run(jax.random.key(seed), inserted, sampled, clip_norm, reuses=reuses)
    return np.asarray(scores), np.asarray(inserted), claimed(NOISE, rate, steps, DELTA)


@pytest.mark.parametrize("rate, attack", [(1.0, np.sum), (0.5, np.sum), (0.5, np.ptp)])
def test_a_right_run_passes(rate, attack):
    """At 99.9%, all 29 audits of right mechanisms in this file pass with 97%."""
    for seed in range(3):
        scores, inserted, epsilon = run(seed, rate=rate)
        result = privacy.audit(
            attack(scores, axis=0),
            inserted,
            DELTA,
            confidence=0.999,
            epsilon_upper=epsilon,
        )
        assert not result.refutes, result


def test_no_clip_is_caught():
    scores, inserted, epsilon = run(0, clip_norm=jnp.inf)
    result = privacy.audit(scores.sum(axis=0), inserted, DELTA, epsilon_upper=epsilon)
    assert result.refutes, result


def test_noise_reused_is_caught():
    """Noise that is the same at each step cancels in differences of steps."""
    scores, inserted, epsilon = run(0, rate=0.5, reuses=True)
    result = privacy.audit(
        np.ptp(scores, axis=0), inserted, DELTA, epsilon_upper=epsilon
    )
    assert result.refutes, result


ONE = privacy.canaries(linear(2), 1, jax.random.key(2))


@jax.jit
def many_runs(key, inserted, noise_multiplier, by_actual_size):
    """Return one score for each run of one step, on four examples and a canary."""
    params = linear(2)
    grad = clipjax.clipped_grad(
        privacy.with_canaries(loss, ONE, norm=100.0),
        l2_clip_norm=1.0,
        batch_argnums=(1, 2, 3),
        normalize_by=DIVISOR,
    )
    x, y = jnp.ones((5, 2)), jnp.ones((5, 2))
    numbers = jnp.array([-1, -1, -1, -1, 0])

    def one(number, inserted):
        padding = (numbers == 0) & ~inserted
        total = grad(params, x, y, numbers, is_padding_example=padding)
        count = jnp.sum(~padding).astype(jnp.float32)
        factor = jnp.where(by_actual_size, DIVISOR / count, 1.0)
        noise = privacy.gaussian_noise(
            1 / DIVISOR, noise_multiplier, jax.random.fold_in(key, number)
        )
        noisy, _ = noise.update(
            jax.tree.map(lambda g: g * factor, total), noise.init(params)
        )
        return privacy.canary_scores(noisy, ONE)[0]

    return jax.vmap(one)(jnp.arange(len(inserted)), inserted)


# The claim: epsilon = 1 at delta = 1e-5, one step with every example.
SIGMA = 3.7306316348159374


def audit_many(seed, noise_multiplier, delta, *, by_actual_size=False, **options):
    inserted = np.random.default_rng(seed).random(20_000) < 0.5
    scores = many_runs(jax.random.key(seed), inserted, noise_multiplier, by_actual_size)
    epsilon = claimed(SIGMA, 1.0, 1, delta)
    return privacy.audit(
        scores,
        inserted,
        delta,
        design="many_runs",
        epsilon_upper=epsilon,
        **options,
    )


@pytest.mark.parametrize("delta, gaussian", [(1e-5, True), (0.1, False)])
def test_half_the_noise_is_caught(delta, gaussian):
    """It is refuted at 5%, where right noise is not in ten of ten audits at 0.1%."""
    for seed in range(10):
        right = audit_many(seed, SIGMA, delta, gaussian=gaussian, confidence=0.999)
        assert not right.refutes, right
    half = audit_many(0, SIGMA / 2, delta, gaussian=gaussian)
    assert half.refutes, half


def test_right_noise_is_measured():
    result = audit_many(0, SIGMA, 1e-5, gaussian=True)
    assert result.epsilon_upper == pytest.approx(1.0, abs=1e-4)
    assert 0.4 < result.epsilon_lower <= 1


def test_a_divisor_that_depends_on_the_batch_is_caught():
    """A mean over the examples that came: C/5 where C/50 is claimed."""
    result = audit_many(0, SIGMA, 1e-5, by_actual_size=True)
    assert result.refutes, result
