"""What clipping operators do to norms, distances and directions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import cosine, norm

import clipjax
from clipjax import norms, rules


def clipped(clip, grads):
    return clip.update(grads, clip.init(grads))[0]


def test_soft_and_hard_agree_to_a_factor_of_two_only():
    """B1, B2: the factors differ by up to two, at n = γ, and never coincide."""
    ratio = jnp.asarray(10.0 ** np.arange(-6, 7), jnp.float32)
    one = jnp.ones_like(ratio)
    quotient = np.asarray(rules.soft.factor(ratio, one) / rules.hard.factor(ratio, one))
    assert quotient.min() == quotient[6] == 0.5
    assert np.all(np.delete(quotient, 6) > 0.9) and np.all(quotient < 1)
    assert np.all(quotient[[0, -1]] > 1 - 2e-6)
    small = jnp.array([0.003, 0.004])
    kept = clipped(clipjax.clip_by_global_norm(1.0), small)
    assert np.array_equal(kept, small)
    assert norm(clipped(clipjax.soft_clip_by_global_norm(1.0), small)) < 0.996 * 0.005


def test_the_norm_after_a_clip_is_that_of_the_norm_that_measured():
    """C10, B3: ‖clip(g)‖ = min(‖g‖, C) holds in the norm that the clip uses only."""
    grads = jnp.array([3.0, -4.0, 1.0])
    powers = {norms.l1: 1, norms.l2: 2, norms.linf: np.inf}
    for measure, power in powers.items():
        for threshold in (2.0, 10.0):
            after = clipped(clipjax.clip_by(threshold, norm=measure), grads)
            expected = min(norm(grads, power), threshold)
            assert norm(after, power) == pytest.approx(expected, rel=1e-6)
    largest = clipped(clipjax.clip_by(2.0, norm=norms.linf), grads)
    assert norm(largest) > 2.5  # its 2-norm is not bounded by C
    shortest = clipped(clipjax.clip_by(2.0, norm=norms.l1), grads)
    assert norm(shortest) < 1.5


def stretch(clip, pairs):
    """How much farther apart two gradients are after the clip, at the most."""
    after = clipped_each(clip, pairs)
    far, near = (
        np.linalg.norm(both[:, 0] - both[:, 1], axis=1)
        for both in np.asarray([pairs, after], np.float64)
    )
    return (near / far).max()


def clipped_each(clip, pairs):
    update = jax.vmap(jax.vmap(lambda grads: clip.update(grads, clip.init(grads))[0]))
    return jax.jit(update)(jnp.asarray(pairs, jnp.float32))


# Two gradients that a clip to 1 takes apart, and how far.
APART = {
    "linf": (clipjax.clip_by(1.0, norm=norms.linf), [[1, 1, 1], [1.01, 1, 1]], 2**0.5),
    "l1": (clipjax.clip_by(1.0, norm=norms.l1), [[1, 0, 0], [1, 0.01, 0.01]], 3**0.5),
    "g/|g|": (clipjax.normalise_by_global_norm(1.0), [[0.01, 0, 0], [0, 0.01, 0]], 100),
}


def test_which_clips_are_non_expansive():
    """C10, B4: clips by 2-norm and by value are; other norms and g/‖g‖ are not."""
    pairs = np.random.default_rng(0).standard_normal((20_000, 2, 3)).astype("f4")
    pairs[:3] = [pair for _, pair, _ in APART.values()]
    for clip in (
        clipjax.clip_by_global_norm(1.0),
        clipjax.clip_by_value(1.0, report=False),
        clipjax.soft_clip_by_global_norm(1.0),
    ):
        assert 0.9 < stretch(clip, pairs) < 1 + 1e-5
    for clip, pair, factor in APART.values():
        assert stretch(clip, [pair]) == pytest.approx(factor, rel=0.03)


def test_only_the_two_norm_clip_is_a_projection():
    """C10, B5: scaling by another norm is not the nearest point of its ball."""
    grads = jnp.array([3.0, 1.0])
    scaled = clipped(clipjax.clip_by(1.0, norm=norms.linf), grads)
    np.testing.assert_allclose(scaled, [1.0, 1 / 3], rtol=1e-6)
    nearest = clipped(clipjax.clip_by_value(1.0), grads)
    np.testing.assert_array_equal(nearest, [1.0, 1.0])
    assert norm(grads - nearest) < norm(grads - scaled) - 0.1
    # The 2-norm clip: no other point of the disk is nearer.
    projected = np.asarray(clipjax.project_onto_ball(grads, 1.0))
    np.testing.assert_array_equal(
        clipped(clipjax.clip_by_global_norm(1.0), grads), projected
    )
    angles = np.linspace(0, 2 * np.pi, 100_000)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    distances = np.linalg.norm(circle - np.asarray(grads), axis=1)
    np.testing.assert_allclose(circle[distances.argmin()], projected, atol=1e-4)
    assert norm(grads - projected) <= distances.min() + 1e-6


def test_the_bound_of_a_clip_by_layer_is_attained():
    """C10, B11: the norm is at most √ΣC², with equality where all layers clip."""
    limits = {"a": 1.0, "b": 2.0, "c": 3.0}
    clip = clipjax.clip_by_leaf_norm(limits)
    grads = {name: 10 * jnp.ones(4) for name in limits}
    assert norm(clipped(clip, grads)) == pytest.approx(14**0.5, rel=1e-6)
    grads["c"] = jnp.full(4, 0.5)
    assert norm(clipped(clip, grads)) == pytest.approx(6**0.5, rel=1e-6)


def moves(optimizer, grads, steps=200):
    """The lengths of the steps of an optimizer with a constant gradient."""

    @jax.jit
    def run(state):
        def step(state, _):
            updates, state = optimizer.update(grads, state, grads)
            return state, jnp.linalg.norm(updates)

        return jax.lax.scan(step, state, length=steps)[1]

    with jax.numpy_dtype_promotion("standard"):
        return np.asarray(run(optimizer.init(grads)))


def test_the_longest_step_is_that_of_the_optimizer():
    """B6: a step is at most ηC under SGD, ηC/(1 - μ) with momentum, any with Adam."""
    grads, rate = jnp.array([30.0, -40.0]), 0.1
    longest = {
        (optimizer.__name__, threshold): moves(
            optax.chain(
                clipjax.clip_by_global_norm(threshold), optimizer(rate, **more)
            ),
            grads,
        ).max()
        for optimizer, more in ((optax.sgd, {}), (optax.adam, {}))
        for threshold in (1.0, 0.01)
    }
    for threshold in (1.0, 0.01):
        assert longest["sgd", threshold] == pytest.approx(rate * threshold, rel=1e-5)
        # Adam: η in each of two entries, whatever C.
        assert longest["adam", threshold] == pytest.approx(rate * 2**0.5, rel=1e-3)
    momentum = optax.chain(clipjax.clip_by_global_norm(1.0), optax.sgd(rate, 0.9))
    assert moves(momentum, grads).max() == pytest.approx(10 * rate, rel=1e-4)


def test_an_example_that_shows_the_turn():
    """C21, B7: value clipping turns (100, 0.001) by 0.06° only, but (100, 1) by 44°."""
    clips = clipjax.clip_by_value(1.0), clipjax.clip_by_global_norm(1.0)
    for entry, turn in ((0.001, 0.0567), (1.0, 44.43)):
        grads = jnp.array([100.0, entry])
        by_value, by_norm = (clipped(clip, grads) for clip in clips)
        np.testing.assert_array_equal(by_value, np.float32([1.0, entry]))
        np.testing.assert_allclose(by_norm[1], entry / 100, rtol=1e-3)
        angle = np.degrees(np.arctan2(*np.asarray(by_value)[::-1].astype(np.float64)))
        angle -= np.degrees(np.arctan2(entry, 100))
        assert angle == pytest.approx(turn, rel=1e-3)
        assert cosine(grads, by_value) == pytest.approx(np.cos(np.radians(angle)))
        assert cosine(grads, by_norm) == pytest.approx(1, abs=1e-7)


DRAW = np.random.default_rng(0)
SAMPLES = {  # the limit is E|g| / √(E g²)
    "Gaussian": (DRAW.standard_normal(200_000), (2 / np.pi) ** 0.5),
    "Laplace": (DRAW.laplace(size=200_000), 0.5**0.5),
    "uniform": (DRAW.uniform(-1, 1, 200_000), 0.75**0.5),
    "outliers": (
        DRAW.standard_normal(200_000) * np.where(np.arange(200_000) % 100, 1, 100),
        (2 / np.pi) ** 0.5 * 1.99 / (0.99 + 0.01 * 1e4) ** 0.5,
    ),
}


@pytest.mark.parametrize(
    "size, expected", [(2, 0.9003), (10, 0.8180), (100, 0.7999), (10_000, 0.7979)]
)
def test_the_cosine_of_few_gaussian_entries_is_larger(size, expected):
    """B9: the mean is √d·Γ(d/2)/(√π·Γ((d+1)/2)) for d entries: √(2/π) is its limit."""
    log_gammas = math.lgamma(size / 2) - math.lgamma((size + 1) / 2)
    assert math.exp(log_gammas) * math.sqrt(size / np.pi) == pytest.approx(
        expected, abs=1e-4
    )
    grads = np.random.default_rng(1).standard_normal((200_000 // size, 1, size))
    clip = clipjax.clip_by_value(1e-6, report=False)
    after = np.asarray(clipped_each(clip, grads), np.float64)
    # All entries have the length of the threshold.
    cosines = np.sum(after * grads, -1) / (
        np.linalg.norm(after, axis=-1) * np.linalg.norm(grads, axis=-1)
    )
    assert cosines.mean() == pytest.approx(expected, abs=2e-3)


def test_zeros_do_not_count_for_the_cosine_of_value_clipping():
    """B9: of a sparse gradient the limit is that of the entries that are not zero."""
    sparse = DRAW.standard_normal(200_000) * (DRAW.uniform(size=200_000) < 0.1)
    grads = jnp.asarray(sparse, jnp.float32)
    after = clipped(clipjax.clip_by_value(1e-4, report=False), grads)
    assert cosine(grads, after) == pytest.approx((2 / np.pi) ** 0.5, abs=0.01)
    # With the zeros counted in the means it would be a third of that.
    counted = np.abs(sparse).mean() / np.sqrt(np.square(sparse).mean())
    assert counted == pytest.approx((0.1 * 2 / np.pi) ** 0.5, abs=0.01)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_cosine_of_value_clipping_depends_on_the_distribution(name):
    """C21, B9: √(2/π) is the limit for Gaussian entries, and for no others."""
    sample, limit = SAMPLES[name]
    grads = jnp.asarray(sample, jnp.float32)
    after = clipped(clipjax.clip_by_value(1e-4, report=False), grads)
    assert cosine(grads, after) == pytest.approx(limit, rel=0.03)
    assert (name == "Gaussian") == (abs(cosine(grads, after) - 0.798) < 0.01)


def test_a_clip_by_layer_turns_the_gradient_a_global_one_does_not():
    """B8: norm clipping keeps the direction if it is global; more layers, more turn."""
    cosines = []
    for layers in (4, 16, 64):
        sizes = np.exp(1.5 * np.random.default_rng(0).standard_normal((50, layers)))
        grads = np.float32(sizes[..., None] * np.ones(3))
        by_layer, by_norm = (
            np.asarray(clipped_each(clip, grads[:, None]))[:, 0]
            for clip in (
                clipjax.clip_by_leaf_norm(1e-3, stacked=1),
                clipjax.clip_by_global_norm(1e-3),
            )
        )
        turned = [cosine(g, u) for g, u in zip(grads, by_layer, strict=True)]
        # All layers have norm C afterwards: the cosine is Σ s / √(L Σ s²).
        expected = sizes.sum(1) / (layers * np.square(sizes).sum(1)) ** 0.5
        np.testing.assert_allclose(turned, expected, rtol=1e-5)
        cosines.append(np.mean(turned))
        kept = [cosine(g, u) for g, u in zip(grads, by_norm, strict=True)]
        np.testing.assert_allclose(kept, 1, atol=1e-6)
    assert 0.8 > cosines[0] > cosines[1] > cosines[2] > 0.3


def test_torch_does_not_reach_the_threshold_exactly():
    """C24, B13: torch multiplies by C/(n + 1e-6); clipjax reaches C to its rounding."""
    exact, torch = clipjax.clip_by_global_norm(1.0), clipjax.torch_clip_grad_norm(1.0)
    grads = jnp.array([1.2, 1.6])
    assert norm(clipped(exact, grads)) == pytest.approx(1, abs=1.2e-7)
    assert norm(clipped(torch, grads)) == pytest.approx(0.9999995, abs=1.2e-7)
    # At n = C, torch shortens what is within the threshold already.
    grads = jnp.array([1.0, 0.0])
    assert norm(clipped(exact, grads)) == 1
    assert norm(clipped(torch, grads)) == pytest.approx(1 - 1e-6, abs=1.2e-7)
