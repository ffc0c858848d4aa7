"""Losses that are easy to get wrong: book-keeping against gradients made one by one."""

import dataclasses
import functools

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_close, norm

import clipjax


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def both(loss, params, batch, limit=1.0, **options):
    """Gives sums and norms by both methods."""
    options |= {"l2_clip_norm": limit, "keep_batch_dim": False}
    vmap, ghost = (
        clipjax.clipped_grad(loss, method=method, return_grad_norms=True, **options)
        for method in ("vmap", "ghost")
    )
    with jax.numpy_dtype_promotion("standard"):
        found = jax.jit(lambda *data: (vmap(*data), ghost(*data)))(params, batch)
    return [(total, info.grad_norms) for total, info in found]


def rounds(dtype):
    """Makes a loss that computes in a narrow dtype, of float32 parameters."""
    return lambda w, x: jnp.sum((x.astype(dtype) @ w.astype(dtype)).astype(jnp.float32))


def casts_to_integers(w, x):
    whole = x.astype(jnp.int32) @ w.astype(jnp.int32)
    return jnp.sum(jnp.sin(x @ w) ** 2) + jnp.sum(whole).astype(jnp.float32)


def takes_rows(table, index):
    return jnp.sum(jnp.sin(jnp.take(table, index, axis=0)))


def takes_rows_under_vmap(table, index):
    return jnp.sum(jnp.sin(jax.vmap(lambda i: table[i])(index)))


def takes_rows_in_a_scan(table, index):
    step = lambda carry, i: (jnp.tanh(carry + table[i]), None)  # noqa: E731
    return jnp.sum(jax.lax.scan(step, jnp.zeros(table.shape[1]), index)[0])


def has_nothing(params, x):
    return jnp.sum(x @ params["none"]) + jnp.sum(jnp.tanh(x @ params["some"]))


def stops(params, x):
    return jnp.sum(x @ jax.lax.stop_gradient(params["base"]) @ params["adapter"])


def unrolled(steps):
    def loss(params, x):
        hidden = jnp.zeros(8)
        for step in range(steps):
            hidden = jnp.tanh(x[step] @ params["input"] + hidden @ params["hidden"])
        return jnp.sum(hidden**2)

    return loss


