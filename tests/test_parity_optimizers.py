"""Clips that stand in or after an optimizer, against answers stored in golden/."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import assert_same_bits
from stored_answers import factors, load, replay, rows, stacked, train

import clipjax
from clipjax.thresholds.entries import AverageMaximum
from clipjax.wrappers.momentum import momentum_of


def mixing_dtypes(optimizer):
    """Lets Optax's Adam mix dtypes, which it cannot do without."""

    def update(*arguments, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*arguments, **extra)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


# Cases 0 and 2 are these without decay, which no gradient depends on.
@pytest.mark.parametrize("number", [1, 3])
def test_stable_update_clip(number):
    """StableAdamW of torch-optimi 0.3.3.

    Its weight decay has the rate that the clip reduced. In clipjax decay comes after
    the clip, at the full rate, so that a spike does not switch it off; here it is
    reduced by hand.
    """
    stored, script = load("stable_adamw")
    case, settings = stored["cases"][number], stored["settings"]
    rate, decay = settings["lr"], case["weight_decay"]
    optimizer = mixing_dtypes(
        optax.chain(
            clipjax.stable_update_clip(*settings["betas"], settings["eps"]),
            optax.scale_by_learning_rate(rate),
        )
    )
    params = jax.tree.map(jnp.asarray, script.parameters())

    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        by = factors(state[0].clip_state.clip_info)
        params = [
            param + update - rate * decay * factor * param
            for param, update, factor in zip(params, updates, by, strict=True)
        ]
        return (params, state), (params, by)

    gradients = script.gradients(case["size"])
    found, by = train(step, (params, optimizer.init(params)), gradients)
    np.testing.assert_allclose(rows(found), case["parameters"], rtol=1e-6)
    assert np.all(by[script.SPIKE] < 0.5)


def test_stable_update_clip_without_a_limit_is_scale_by_adam():
    _, script = load("stable_adamw")
    steps = stacked(script.gradients(1.0))
    betas, eps = (0.9, 0.99), 1e-6
    updates, _ = replay(
        lambda: mixing_dtypes(clipjax.stable_update_clip(*betas, eps, math.inf)), steps
    )
    expected, _ = replay(lambda: mixing_dtypes(optax.scale_by_adam(*betas, eps)), steps)
    assert_same_bits(updates, expected)


class SecondMoment(NamedTuple):
    nu: Any


def watch_second_moment(decay):
    """Keeps an average of squares, and gives the updates as they came."""

    def update(updates, state, params=None):
        del params
        moment = decay * state.nu + (1 - decay) * jnp.square(updates)
        return updates, SecondMoment(moment)

    return optax.GradientTransformation(
        lambda params: SecondMoment(jnp.zeros_like(params)), update
    )


# With a threshold of 5000, case 0 clips three entries.
@pytest.mark.parametrize("number", [1, 2])
def test_spam_clip(number):
    """The authors' optimizer, galore_torch/SPAM.py at commit 67a96a0."""
    stored, script = load("spam")
    case = stored["cases"][number]
    updates, _ = replay(
        lambda: clipjax.spam_clip(
            watch_second_moment(case["betas"][1]),
            case["threshold"],
            warmup_steps=case["grad_accu_steps"],
        ),
        np.asarray(script.gradients()),
    )
    np.testing.assert_allclose(rows(updates), case["clipped"], rtol=1e-6)
    is_clipped = rows(updates) != rows(script.gradients())
    assert is_clipped.sum() == (3, 14, 63)[number]


class Moments(NamedTuple):
    count: Any
    mu: Any
    nu: Any


