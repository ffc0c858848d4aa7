"""No example gets through because rounding made its norm too small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import norm

import clipjax


def contributed(loss, params, example, limit):
    """Gives the norm that was measured, and what the example added."""
    grad = clipjax.clipped_grad(
        loss,
        l2_clip_norm=limit,
        keep_batch_dim=False,
        return_grad_norms=True,
        method="ghost",
    )
    total, info = jax.jit(grad)(params, example[None])
    assert int(info.nonfinite_count) == 0
    return float(info.grad_norms[0]), norm({"w": total})


@pytest.mark.parametrize(
    ("inputs", "cotangents"),
    [(1e18, 3e-20), (3e-20, 1e18), (3e17, 1e-19), (1e-12, 1.0)],
)
def test_squares_that_underflow(inputs, cotangents):
    """The factors' squares are zero, their product is not."""
    example = jnp.full(64, inputs)
    length = 64 * inputs * cotangents
    limit = length / 10

    def loss(w, x):
        return cotangents * jnp.sum(x @ w)

    measured, added = contributed(loss, jnp.zeros((64, 64)), example, limit)
    assert measured >= length * (1 - 1e-5)
    assert added <= limit * (1 + 1e-5)


def test_a_gradient_of_zero_stays_zero():
    loss = lambda w, x: jnp.sum(0.0 * (x @ w))  # noqa: E731
    for size in (1e-15, 1.0, 1e15):
        found = contributed(loss, jnp.zeros((64, 64)), jnp.full((3, 64), size), 1.0)
        assert found == (0, 0)


def siamese(tokens, width):
    def loss(w, x):
        one, two, cotangent = x[:, :width], x[:, width : 2 * width], x[:, 2 * width :]
        return jnp.sum((one @ w) * cotangent) - jnp.sum((two @ w) * cotangent)

    def example(random):
        base = 1 + 1e-2 * random.standard_normal((tokens, width))
        other = base + 1e-4 * random.standard_normal((tokens, width))
        cotangent = random.standard_normal((tokens, width))
        return [base, other, cotangent - cotangent.mean(0)]

    return loss, example, width


def long(tokens, width, columns):
    def loss(w, x):
        return jnp.sum((x[:, :width] @ w) * x[:, width:])

    def example(random):
        inputs = 1 + 1e-3 * random.standard_normal((tokens, width))
        cotangent = random.standard_normal((tokens, columns))
        return [inputs, cotangent - cotangent.mean(0)]

    return loss, example, columns


@pytest.mark.parametrize(
    ("model", "limit", "rows"),
    [(siamese(8, 64), 1e-4, 64), (long(2, 20000, 16), 1e-3, 20000)],
    ids=["two sites", "long contraction"],
)
def test_terms_that_cancel(model, limit, rows):
    loss, example, columns = model
    for seed in range(6):
        parts = example(np.random.default_rng(seed))
        one = jnp.asarray(np.concatenate(parts, 1), jnp.float32)
        _, added = contributed(loss, jnp.zeros((rows, columns)), one, limit)
        assert added <= limit * (1 + 1e-4)


def test_derivative_of_norms_beside_a_token_of_zeros():
    """Padding and dead units: the guard against rounding has no derivative."""
    x = jax.random.normal(jax.random.key(1), (3, 2, 8)).at[:, 1].set(0)
    w = jax.random.normal(jax.random.key(0), (8, 8))
    found = []
    for method in ("vmap", "ghost"):
        norms = clipjax.per_example_grad_norms(
            lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2),
            keep_batch_dim=False,
            method=method,
        )
        found.append(jax.grad(lambda w, norms=norms: jnp.sum(norms(w, x)))(w))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4)