RECURRENT = {"input": normal(0, 4, 8), "hidden": 0.3 * normal(1, 8, 8)}
CASES = {
    "complex_inputs": (
        lambda w, x: jnp.sum((jnp.fft.fft(x) @ w).imag),
        normal(0, 4),
        normal(1, 5, 4),
    ),
    "casts_to_integers": (casts_to_integers, normal(0, 4, 3), 3 * normal(1, 5, 4)),
    "bytes": (takes_rows, normal(0, 256, 2), np.arange(12, dtype=np.uint8)[:, None]),
    "few_of_many_rows": (
        takes_rows,
        normal(0, 300, 2),
        np.arange(12, dtype=np.uint8).reshape(3, 4),
    ),
    "rows_under_vmap": (
        takes_rows_under_vmap,
        normal(0, 10, 4),
        np.arange(-2, 10, dtype=np.int32).reshape(3, 4),
    ),
    "rows_in_a_scan": (
        takes_rows_in_a_scan,
        normal(0, 10, 4),
        np.arange(12, dtype=np.int32).reshape(3, 4) % 10,
    ),
    "leaf_without_entries": (
        has_nothing,
        {"none": np.zeros((4, 0), np.float32), "some": normal(0, 4, 2)},
        normal(1, 5, 4),
    ),
    "stopped": (
        stops,
        {"base": normal(0, 4, 4), "adapter": normal(1, 4, 2)},
        normal(2, 5, 4),
    ),
    "unrolled": (unrolled(5), RECURRENT, normal(2, 3, 5, 4)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_same_as_one_by_one(case):
    (expected, lengths), (total, measured) = both(*case)
    assert measured.dtype == jnp.float32
    assert_close(measured, lengths, rtol=1e-5, atol=1e-6)
    assert_close(total, expected, rtol=1e-5, atol=1e-5)


@functools.cache
def sum_of_a_thousand(dtype):
    """Compiles a function of 1001 examples, of which the first counts or does not."""

    def run(inputs, limit, is_padding):
        grad = clipjax.clipped_grad(rounds(dtype), l2_clip_norm=limit, method="ghost")
        padding = is_padding & (jnp.arange(1001) == 0)
        return grad(jnp.zeros((4, 4)), inputs, is_padding_example=padding)

    return jax.jit(run)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_one_example_moves_a_sum_of_a_thousand_by_the_threshold(dtype):
    """A float32 sum is not rounded to the dtype that the loss computes in."""
    grad = clipjax.clipped_grad(rounds(dtype), l2_clip_norm=1.0, method="ghost")
    assert grad.sensitivity() == 1.0
    total, ones = sum_of_a_thousand(dtype), np.ones((1001, 4), np.float32)
    moved = total(ones, 1.0, False) - total(ones, 1.0, True)
    assert norm({"w": moved}) == pytest.approx(1.0, abs=1e-2)


def test_a_sum_beyond_float16_is_no_infinity():
    inputs = np.full((1001, 4), 100.0, np.float32)
    total = sum_of_a_thousand(jnp.float16)(inputs, 1e3, True)
    np.testing.assert_allclose(total, 1e5, rtol=1e-6)


def test_terms_that_cancel_let_no_example_through():
    """Activations of a large mean, and cotangents that sum to nothing over tokens."""
    random, limit = np.random.default_rng(0), 1e-4
    back = random.standard_normal((4, 64), np.float32)
    back -= back.mean(0, keepdims=True)

    @jax.jit
    def run(inputs):
        loss = lambda w, x: jnp.sum((x @ w) * back)  # noqa: E731
        return both(loss, jnp.zeros((64, 64)), inputs, limit)

    for _ in range(8):
        inputs = 10 + 1e-4 * random.standard_normal((1, 4, 64), np.float32)
        (_, lengths), (total, measured) = run(inputs)
        assert lengths[0] > limit  # so that a norm of zero would let it through
        assert measured[0] >= lengths[0]
        assert norm({"w": total}) <= 1.001 * limit


def test_what_is_not_made_for_every_example():
    """Frozen parameters, and the look-up that Equinox does under ``vmap``."""
    params = {"base": normal(0, 4, 4), "adapter": normal(1, 4, 2)}
    grad = clipjax.clipped_grad(stops, l2_clip_norm=1.0)
    assert "base: not used, 0 MiB" in grad.plan(params, normal(2, 5, 4))
    table = equinox.nn.Embedding(10, 4, key=jax.random.key(0))

    def loss(weight, index):
        look_up = equinox.tree_at(lambda module: module.weight, table, weight)
        return jnp.sum(jnp.sin(jax.vmap(look_up)(index)))

    grad = clipjax.clipped_grad(loss, l2_clip_norm=1.0, keep_batch_dim=False)
    assert "lookup by equal rows" in grad.plan(table.weight, jnp.zeros((3, 4), int))


def test_unrolled_steps_cost_equations_in_proportion():
    def equations(steps):
        grad = clipjax.clipped_grad(
            unrolled(steps), l2_clip_norm=1.0, keep_batch_dim=False
        )
        jaxpr = jax.make_jaxpr(grad)(RECURRENT, jnp.ones((3, steps, 4)))
        return str(jaxpr).count(" = ")

    few, more, many = map(equations, (8, 16, 32))
    assert many - more <= 2.1 * (more - few)


def test_sensitivity_of_arrays():
    grad = clipjax.clipped_grad(stops, l2_clip_norm=np.array(2.0))
    assert float(grad.sensitivity()) == 2.0
    grad = clipjax.clipped_grad(stops, l2_clip_norm=jnp.array(-3.0))
    assert float(grad.sensitivity()) == 0.0


def test_rows_and_columns_looked_up_in_one_table():
    def loss(table, index):
        return jnp.sum(table[index[0]] ** 2) + jnp.sum(table.T[index[1]] ** 2)

    table, indices = normal(0, 6, 4), np.array([[0, 1], [5, 2]], np.int32)
    (total, norms), (other, measured) = both(loss, table, indices)
    assert_close({"w": other}, {"w": total}, 1e-5)
    np.testing.assert_allclose(measured, norms, rtol=1e-5)


def test_products_of_integers_and_floats():
    def loss(w, x):
        numbers = (((0,), (0,)), ((), ()))
        product = jax.lax.dot_general(x, w, numbers, preferred_element_type=jnp.float32)
        return jnp.sum(jnp.sin(product))

    inputs = np.arange(16, dtype=np.int8).reshape(2, 8)
    (total, norms), (other, measured) = both(loss, normal(0, 8, 3), inputs)
    assert_close({"w": other}, {"w": total}, 1e-5)
    np.testing.assert_allclose(measured, norms, rtol=1e-5)


@pytest.mark.parametrize("method", ["vmap", "ghost"])
def test_keys_among_the_parameters_of_microbatches(method):
    params = {"w": normal(0, 4, 2), "key": jax.random.key(0), "count": jnp.int32(3)}
    grad = clipjax.clipped_grad(
        lambda p, x: jnp.sum(x @ p["w"]), l2_clip_norm=1.0, method=method
    )
    parts = dataclasses.replace(grad, microbatch_size=2)
    run = jax.jit(lambda *data: (parts(*data), grad(*data)))
    found, expected = run(params, normal(1, 5, 4))
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6)
    assert int(found["count"]) == 0


def test_layers_that_are_slices_of_one_parameter_are_compared_once(monkeypatch):
    """All pairs of 30 layers took half a minute, by `numpy.intersect1d`."""

    def loss(layers, x):
        for layer in layers:
            x = jnp.tanh(x @ layer)
        return jnp.sum(x)

    def pairwise(*_):
        raise AssertionError

    monkeypatch.setattr(np, "intersect1d", pairwise)
    grad = clipjax.clipped_grad(loss, l2_clip_norm=1.0, keep_batch_dim=False)
    plan = grad.plan(jnp.zeros((6, 8, 8)), jnp.zeros((2, 4, 8)))
    assert "dot" in plan and "gradients per example" not in plan


def test_thresholds_in_double_precision():
    limits, sizes = [0.1, 1e50, 1e-50], [1.0, 1e60, 1.0]

    def loss(params, x):
        return jnp.sum(x @ jnp.concatenate(params))

    with jax.enable_x64(True):
        grad = jax.jit(clipjax.clipped_grad(loss, l2_clip_norm=limits))
        total = grad([np.zeros(1)] * 3, np.array([sizes]))
        np.testing.assert_allclose(np.concatenate(total), limits, rtol=1e-12)