def spam_adam(b1, b2, learning_rate, eps):
    """Adam, with epsilon added before the correction of the bias."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Moments(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates, state, params=None):
        del params
        count = state.count + 1
        # 1 - b**count without the cancellation
        steps = count.astype(jnp.float32)
        first, second = (-jnp.expm1(steps * math.log(b)) for b in (b1, b2))
        mu = b1 * state.mu + (1 - b1) * updates
        nu = b2 * state.nu + (1 - b2) * jnp.square(updates)
        step = mu / (jnp.sqrt(nu) + eps)
        rate = learning_rate * jnp.sqrt(second) / first
        return -rate * step, Moments(count, mu, nu)

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("number", [1, 3])
def test_spam(number):
    """The same optimizer; in the last case it resets its moments, and warms up.

    Like it, clipjax.periodic_reset leaves Adam's count alone by default.
    """
    stored, script = load("spam")
    case, settings = stored["cases"][number], stored["settings"]
    inner = spam_adam(*case["betas"], settings["lr"], settings["eps"])
    period = case.get("update_proj_gap")
    assert (period is None) == (number < 3)
    if period is not None:
        inner = clipjax.periodic_reset(inner, period, warmup_steps=case["warmup_epoch"])
    guard = case["grad_accu_steps"]
    optimizer = clipjax.spam_clip(
        inner, case["threshold"], warmup_steps=guard, period=period
    )
    params = jnp.asarray(script.parameters())

    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    found = train(step, (params, optimizer.init(params)), script.gradients())
    # Parameters are near 1, and each of 30 steps rounds them: some ulps of 1.
    np.testing.assert_allclose(rows(found), case["parameters"], rtol=0, atol=3e-7)


def side_by_side(clips):
    """Gives the updates of several clips of the same gradient, by name."""

    def init(params):
        return {name: clip.init(params) for name, clip in clips.items()}

    def update(grads, state, params=None):
        del params
        found = {name: clip.update(grads, state[name]) for name, clip in clips.items()}
        updates, state = ({n: f[i] for n, f in found.items()} for i in (0, 1))
        return updates, state

    return optax.GradientTransformation(init, update)


# Case 2 is case 0 with another decay of Adam's, and so with the same clips.
@pytest.mark.parametrize("number", range(2))
def test_stable_spam_clip(number):
    """The authors' optimizer, galore_torch/stablespam.py at commit ab1fe5b.

    After step 17 leaf 0 has a gradient of zero, which enters the averages of the
    reference. In clipjax zero is no measurement, lest thresholds sink while a layer is
    unused; so that leaf is compared until then, and the other one throughout.
    """
    stored, script = load("stable_spam")
    case = stored["cases"][number]
    names = ("gamma1", "gamma2", "gamma3")
    gammas = {name: case.get(name, stored["settings"][name]) for name in names}
    steps = stacked(script.gradients())
    size = steps[0][0].size
    assert not np.any(steps[0][18]) and np.all(steps[0][:18])

    def compare(updates, expected):
        found, expected = rows(updates), np.array(expected)
        before, other = np.s_[:18, :size], np.s_[:, size:]
        np.testing.assert_allclose(found[before], expected[before], rtol=1e-6)
        np.testing.assert_allclose(found[other], expected[other], rtol=1e-6)

    both = {
        "clipped": clipjax.clip_entries(AverageMaximum(gammas["gamma3"])),
        "normalized": clipjax.stable_spam_clip(**gammas),
    }
    updates, _ = replay(lambda: side_by_side(both), steps)
    compare(updates["clipped"], case["clipped"])
    assert np.sum(rows(updates["clipped"]) != rows(steps)) == 16
    compare(updates["normalized"], case["normalized"])


# The clip of case 1 is that of cases 3 and 4, in which its factors count for more.
@pytest.mark.parametrize("number", [0, 3, 4])
def test_clippy(number):
    """Clippy Adagrad of Keras RS at commit 6039fa0, whose Adagrad is written out here.

    Its accumulator takes today's square in after the step, unless it is the standard
    one. Case 2 allows a change relative to the accumulator too, which clipjax does not
    know: it stands after any optimizer.
    """
    stored, script = load("clippy")
    case = stored["cases"][number]
    settings = stored["settings"] | case
    is_standard = settings["use_standard_accumulator_update"]
    clip = clipjax.clippy(
        settings["variable_relative_threshold"], settings["absolute_threshold"]
    )
    assert settings["accumulator_relative_threshold"] == 0
    params = jax.tree.map(jnp.asarray, script.parameters())
    start = settings["initial_accumulator_value"]

    def step(carry, grads):
        params, squares, state = carry
        entering = grads
        if is_standard:
            squares = jax.tree.map(lambda a, g: a + g * g, squares, entering)
        deltas = jax.tree.map(
            lambda a, g: (
                -settings["learning_rate"] * g * jax.lax.rsqrt(a + settings["epsilon"])
            ),
            squares,
            grads,
        )
        updates, state = clip.update(deltas, state, params)
        by = factors(state.clip_info)
        if settings["clip_accumulator_update"]:
            entering = [g * factor for g, factor in zip(grads, by, strict=True)]
        if not is_standard:
            squares = jax.tree.map(lambda a, g: a + g * g, squares, entering)
        params = optax.apply_updates(params, updates)
        return (params, squares, state), (params, by)

    first = jax.tree.map(lambda param: jnp.full_like(param, start), params)
    found, by = train(step, (params, first, clip.init(params)), script.gradients())
    np.testing.assert_allclose(by, case["factors"], rtol=1e-6)
    # Parameters are near 1, and each of 10 steps rounds them: some ulps of 1.
    np.testing.assert_allclose(rows(found), case["parameters"], rtol=0, atol=3e-7)
    assert np.all(np.sum(by < 1, axis=0) >= 5)


@pytest.mark.parametrize("inner", [optax.scale_by_adam(0.8), optax.trace(0.8)])
@jax.numpy_dtype_promotion("standard")  # Adam itself mixes dtypes
def test_clip_by_momentum(inner):
    """The rule of OLMo's optimizer, in NumPy: `max_grad_norm_ratio`, without its 1e-6.

    The momentum averages clipped gradients; `optax.trace` adds them instead.
    """
    share = 1.0 if isinstance(inner.init(jnp.zeros(1)), optax.TraceState) else 0.2
    clip = clipjax.clip_by_momentum(3.0, 2.0, inner)
    generator = np.random.default_rng(0)
    params = {"a": np.zeros(4, np.float32), "b": np.zeros((2, 3), np.float32)}
    state, update = clip.init(params), jax.jit(clip.update)
    momentum = {name: np.zeros(leaf.shape) for name, leaf in params.items()}
    clipped = 0
    for step in range(20):
        scale = 30.0 if step == 12 else 1.0
        grads = {
            name: (scale * generator.normal(size=leaf.shape)).astype(np.float32)
            for name, leaf in params.items()
        }
        _, state = update(grads, state)
        for name, grad in grads.items():
            length = np.linalg.norm(momentum[name])
            limit = 3.0 * length if step else 2.0
            factor = min(1.0, limit / np.linalg.norm(grad))
            clipped += factor < 1
            momentum[name] = 0.8 * momentum[name] + share * factor * grad
            found = momentum_of(state)[name]
            np.testing.assert_allclose(found, momentum[name], rtol=1e-5, atol=1e-6)
    assert 2 <= clipped < 40


@pytest.mark.parametrize(("ratio", "survives"), [(2.0, False), (10.0, True)])
@jax.numpy_dtype_promotion("standard")
def test_a_small_ratio_to_the_momentum_shortens_noise_to_nothing(ratio, survives):
    clip = clipjax.clip_by_momentum(ratio)
    noise = np.random.default_rng(0).normal(size=(200, 100)).astype(np.float32)

    def step(state, grad):
        _, state = clip.update(grad, state)
        return state, state.clip_state.clip_info.norm_after

    _, lengths = jax.jit(lambda n: jax.lax.scan(step, clip.init(n[0]), n))(noise)
    assert (lengths[-1] > 1e-3) == survives
