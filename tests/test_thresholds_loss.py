"""Thresholds from the loss and from smoothness."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import assert_same_bits, norm

import clipjax
from clipjax import granularity, rules, thresholds

GRAD = jnp.array([3.0, 4.0])


def allowed(source, losses):
    """Gives the lengths that a clip leaves of a huge gradient, given these losses."""
    clip, huge = clipjax.clip_by(source), 1e6 * GRAD

    @jax.jit
    def scan(state, losses):
        def step(state, loss):
            updates, state = clip.update(huge, state, value=loss)
            return state, optax.tree.norm(updates)

        return jax.lax.scan(step, state, losses)

    losses = jnp.asarray(losses, jnp.float32)
    last, found = scan(clip.init(GRAD), losses)
    return np.asarray(found), last


def relaxed(losses, fast=0.9, slow=0.99, relaxation=1.0, tolerance=0.01):
    """Works out in NumPy by how much a threshold is relaxed."""
    found, seen = [], []
    for loss in losses:
        seen += [loss] * bool(np.isfinite(loss))
        weights = [d ** np.arange(len(seen))[::-1] for d in (fast, slow)]
        quick, lazy = (np.sum(w * seen) / max(np.sum(w), 1e-9) for w in weights)
        progress = max((lazy - quick) / max(abs(lazy), 1e-9), 0.0)
        grown = 1 + relaxation * np.exp(-progress / tolerance)
        before = len(seen) - bool(np.isfinite(loss))
        found.append(grown if before >= 1 / (1 - slow) - 1e-9 else 1.0)
    return np.array(found)


def test_from_loss_relaxes_on_a_plateau_only():
    falling = 10 * 0.98 ** np.arange(200)
    losses = np.concatenate([falling, np.full(1500, falling[-1])])
    found, _ = allowed(thresholds.from_loss(2.0), losses)
    # There is no plateau at the start.
    np.testing.assert_allclose(found[:99], 2.0, rtol=1e-6)
    np.testing.assert_allclose(found[110:200], 2.0, rtol=1e-4)
    assert found[-1] == pytest.approx(4.0, rel=0.01)
    assert np.all(np.diff(found[300:]) >= -1e-5)
    rising, _ = allowed(thresholds.from_loss(2.0), np.arange(1.0, 150.0))
    assert rising[-1] == pytest.approx(4, rel=1e-6)


def test_from_loss_is_its_formula_and_ignores_bad_losses():
    generator = np.random.default_rng(0)
    losses = np.cumsum(generator.standard_normal(150)) - 3
    losses[[0, 40, 41, 90]] = np.nan, np.nan, np.inf, -np.inf
    parts = {"relaxation": 2.0, "tolerance": 0.3}
    source = thresholds.from_loss(1.5, fast_decay=0.5, slow_decay=0.9, **parts)
    found, state = allowed(source, losses)
    expected = 1.5 * relaxed(losses, 0.5, 0.9, **parts)
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    assert int(state.clip_memory["from-loss"].losses_seen) == 146
    capped, _ = allowed(thresholds.from_loss(1.5, slow_decay=0.9, cap=2.0), losses)
    assert capped.max() == pytest.approx(2, rel=1e-6)


def test_from_loss_relaxes_what_learns():
    source = thresholds.from_loss(thresholds.ema(0.3), slow_decay=0.5)
    found, _ = allowed(source, [3.0] * 5)
    np.testing.assert_allclose(found, [5e6, 1.5e6, 3e6, 3e6, 3e6], rtol=1e-6)


def test_the_loss_is_asked_for():
    for source, name in [
        (thresholds.from_loss(1.0), "from_loss"),
        (thresholds.polyak_cap(1.0), "polyak_cap"),
    ]:
        clip = clipjax.clip_by(source)
        with pytest.raises(ValueError, match=rf"{name} needs value: .*update.*value="):
            clip.update(GRAD, clip.init(GRAD))


def test_polyak_cap():
    rate = optax.linear_schedule(0.5, 0.1, 4)
    clip = clipjax.clip_by(thresholds.polyak_cap(rate, lower_bound=-2.0))
    state = clip.init(GRAD)
    for step, loss in enumerate([8.0, 3.0, -1.9, -2.0, -3.0]):
        updates, state = clip.update(GRAD, state, value=jnp.float32(loss))
        expected = max(loss + 2, 0) / (float(rate(step)) * 5)
        assert norm(updates) == pytest.approx(min(expected, 5), rel=1e-5)
    zero, _ = clip.update(0 * GRAD, state, value=jnp.float32(1.0))
    assert_same_bits(zero, 0 * GRAD)


def test_polyak_cap_finds_the_minimum_of_a_norm():
    clip = clipjax.clip_by(thresholds.polyak_cap(7.0))
    params = jnp.array([6.0, -8.0])
    for _ in range(3):
        loss, grads = jax.value_and_grad(jnp.linalg.norm)(params)
        grads = jnp.where(jnp.isfinite(grads), grads, 0)
        updates, _ = clip.update(grads, clip.init(params), value=loss)
        params = params - 7.0 * updates
    np.testing.assert_allclose(params, 0, atol=1e-5)


def test_from_smoothness():
    assert float(thresholds.from_smoothness(2.0, 4.0).value) == 0.5
    clip = clipjax.clip_by(thresholds.from_smoothness(3.0, 1.0), rule=rules.soft)
    updates, _ = clip.update(GRAD, clip.init(GRAD))
    # The step is 1 / (L0 + L1·n) times the gradient.
    np.testing.assert_allclose(updates / 3.0, GRAD / (3.0 + 1.0 * 5), rtol=1e-6)


L0, L1 = 2.0, 3.0


def smooth(x):
    """Has the second derivative L0 + L1·|f'| everywhere."""
    return L0 / L1**2 * (jnp.exp(L1 * jnp.abs(x)) - L1 * jnp.abs(x) - 1)


