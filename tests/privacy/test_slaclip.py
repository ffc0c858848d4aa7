"""SlaClip: gradient and slack as one vector of at most C, and the next threshold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax import privacy

SLOTS = [1, 2, 3, 8, 13]


@functools.cache
def transforms():
    """Gives the function of a gradient and C to the pair for every number of slots."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def run(gradient, threshold):
        return [privacy.with_slack(threshold, slots)(gradient) for slots in SLOTS]

    return run


def joint(pair):
    arrays = [*jax.tree.leaves(pair.gradient), pair.slack]
    flat = [np.asarray(a, np.float64).reshape(len(a), -1) for a in arrays]
    return np.linalg.norm(np.concatenate(flat, 1), axis=1)


def filled(threshold, norms, slots):
    """Fills slot after slot, as the paper says."""
    rows = np.zeros((len(norms), slots))
    for row, norm in zip(rows, norms, strict=True):
        left = np.sqrt(slots) * max(threshold - norm, 0)
        for k in range(slots):
            row[k] = min(left, threshold / np.sqrt(slots))
            left -= row[k]
    return rows


@pytest.mark.parametrize("threshold", [1e-4, 1.0, 3e3])
def test_the_pair_is_no_longer_than_the_threshold(threshold):
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((400, 6))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    # All of the range, the ends and neighbors of the borders of slots.
    edges = np.array([k / slots for slots in SLOTS for k in range(slots + 1)])
    edges = np.concatenate([edges, edges + 1e-7, edges - 1e-7]).clip(0)
    rest = 2 * generator.random(400 - len(edges))
    norms = threshold * np.concatenate([edges, rest])
    flat = (norms[:, None] * directions).astype(np.float32)
    gradients = {"w": flat[:, :4].reshape(-1, 2, 2), "b": flat[:, 4:]}
    norms = np.linalg.norm(flat.astype(np.float64), axis=1)
    factors = np.minimum(1, threshold / np.maximum(norms, 1e-30))
    for slots, pair in zip(SLOTS, transforms()(gradients, threshold), strict=True):
        lengths = joint(pair) / threshold
        assert lengths.max() < 1 + 1e-6
        # Attained without a gradient, and by those that are clipped.
        attained = lengths[(norms == 0) | (norms >= threshold)]
        np.testing.assert_allclose(attained, 1, rtol=1e-6)
        # The norm at the border of slots: C² - n (C - n), inside a slot less.
        u = norms / threshold
        bound = np.sqrt(np.where(u < 1, 1 - u * (1 - u), 1))
        assert (lengths <= bound + 1e-6).all()
        np.testing.assert_allclose(
            np.asarray(pair.slack) / threshold,
            filled(1.0, norms / threshold, slots),
            atol=2e-6,
        )
        np.testing.assert_allclose(
            np.asarray(pair.gradient["b"]), factors[:, None] * flat[:, 4:], rtol=1e-5
        )


@functools.cache
def clipped():
    """Gives sums of the pair: in units of C, and as they are, with a traced C."""

    def loss(w, x):
        return jnp.sum(x @ w["w"]) + 0 * w["b"]

    @jax.jit
    def run(threshold, x, padding):
        results = []
        for rescale in (True, False):
            grad = clipjax.clipped_grad(
                loss,
                l2_clip_norm=threshold,
                rescale_to_unit_norm=rescale,
                pre_clipping_transform=privacy.with_slack(threshold, 5),
                normalize_by=10.0,
                return_grad_norms=True,
            )
            params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
            total, output = grad(params, x, is_padding_example=padding)
            results.append((total, output, jnp.float32(grad.sensitivity())))
        return results

    return run


@pytest.mark.parametrize("threshold", [1e-3, 2.0, 1e5])
def test_one_example_changes_the_sum_by_the_sensitivity(threshold):
    generator = np.random.default_rng(1)
    scale = np.array([0.0, 0.3, 0.999, 1.0, 1.5, 1e3])
    x = generator.standard_normal((6, 3))
    x *= threshold * (scale / np.linalg.norm(x, axis=1))[:, None]
    x = x.astype(np.float32)
    changes = []
    for i in range(6):
        # Alone against nothing: a difference of sums is rounded like the sums.
        found = clipped()(threshold, x, np.arange(6) != i)
        for (total, output, sensitivity), unit in zip(
            found, (1.0, threshold), strict=True
        ):
            assert float(sensitivity) == pytest.approx(unit / 10)
            length = float(joint(jax.tree.map(lambda a: a[None], total))[0])
            changes.append(length * 10 / unit)
            np.testing.assert_allclose(
                output.grad_norms, threshold * scale, rtol=1e-5, atol=1e-9
            )
    changes = np.reshape(changes, (6, 2))
    assert changes.max() < 1 + 1e-6
    np.testing.assert_allclose(changes[[0, 3, 4, 5]], 1, atol=2e-5)
    assert changes[1].max() < 0.9  # 1 - 0.3 · 0.7


def test_replacing_one_example_changes_the_sum_by_twice_that():
    x = np.array([[3.0, 0, 0], [-3.0, 0, 0]], np.float32)
    one, other = (clipped()(2.0, x, np.arange(2) != i)[0][0] for i in range(2))
    change = jax.tree.map(lambda a, b: (a - b)[None], one, other)
    assert 10 * joint(change)[0] == pytest.approx(2, abs=2e-5)


