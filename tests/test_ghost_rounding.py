"""No example gets through because rounding made its norm too small."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import norm

import clipjax


@functools.partial(jax.jit, static_argnums=0)
def clip(loss, params, example, limit):
    """Clips one example; compiled once for all thresholds and examples of a loss."""
    grad = clipjax.clipped_grad(
        loss,
        l2_clip_norm=limit,
        keep_batch_dim=False,
        return_grad_norms=True,
        method="ghost",
    )
    return grad(params, jax.tree.map(lambda array: array[None], example))


def contributed(loss, params, example, limit):
    """Gives the norm that was measured, and what the example added."""
    total, info = clip(loss, params, example, np.float32(limit))
    assert int(info.nonfinite_count) == 0
    return float(info.grad_norms[0]), norm({"w": total})


def scaled_sum(w, example):
    inputs, cotangents = example
    return cotangents * jnp.sum(inputs @ w)


@pytest.mark.parametrize(
    ("inputs", "cotangents"),
    [(1e18, 3e-20), (3e-20, 1e18), (3e17, 1e-19), (1e-12, 1.0)],
)
def test_squares_that_underflow(inputs, cotangents):
    """The factors' squares are zero, their product is not."""
    example = (np.full(64, inputs, np.float32), np.float32(cotangents))
    length = 64 * inputs * cotangents
    limit = length / 10
    measured, added = contributed(scaled_sum, jnp.zeros((64, 64)), example, limit)
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
        one = np.concatenate(parts, 1).astype(np.float32)
        _, added = contributed(loss, jnp.zeros((rows, columns)), one, limit)
        assert added <= limit * (1 + 1e-4)


def test_derivative_of_norms_beside_a_token_of_zeros():
    """Padding and dead units: the guard against rounding has no derivative."""
    random = np.random.default_rng(0)
    x, w = random.standard_normal((3, 2, 8)), random.standard_normal((8, 8))
    x[:, 1] = 0

    @jax.jit
    def derivatives(w, x):
        def total(w, method):
            norms = clipjax.per_example_grad_norms(
                lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2),
                keep_batch_dim=False,
                method=method,
            )
            return jnp.sum(norms(w, x))

        return [jax.grad(total)(w, method) for method in ("vmap", "ghost")]

    expected, found = derivatives(w, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
