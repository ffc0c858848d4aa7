"""Weight clipping, gradient penalty and gradient clipping of a Wasserstein critic."""

import jax
import jax.numpy as jnp
import optax
import pytest

import clipjax

# The critic D(x) = w·x, whose Lipschitz constant is |w|, and real minus fake data:
# it ascends w·difference, which has no maximum.
DIFFERENCE = jnp.array([3.0, 4.0])
PENALTY = 10.0


def train(clip, *, penalty=0.0, weight_limit=None, rate=0.01, steps=2000):
    """The critic's Lipschitz constant after training."""

    def loss(weights, at):
        slope = jax.grad(lambda x: jnp.dot(weights, x))(at)
        excess = jnp.sqrt(jnp.sum(jnp.square(slope))) - 1
        return -jnp.dot(weights, DIFFERENCE) + penalty * jnp.square(excess)

    optimizer = optax.chain(clip, optax.sgd(rate))

    def step(carry, _):
        weights, state = carry
        grads = jax.grad(loss)(weights, jnp.zeros(2))
        updates, state = optimizer.update(grads, state)
        weights = optax.apply_updates(weights, updates)
        if weight_limit is not None:
            weights = jnp.clip(weights, -weight_limit, weight_limit)
        return (weights, state), None

    start = jnp.array([0.1, 0.1])
    (weights, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
    return jnp.sqrt(jnp.sum(jnp.square(weights)))


@pytest.fixture(scope="module")
def lipschitz():
    none, by_value = optax.identity(), clipjax.clip_by_value(0.01)
    arms = {
        "none": lambda: train(none),
        "gradient value": lambda: train(by_value),
        "gradient norm": lambda: train(clipjax.clip_by_global_norm(10.0)),
        "weights": lambda: train(none, weight_limit=0.01),
        "penalty": lambda: train(none, penalty=PENALTY),
        "penalty and norm": lambda: train(
            clipjax.clip_by_global_norm(10.0), penalty=PENALTY
        ),
    }
    found = jax.jit(lambda: {name: arm() for name, arm in arms.items()})()
    return {name: float(norm) for name, norm in found.items()}


def test_three_different_things(lipschitz):
    """C20: weight clipping, gradient penalty and gradient clipping do not replace.

    The weight clip bounds the Lipschitz constant by c√d, the penalty pulls it to about
    1, and a clip of the optimizer's gradient bounds it by nothing.
    """
    assert lipschitz["weights"] == pytest.approx(0.01 * 2**0.5, rel=1e-5)
    # The minimum of -w·a + λ(|w| - 1)² has |w| = 1 + |a| / (2λ).
    assert lipschitz["penalty"] == pytest.approx(1 + 5 / (2 * PENALTY), rel=1e-3)
    assert lipschitz["none"] == pytest.approx(0.01 * 2000 * 5, rel=0.01)
    assert lipschitz["gradient norm"] == pytest.approx(lipschitz["none"], rel=1e-5)


def test_a_norm_of_ten_is_no_part_of_the_penalty(lipschitz):
    """C20: the penalized critic ends at the same point without max_norm=10."""
    assert lipschitz["penalty and norm"] == pytest.approx(
        lipschitz["penalty"], rel=1e-4
    )


def test_clipping_the_gradients_values_does_not_make_it_lipschitz(lipschitz):
    """B88: Wasserstein GANs clip the critic's weights; gradient values bound a step."""
    grown = 0.1 + 0.01 * 0.01 * 2000  # per coordinate, each step ηc
    assert lipschitz["gradient value"] == pytest.approx(grown * 2**0.5, rel=1e-3)
    assert lipschitz["gradient value"] > 20 * lipschitz["weights"]