def test_examples_that_are_left_out_have_no_slack():
    x = np.array([[np.nan, 0, 0], [np.inf, 0, 0], [0, 0, 0], [0, 0, 0]], np.float32)
    padding = np.array([False, False, True, False])
    total, output, _ = clipped()(2.0, x, padding)[0]
    assert output.nonfinite_count == 2
    np.testing.assert_allclose(total.slack * 10, np.full(5, 5**-0.5), rtol=1e-5)
    none = clipped()(2.0, x, np.ones(4, bool))[0][0]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(none))
    # A threshold of 0, traced, as for clipped_grad: nothing.
    zero = clipped()(0.0, np.ones((4, 3), np.float32), padding)[1][0]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zero))


def test_narrow_parameters_and_leaves_that_are_none_of_the_gradient():
    grad = clipjax.clipped_grad(
        lambda w, x: jnp.sum(x @ w["w"]),
        l2_clip_norm=2.0,
        pre_clipping_transform=privacy.with_slack(2.0, 4),
    )
    params = {"w": jnp.zeros(2, jnp.bfloat16), "steps": jnp.array(3)}
    total = jax.jit(grad)(params, jnp.array([[3.0, 4.0], [0.5, 0.0]], jnp.bfloat16))
    # float32, as the noise needs it
    np.testing.assert_allclose(total.gradient["w"], [1.7, 1.6], rtol=1e-4)
    np.testing.assert_allclose(total.slack, [1.0, 1.0, 1.0, 0.0], atol=1e-4)
    noise = privacy.gaussian_noise(grad.sensitivity(), 1.0, jax.random.key(0))
    noisy, _ = noise.update(total, noise.init(total))
    assert type(noisy) is privacy.WithSlack


def published(threshold, fractions, rate, floor, cap):
    """Gives the next threshold as the published code computes it."""
    near_zero = min(max(fractions[-1] / threshold, 0), 1)
    target = min(max(1 - (1 - near_zero) / 2, 0), 1)
    following = threshold * np.exp(rate * (target - fractions[0]))
    return min(max(following, floor), cap)


def test_the_next_threshold_is_the_published_one():
    generator = np.random.default_rng(2)
    run = jax.jit(jax.vmap(privacy.slack_threshold))
    thresholds = np.exp(2 * generator.standard_normal(500)).astype(np.float32)
    fractions = 0.5 + generator.standard_normal((500, 4)).astype(np.float32)
    found = run(thresholds, fractions / 2)  # √K = 2
    expected = [
        published(t, f, 0.5, 0.1, 50.0)
        for t, f in zip(thresholds, fractions, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.min(found) == np.float32(0.1) and np.max(found) == 50
    changed = privacy.slack_threshold(
        2.0, fractions[0] / 2, learning_rate=0.1, floor=0.0, cap=np.inf
    )
    assert changed == pytest.approx(published(2.0, fractions[0], 0.1, 0, 1e9), rel=1e-5)


def test_it_settles_where_half_of_the_norms_are_below():
    """As published: the first slot holds γ = (1 + r) / 2, and here r = 0."""
    norms = np.exp(0.3 * np.random.default_rng(3).standard_normal(4000))
    x = np.zeros((4000, 1), np.float32)
    x[:, 0] = norms
    noise = privacy.gaussian_noise(1 / 4000, 1.0, jax.random.key(4))

    @jax.jit
    def train(x):
        def step(carry, _):
            threshold, state = carry
            grad = clipjax.clipped_grad(
                lambda w, x: jnp.sum(x @ w),
                l2_clip_norm=threshold,
                rescale_to_unit_norm=True,
                pre_clipping_transform=privacy.with_slack(threshold, 16),
                normalize_by=4000.0,
            )
            noisy, state = noise.update(grad(jnp.zeros(1), x), state)
            return (privacy.slack_threshold(threshold, noisy.slack), state), threshold

        carry = jnp.float32(0.2), noise.init(None)
        return jax.lax.scan(step, carry, length=60)[1]

    found = np.asarray(train(x))
    assert found[0] == np.float32(0.2)
    # The first of 16 slots averages over C (1 - 1/16) to C, whose middle goes to the
    # median: C = median / (1 - 1/32). The noise moves C by 0.5 · 4 / 4000 a step.
    expected = np.median(norms) / (1 - 1 / 32)
    np.testing.assert_allclose(found[-20:], expected, atol=0.01)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: privacy.with_slack(0.0, 4), ValueError, "threshold must be above 0"),
        (lambda: privacy.with_slack(np.inf, 4), ValueError, "threshold"),
        (lambda: privacy.with_slack(-1.0, 4), ValueError, "threshold"),
        (lambda: privacy.with_slack(None, 4), TypeError, "threshold"),
        (lambda: privacy.with_slack(1.0, 0), ValueError, "slots"),
        (lambda: privacy.with_slack(1.0, 2.0), TypeError, "slots"),
        (lambda: privacy.slack_threshold(0.0, np.ones(2)), ValueError, "threshold"),
        (lambda: privacy.slack_threshold(1.0, np.ones(())), ValueError, "noisy_slack"),
        (lambda: privacy.slack_threshold(1.0, np.ones(0)), ValueError, "noisy_slack"),
        (
            lambda: privacy.slack_threshold(1.0, np.ones(2), floor=3.0, cap=2.0),
            ValueError,
            "cap",
        ),
        (
            lambda: privacy.slack_threshold(1.0, np.ones(2), learning_rate=-1.0),
            ValueError,
            "learning_rate",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
