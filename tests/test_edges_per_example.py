"""Per-example clipping at the edges: the cases J65 to J70, and diffusion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracle import flat, norm

import clipjax
from benchmarks.per_example.models import perceptron, single_layer
from benchmarks.per_example.peers import ours, plain

every_method = pytest.mark.parametrize("method", ["ghost", "vmap"])
SHAPES = {"bias": (1, 5), "last": (5, 3)}
PARAMS = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
PARAMS |= {"first": np.eye(4, 5, dtype=np.float32)}
INPUTS = np.sin(np.arange(48, dtype=np.float32)).reshape(12, 4)
C = 1.5


def loss(params, inputs):
    hidden = jnp.tanh(inputs @ params["first"] + params["bias"])
    return jnp.sum((hidden @ params["last"]) ** 2)


def clip(function, **options):
    return clipjax.clipped_grad(function, **{"l2_clip_norm": C, **options})


@every_method
def test_j65_threshold_and_gradient_of_zero(method):
    grad = clip(lambda w, x: jnp.sum(x @ w), l2_clip_norm=0.0, method=method)
    found = jax.jit(grad)(np.ones(2, "f4"), np.float32([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(found, [0.0, 0.0])


@every_method
def test_j66_j67_batches_of_any_size_and_accumulation(method):
    grad = jax.jit(clip(loss, method=method).__call__)
    whole = flat(grad(PARAMS, INPUTS))
    assert norm(whole) > 2 * C
    by_one = sum(flat(grad(PARAMS, INPUTS[i : i + 1])) for i in range(12))
    np.testing.assert_allclose(by_one, whole, rtol=1e-5, atol=1e-6)
    if method == "ghost":  # both divide a batch by the same code
        in_three = jax.jit(clip(loss, method=method, microbatch_size=4).__call__)
        found = flat(in_three(PARAMS, INPUTS))
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)


def temporary_memory(make):
    losses, held = [], {}

    def arrays():
        model = make()
        losses.append(model.loss)
        return model.params, *model.batch

    shapes = jax.eval_shape(arrays)
    for way in (plain, ours):
        lowered = jax.jit(way(losses[0], len(shapes) - 1)).lower(shapes)
        analysis = lowered.compile().memory_analysis()
        held[way] = analysis.temp_size_in_bytes
    return held


def test_j68_memory_of_a_large_layer():
    held = temporary_memory(lambda: single_layer(256))
    assert held[ours] <= 4 * held[plain]


@pytest.mark.parametrize("widths", [(784, 512, 512, 10), (100, 400, 400, 10)])
def test_memory_of_a_perceptron(widths):
    held = temporary_memory(lambda: perceptron(256, *widths))
    assert held[ours] <= 1.25 * held[plain]


def test_j69_sensitivity_of_the_normalised_sum():
    grad = clip(loss, normalize_by=12.0)
    one = [grad.sensitivity(name) for name in ("ADD_OR_REMOVE_ONE", "REPLACE_SPECIAL")]
    assert one == [C / 12] * 2 and grad.sensitivity("REPLACE_ONE") == 2 * C / 12
    run = jax.jit(grad.__call__)
    whole = flat(run(PARAMS, INPUTS, is_padding_example=np.zeros(12, bool)))
    less = flat(run(PARAMS, INPUTS, is_padding_example=np.arange(12) == 3))
    replaced = np.where(np.arange(12)[:, None] == 3, np.float32(-9), INPUTS)
    other = flat(run(PARAMS, replaced, is_padding_example=np.zeros(12, bool)))
    # All examples are longer than C, so that removing one takes all it may.
    np.testing.assert_allclose(norm(whole - less), C / 12, rtol=1e-5)
    assert norm(whole - other) <= 2 * C / 12 * (1 + 1e-5)


@every_method
def test_j70_no_example_sees_another(method):
    def with_batch_statistics(params, inputs):
        hidden = inputs @ params["first"]
        hidden = hidden - jnp.mean(hidden, axis=0, keepdims=True)
        return jnp.sum((jnp.tanh(hidden + params["bias"]) @ params["last"]) ** 2)

    norms = jax.jit(
        clipjax.per_example_grad_norms(with_batch_statistics, method=method)
    )
    changed = np.where(np.arange(12)[:, None] > 0, np.float32(7), INPUTS)
    assert norms(PARAMS, INPUTS)[0] == norms(PARAMS, changed)[0]


SIXTEEN = np.concatenate([INPUTS, INPUTS[:4]])


@functools.cache
def on_one_device(method):
    return jax.jit(clip(loss, method=method).__call__)(PARAMS, SIXTEEN)


@every_method
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_one_all_reduce(method, kind):
    grad = clip(loss, method=method)
    exact = on_one_device(method)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(SIXTEEN, NamedSharding(mesh, PartitionSpec("data")))
        compiled = jax.jit(grad.__call__).lower(PARAMS, placed).compile()
        found = compiled(PARAMS, placed)
    text = compiled.as_text()
    assert text.count(" all-reduce(") + text.count(" all-reduce-start(") == 1
    assert not any(name in text for name in (" all-gather(", " all-to-all("))
    np.testing.assert_allclose(flat(found), flat(exact), rtol=1e-5, atol=1e-6)


def velocity_weight(time):
    return 0.25 + 4.0 * time**2


@every_method
def test_c11_threshold_by_diffusion_time(method):
    """A1.10: c0/v(t) for the loss alone is c0 for the loss times v(t)."""
    times = np.linspace(0.05, 2.0, 12, dtype=np.float32)

    def unweighted(params, inputs, time):
        return loss(params, inputs * jnp.cos(time).reshape(1, 1))

    def weighted(params, inputs, time):
        return velocity_weight(time[0]) * unweighted(params, inputs, time)

    @jax.jit
    def both(limit, padding):
        options = {"batch_argnums": (1, 2), "method": method}
        by_time = clip(
            unweighted,
            l2_clip_norm=lambda x, time: limit / velocity_weight(time),
            **options,
        )
        constant = clip(weighted, l2_clip_norm=limit, return_grad_norms=True, **options)
        arguments = (PARAMS, INPUTS, times)
        total = by_time(*arguments, is_padding_example=padding)
        return total, constant(*arguments, is_padding_example=padding)

    nobody = np.zeros(12, bool)
    _, (_, info) = both(np.float32(1.0), nobody)
    limit = np.median(np.asarray(info.grad_norms))
    total, clipped = 0.0, 0
    for i, weight in enumerate(velocity_weight(times)):
        by_time, (constant, _) = both(limit, np.arange(12) != i)
        then_weighted = weight * flat(by_time)
        difference = then_weighted - flat(constant)
        assert norm(difference) <= 1e-5 * norm(then_weighted)
        assert norm(then_weighted) <= limit * (1 + 1e-5)
        clipped += norm(then_weighted) > limit * (1 - 1e-5)
        total = total + then_weighted
    assert 6 <= clipped < 12
    _, (found, _) = both(limit, nobody)
    assert norm(flat(found) - total) <= 1e-5 * norm(total)


@every_method
def test_double_precision_beside_single(method):
    with jax.enable_x64(True):
        params = {"a": np.ones((3, 2)), "b": np.ones(2, np.float32)}

        def mixed(params, inputs):
            return jnp.sum(inputs @ params["a"]).astype(jnp.float32) + jnp.sum(
                params["b"]
            )

        grad = clipjax.clipped_grad(
            mixed, l2_clip_norm=0.5, method=method, return_grad_norms=True
        )
        inputs = np.sin(np.arange(12.0)).reshape(4, 3)
        total, info = jax.jit(grad)(params, inputs)
        assert (total["a"].dtype, total["b"].dtype) == (jnp.float64, jnp.float32)
        assert info.grad_norms.dtype == jnp.float64
        assert norm(total) <= 4 * 0.5 * (1 + 1e-6)