def descend(function, source, params, steps=200, rate=0.002, **parts):
    """Runs small steps of gradient descent; gives gradients, thresholds, state."""
    clip = clipjax.clip_by(source, **parts)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(function)(params)
        _, state = clip.update(grads, state, params)
        info = state.clip_info
        found = info.block_thresholds if parts else info.clip_threshold
        params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
        return (params, state), (grads, found)

    _, (grads, found) = jax.lax.scan(step, (params, clip.init(params)), length=steps)
    return grads, np.asarray(found)


def test_estimated_smoothness_recovers_its_constants():
    start = jnp.float32(1.0)
    _, found = descend(smooth, thresholds.estimated_smoothness(), start)
    assert np.all(found[:10] == np.inf)
    np.testing.assert_allclose(found[10:], L0 / L1, rtol=0.05)

    together = thresholds.estimated_smoothness(initial_step=0.1)
    grads, found = descend(smooth, together, start)
    norms = np.abs(grads)
    np.testing.assert_allclose(found[:10], 0.1 * norms[:10], rtol=1e-6)
    expected = norms / (L0 + L1 * norms)
    np.testing.assert_allclose(found[10:], expected[10:], rtol=0.02)
    # One more length gives both constants, so that the limit of long steps is 1/L1.
    (a, b), (m, n) = found[[10, 40]], norms[[10, 40]]
    l1 = (m / a - n / b) / (m - n)
    assert l1 == pytest.approx(L1, rel=0.1)
    assert m / a - l1 * m == pytest.approx(L0, rel=0.1)


def test_estimated_smoothness_block_by_block():
    params = {"a": jnp.float32(1.0), "b": jnp.float32(-0.7)}

    def loss(params):
        return smooth(params["a"]) + 10 * smooth(params["b"])  # L0 is 10 times larger

    _, found = descend(
        loss,
        thresholds.estimated_smoothness(minimum_history=5),
        params,
        rate=0.0004,
        granularity=granularity.leaf(),
    )
    assert np.all(found[:5] == np.inf)
    expected = np.broadcast_to([L0 / L1, 10 * L0 / L1], found.shape)
    np.testing.assert_allclose(found[6:], expected[6:], rtol=0.05)


def test_estimated_smoothness_leaves_a_quadratic_alone(cap=50.0):
    source = thresholds.estimated_smoothness(cap=cap)
    curvature = jnp.array([1.0, 1.0])
    quadratic = lambda x: jnp.sum(curvature * x * x)  # noqa: E731
    grads, found = descend(quadratic, source, jnp.array([3.0, -4.0]))
    assert np.all(found >= np.minimum(np.linalg.norm(grads, axis=1), cap))


def test_estimated_smoothness_needs_params():
    clip = clipjax.clip_by(thresholds.estimated_smoothness())
    with pytest.raises(ValueError, match="estimated_smoothness needs params: call"):
        clip.update(GRAD, clip.init(GRAD))
