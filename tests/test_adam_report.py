"""Adam's second moments and effective step sizes, from states and through a spike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import clipjax
from clipjax.diagnostics import adam_report, adam_trace

GRADS = {"a": jnp.array([3.0, -4.0]), "b": {"c": jnp.full((2, 2), 0.5)}}


@pytest.fixture
def standard_promotion():
    """Optax's Adam raises a float to the power of an integer."""
    with jax.numpy_dtype_promotion("standard"):
        yield


uses_adam = pytest.mark.usefixtures("standard_promotion")


@uses_adam
def test_the_report_is_of_what_adam_divides_by():
    optimizer = optax.chain(clipjax.clip_by_global_norm(5.0), optax.adamw(0.1))
    state = optimizer.init(GRADS)
    update = jax.jit(optimizer.update)
    moments = jax.tree.map(np.zeros_like, GRADS)
    for factor in (1.0, 0.1, 0.7):
        grads = jax.tree.map(lambda leaf, by=factor: by * leaf, GRADS)
        _, state = update(grads, state, GRADS)
        length = np.sqrt(
            sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(grads))
        )
        by = min(1, 5 / length)
        moments = jax.tree.map(
            lambda v, g, by=by: 0.999 * v + 0.001 * np.square(by * g), moments, grads
        )
    report = jax.jit(adam_report)(state, 0.1)
    assert list(report) == ["a", "b/c"]
    for leaf, v in zip(report.values(), jax.tree.leaves(moments), strict=True):
        corrected = v / (1 - 0.999**3)
        steps = 0.1 / (np.sqrt(corrected) + 1e-8)
        expected = [np.mean(corrected) ** 0.5, *np.quantile(steps, [0, 0.5, 1])]
        np.testing.assert_allclose(leaf, expected, rtol=1e-4)


@uses_adam
def test_the_report_takes_the_settings_of_the_optimizer():
    optimizer = optax.adam(0.1, b2=0.9, eps=0.25, eps_root=4.0)
    _, state = jax.jit(optimizer.update)(GRADS, optimizer.init(GRADS))
    settings = {"b2": 0.9, "eps": 0.25, "eps_root": 4.0}
    leaf = adam_report(state, 0.1, **settings)["b/c"]
    assert float(leaf.median_step) == pytest.approx(0.1 / (4.25**0.5 + 0.25))
    fresh = adam_report(optimizer.init(GRADS), 0.1, **settings)["b/c"]
    assert fresh.root_mean_v == 0
    assert float(fresh.largest_step) == pytest.approx(0.1 / 2.25)


def in_nnx(optimizer):
    model = nnx.Dict(GRADS | {"b": nnx.Dict(GRADS["b"])})
    model = jax.tree.map(nnx.Param, model)
    return nnx.Optimizer(model, optimizer, wrt=nnx.Param)


@pytest.mark.parametrize(
    "place",
    [
        lambda adam: optax.MultiSteps(adam, 2).init(GRADS),
        lambda adam: clipjax.skip_nonfinite(adam).init(GRADS),
        lambda adam: optax.apply_if_finite(adam, 3).init(GRADS),
        lambda adam: TrainState.create(apply_fn=None, params=GRADS, tx=adam),
        in_nnx,
        lambda adam: optax.partition(
            {"one": adam, "two": optax.adam(1.0)}, {"a": "one", "b": "two"}
        ).init(GRADS),
    ],
)
def test_adam_is_found_anywhere(place):
    report = adam_report(place(optax.chain(optax.clip(1.0), optax.adamw(0.1))))
    assert sorted(report) == ["a", "b/c"]
    assert all(leaf.root_mean_v.shape == () for leaf in report.values())


def test_adam_is_found_where_hyperparameters_are_injected():
    state = optax.inject_hyperparams(optax.adam)(learning_rate=0.1).init(GRADS)
    assert list(adam_report(state)) == ["a", "b/c"]
    masked = optax.masked(optax.adam(0.1), {"a": False, "b": True}).init(GRADS)
    assert list(adam_report(masked)) == ["b/c"]


def test_the_report_refuses():
    with pytest.raises(ValueError, match="must hold the state of optax.scale_by_adam"):
        adam_report(optax.sgd(0.1, momentum=0.9).init(GRADS))
    twice = optax.chain(optax.scale_by_adam(), optax.scale_by_adam())
    with pytest.raises(ValueError, match="several Adam states for 'a'"):
        adam_report(twice.init(GRADS))
    with pytest.raises(ValueError, match="b2 must be a number from 0 to 1, got 2"):
        adam_report(twice.init(GRADS), b2=2)
    with pytest.raises(ValueError, match="must have shape .*, got a scalar"):
        adam_trace(jnp.ones(()))


@uses_adam
def test_adam_through_a_spike():
    """Constant gradients of 1 with one of 1000, by Adam's equations."""
    gradients = np.ones(3101)
    gradients[1000] = 1000
    trace = jax.jit(adam_trace)(jnp.asarray(gradients, jnp.float32))
    m = v = 0.0
    steps = []
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        root = (v / (1 - 0.999**t)) ** 0.5
        steps.append((root**2, 1 / root, -m / (1 - 0.9**t) / root))
    np.testing.assert_allclose(np.stack(trace, 1), steps, rtol=2e-3)
    found = -np.asarray(trace.update)[[1000, 1100, 2000]]
    np.testing.assert_allclose(found, [2.54, 0.027, 0.048], rtol=0.01)


@uses_adam
def test_adam_through_a_spike_with_a_clip():
    gradients = jnp.ones(1300).at[1000].set(1000.0)
    trace = adam_trace(gradients, clipjax.clip_by_global_norm(2.0), learning_rate=0.1)
    found = -np.asarray(trace.update)[[999, 1000, 1100, 1299]]
    np.testing.assert_allclose(found, [0.1, 0.11, 0.1, 0.1], rtol=5e-3)
    by_unit = adam_trace(jnp.ones((5, 2, 3)), b1=0.0)
    assert by_unit.second_moment.shape == (5, 2, 3)
    np.testing.assert_allclose(by_unit.update, -1, rtol=1e-5)
