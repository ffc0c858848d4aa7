"""Audits of whole private steps: right ones pass, and each fault is caught."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax import privacy

dp_accounting = pytest.importorskip("dp_accounting")
DELTA, ORDINARY, CANARIES, DIVISOR = 1e-6, 8, 600, 50.0
TIMES = NOISE = 2.0


def loss(params, x, y):
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def linear(width):
    return {"w": jnp.zeros((width, 2)), "b": jnp.zeros((1, 2))}


def claimed(noise_multiplier, sampling_rate, steps, delta):
    """The accountant's ε, for adding or removing one example."""
    event = dp_accounting.PoissonSampledDpEvent(
        sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    accountant = dp_accounting.pld.PLDAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, steps))
    return accountant.get_epsilon(delta)


KNOWN = privacy.canaries(linear(400), CANARIES, jax.random.key(1))


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


@pytest.mark.parametrize("seed", range(3))
def test_a_right_run_passes(seed):
    """At a confidence of 0.999, all audits of this file pass with that of 0.98."""
    for rate, attacks in ((1.0, [np.sum]), (0.5, [np.sum, np.ptp])):
        scores, inserted, epsilon = run(seed, rate=rate)
        for attack in attacks:
            result = privacy.audit(
                attack(scores, axis=0),
                inserted,
                DELTA,
                confidence=0.999,
                epsilon_upper=epsilon,
            )
            assert not result.refutes, result
            assert result.epsilon_lower > 0 or attack is np.ptp or rate < 1


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


@jax.jit
def many_runs(key, inserted, noise_multiplier, by_actual_size):
    """Return one score for each run of one step, on four examples and a canary."""
    params = linear(2)
    known = privacy.canaries(params, 1, jax.random.key(2))
    grad = clipjax.clipped_grad(
        privacy.with_canaries(loss, known, norm=100.0),
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
        return privacy.canary_scores(noisy, known)[0]

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
