"""Norms, ratios and angles of each tensor, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from oracle import wide

import clipjax
from clipjax.monitoring import Recorder, momentum_of, tensor_report

KEYS = ("grad_norm", "update_norm", "param_norm", "update_ratio", "momentum_cosine")


@jax.jit
def jitted(grads, updates, params, momentum):
    return tensor_report(grads, updates, params, momentum)


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 3)) * scale, rng.normal(size=4) * scale
    return {"a": np.float32(a), "b": jnp.asarray(b, jnp.bfloat16)}


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_against_numpy(scale):
    trees = [tree(0, scale), tree(1), tree(2), tree(3, scale)]
    report = jitted(*trees)
    assert set(report) == {f"tensor/{key}/{name}" for key in KEYS for name in "ab"}
    for name in "ab":
        grad, update, param, momentum = (wide(tree[name]) for tree in trees)
        norm = np.linalg.norm
        expected = {
            "grad_norm": norm(grad),
            "update_norm": norm(update),
            "param_norm": norm(param),
            "update_ratio": norm(update) / norm(param),
            "momentum_cosine": np.vdot(grad, momentum) / norm(grad) / norm(momentum),
        }
        for key, value in expected.items():
            found = report[f"tensor/{key}/{name}"]
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, value, rtol=1e-5, err_msg=key)


def test_edges():
    zero, one = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    bad = {"w": jnp.array([1.0, jnp.nan])}
    with jax.debug_nans(True):
        report = tensor_report(zero, one, zero, one)
        assert report["tensor/update_ratio/w"] == np.inf
        assert report["tensor/momentum_cosine/w"] == 0
        assert tensor_report(one, zero, zero)["tensor/update_ratio/w"] == 0
    report = tensor_report(bad, momentum=one)
    assert list(report) == ["tensor/grad_norm/w", "tensor/momentum_cosine/w"]
    assert report["tensor/grad_norm/w"] == np.inf
    assert np.isnan(report["tensor/momentum_cosine/w"])
    assert tensor_report({"count": jnp.int32(1), "none": None}) == {}
    with pytest.raises(ValueError, match="the leaves of momentum have no leaf w"):
        tensor_report(one, momentum={"v": jnp.ones(2)})


def test_momentum_is_found():
    params = {"w": jnp.zeros(2), "mu": jnp.zeros(1)}
    grads = {"w": jnp.array([3.0, 4.0]), "mu": jnp.ones(1)}
    for optimizer, factor in (
        (optax.trace(0.9), 1.0),
        (optax.chain(clipjax.clip_by_global_norm(jnp.inf), optax.lion(0.1)), 0.01),
    ):
        _, state = optimizer.update(grads, optimizer.init(params), params)
        found = momentum_of(state)
        np.testing.assert_allclose(found["w"], factor * np.float32([3, 4]), rtol=1e-6)
        report = tensor_report(grads, momentum=found)
        np.testing.assert_allclose(report["tensor/momentum_cosine/w"], 1, rtol=1e-6)
    two = optax.partition(
        {"x": optax.trace(0.9), "y": optax.trace(0.5)}, {"w": "x", "mu": "y"}
    )
    for state, count in ((optax.sgd(0.1).init(params), 0), (two.init(params), 2)):
        with pytest.raises(ValueError, match=f"must hold one momentum.* got {count}"):
            momentum_of(state)


def test_flax_and_a_recorder():
    model = {"w": nnx.Param(jnp.zeros(2))}
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    grads = {"w": nnx.Param(jnp.array([3.0, 4.0]))}
    optimizer.update(model, grads)
    report = tensor_report(grads, momentum=momentum_of(optimizer))
    recorder = Recorder()
    recorder.record(optimizer, **report)
    for key, expected in (("grad_norm", 5), ("momentum_cosine", 1)):
        found = recorder.history[f"tensor/{key}/w"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_cost_is_as_stated():
    """In reads of a tree, as XLA counts them, with the branch for extremes."""
    shapes = {"w": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
    size = 4 * 512 * 512

    def reads(*trees):
        compiled = jax.jit(tensor_report).lower(*trees).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < size / 8
        return compiled.cost_analysis()["bytes accessed"] / size

    assert reads(shapes) < 2.1
    assert reads(shapes, shapes, shapes) < 6.2
    assert reads(shapes, None, None, shapes) < 6.2
