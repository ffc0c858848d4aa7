"""Clips work wherever Optax puts a gradient transformation."""

import inspect

import catalogue
import flax.nnx as nnx
import flax.training.train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import about
from oracle import assert_close, assert_same_bits, eps, kinds, norm

import clipjax

# One that needs the parameters, and one that remembers.
STRUCTURAL = ("adaptive_grad_clip", "adagc")
INJECTED = {
    "clip_by_value": "max_delta",
    "clip_by_global_norm": "max_norm",
    "clip_by_leaf_norm": "max_norm",
    "clip_by_block_rms": "threshold",
    "adaptive_grad_clip": "clipping",
    "soft_clip_by_global_norm": "max_norm",
    "normalise_by_global_norm": "norm",
    "torch_clip_grad_norm": "max_norm",
    "spectral_clip": "threshold",
    "spectral_clamp": "threshold",
    "spectral_soft_clip": "threshold",
}


def updated(optimizer, steps=1, dtype=jnp.float32):
    """Runs a few jitted updates, checking that the state keeps its form."""
    params = catalogue.parameters()
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    for seed in range(steps):
        updates, new = step(catalogue.gradients(seed, dtype), state, params)
        assert kinds(new) == kinds(state)
        state = new
    return updates, state


def chained(clip):
    return optax.chain(clip, optax.scale(-0.1))


def named(clip):
    return optax.named_chain(("first", clip), ("second", optax.scale(-0.1)))


def masked(clip):
    return optax.masked(clip, {"dense": {"bias": False, "kernel": True}, "scale": True})


def partitioned(clip):
    labels = {"dense": "body", "scale": "head"}
    return optax.partition({"body": clip, "head": optax.set_to_zero()}, labels)


def accumulated(clip):
    steps = optax.MultiSteps(chained(clip), every_k_schedule=2)

    def update(*args):
        # Optax itself mixes dtypes here.
        with jax.numpy_dtype_promotion("standard"):
            return steps.update(*args)

    return optax.GradientTransformation(steps.init, update)


def forgiving(clip):
    return optax.apply_if_finite(chained(clip), max_consecutive_errors=3)


def protected(clip):
    return clipjax.skip_nonfinite(chained(clip))


WRAPPERS = {
    function.__name__: function
    for function in (
        chained,
        named,
        masked,
        partitioned,
        accumulated,
        forgiving,
        protected,
    )
}


def test_wrapped_state_keeps_its_form():
    params, grads = catalogue.parameters(), catalogue.gradients()
    for name in ("whole", "leaf", "group", "params", "learnt-leaf", "entries", "svd"):
        for wrapper, wrap in WRAPPERS.items():
            with about(f"{name} {wrapper}"):
                optimizer = wrap(catalogue.REPRESENTATIVES[name](1.0))
                state = optimizer.init(params)
                updates, new = jax.eval_shape(optimizer.update, grads, state, params)
                assert kinds(new) == kinds(state)
                assert kinds(updates) == kinds(grads)
                before, after = (
                    jax.eval_shape(lambda state: clipjax.metrics(state), each)
                    for each in (state, new)
                )
                assert before.keys() == after.keys()
                assert "clip/grad_norm_raw" in after


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_numbers(wrapper):
    clip = clipjax.clip_by_global_norm(1.0)
    clipped = jax.jit(clip.update)
    updates, state = updated(WRAPPERS[wrapper](clip))
    grads = catalogue.gradients(0)
    metrics = clipjax.metrics(state)
    if wrapper == "accumulated":  # nothing leaves on the first of two micro-steps
        assert norm(updates) == 0
        assert metrics["clip/grad_norm_raw"] == 0
        return
    if wrapper == "masked":
        seen = {"dense": {"bias": None, "kernel": grads["dense"]["kernel"]}}
        seen["scale"] = grads["scale"]
        expected = clipped(seen, None)[0]
        expected["dense"]["bias"] = grads["dense"]["bias"]
    elif wrapper == "partitioned":
        seen = {"dense": grads["dense"]}
        expected = clipped(seen, None)[0] | {"scale": jnp.zeros(())}
    else:
        seen = grads
        expected, _ = clipped(grads, None)
        expected = jax.tree.map(lambda leaf: np.float32(-0.1) * leaf, expected)
    assert_close(updates, expected)
    assert float(metrics["clip/grad_norm_raw"]) == pytest.approx(norm(seen), rel=1e-6)
    assert float(metrics["clip/grad_norm_clipped"]) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("name", ["clip_by_global_norm", "clip_by_value"])
def test_injected_threshold(name):
    recipe, argument, dtype = getattr(clipjax, name), INJECTED[name], jnp.bfloat16
    optimizer = optax.inject_hyperparams(recipe)(**{argument: 0.25})
    params, grads = catalogue.parameters(), catalogue.gradients(dtype=dtype)
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    for value in (0.25, 0.1):
        state.hyperparams[argument] = jnp.asarray(value, jnp.float32)
        updates, new = step(grads, state, params)
        length = norm(updates, np.inf if name == "clip_by_value" else 2)
        assert length == pytest.approx(value, rel=2 * eps(dtype))
        assert kinds(updates) == kinds(grads)
        state = new
    assert step._cache_size() == 1


def test_every_number_of_a_recipe_can_be_injected():
    params, grads = catalogue.parameters(), catalogue.gradients()
    for name in set(catalogue.RECIPES) - {"clip_by_group_norm"}:  # takes a table
        recipe = getattr(clipjax, name)
        signature = inspect.signature(recipe)
        given = dict(INJECTED_BESIDES.get(name, {}))
        fixed = FIXED & set(signature.parameters)
        for argument, parameter in signature.parameters.items():
            number = isinstance(parameter.default, float | int)
            if number and not isinstance(parameter.default, bool):
                given.setdefault(argument, parameter.default)
        if name in INJECTED:
            given[INJECTED[name]] = 0.25
        with about(f"{name} with {given}"):
            given = {k: v for k, v in given.items() if k not in fixed}
            optimizer = optax.inject_hyperparams(recipe, tuple(fixed))(**given)
            state = optimizer.init(params)
            if not {"lower", "labels"} & set(signature.parameters):
                assert set(given) <= set(state.hyperparams)
            updates, new = jax.eval_shape(optimizer.update, grads, state, params)
            assert kinds(updates) == kinds(grads)
            assert kinds(new) == kinds(state)


# Fix shapes or the program, or are no numbers: static_args for Optax.
FIXED = {
    "axis",
    "window",
    "iterations",
    "lower",
    "upper",
    "labels",
    "max_norms",
    "dtype",
}
FIXED |= {"norm_type", "mode", "clip_option", "minimum_of", "stacked", "steps"}
INJECTED_BESIDES = {
    "scale_by_l0_l1": {"l0": 2.0, "l1": 1.0},
    "larc_clip": {"learning_rate": 0.1, "eps": 1e-8},
    "delta_clip": {"delta": 0.1},
    "gradient_stabilizer": {"eps": 1e-8},
    "norm_growth_limiter": {"floor": 0.1},
    "adagc": {"floor": 0.1},
}


def test_injected_schedule():
    schedule = optax.linear_schedule(3.0, 1.0, 2)
    optimizer = optax.inject_hyperparams(clipjax.clip_by_global_norm)(max_norm=schedule)
    params, grads = catalogue.parameters(), catalogue.gradients(dtype=jnp.bfloat16)
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    for expected in (3.0, 2.0, 1.0, 1.0):
        _, state = step(grads, state, params)
        threshold = clipjax.metrics(state)["clip/threshold"]
        np.testing.assert_allclose(threshold, expected, rtol=1e-6)


def test_two_clips_in_one_chain_are_told_apart():
    optimizer = optax.chain(
        clipjax.clip_by_value(1.0, name="values"),
        clipjax.clip_by_global_norm(0.5),
        clipjax.clip_by_global_norm(0.1),
    )
    _, state = updated(optimizer)
    metrics = clipjax.metrics(state)
    assert float(metrics["values/threshold"]) == 1.0
    assert float(metrics["clip/threshold"]) == 0.5
    np.testing.assert_allclose(metrics["clip_2/grad_norm_raw"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["clip_2/threshold"], 0.1, rtol=1e-6)


@pytest.mark.parametrize("name", STRUCTURAL)
def test_nnx_optimizer(name):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    clip = optax.chain(catalogue.RECIPES[name](), optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, clip, wrt=nnx.Param)
    inputs = jnp.ones((4, 3))
    grads = nnx.grad(lambda model: jnp.sum(model(inputs) ** 2))(model)
    before = jax.tree.map(jnp.array, nnx.state(model, nnx.Param))
    nnx.jit(lambda model, optimizer, grads: optimizer.update(model, grads))(
        model, optimizer, grads
    )
    after = nnx.state(model, nnx.Param)
    moved = jax.tree.map(lambda new, old: new - old, after, before)
    assert norm(moved) > 0
    # A learning rate of 0.1, and by the clip less than that.
    assert norm(moved) < 0.1 * norm(grads) * (1 - 1e-6)
    metrics = clipjax.metrics(optimizer)
    assert int(optimizer.step[...]) == 1
    expected = pytest.approx(norm(grads), rel=1e-6)
    assert float(metrics["clip/grad_norm_raw"]) == expected
    assert not any("value" in key for key in metrics)


@pytest.mark.parametrize("name", STRUCTURAL)
def test_train_state(name):
    params = catalogue.parameters()
    state = flax.training.train_state.TrainState.create(
        apply_fn=None,
        params=params,
        tx=optax.chain(catalogue.RECIPES[name](), optax.sgd(1.0)),
    )
    grads = catalogue.gradients()
    expected, _ = catalogue.jitted(f"recipe-{name}")(
        grads, catalogue.clip(f"recipe-{name}").init(params), params
    )
    apply = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
    state = apply(state, grads)
    moved = jax.tree.map(lambda old, new: old - new, params, state.params)
    assert_close(moved, expected, rtol=1e-5, atol=1e-6)
    assert "clip/grad_norm_raw" in clipjax.metrics(state)


def test_masked_leaves_are_neither_measured_nor_changed():
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([200.0])}
    clip = optax.masked(clipjax.clip_by_global_norm(1.0), {"a": True, "b": False})
    updates, state = jax.jit(clip.update)(grads, clip.init(grads))
    np.testing.assert_allclose(updates["a"], [0.6, 0.8], rtol=1e-6)
    assert_same_bits(updates["b"], grads["b"])
    assert float(clipjax.metrics(state)["clip/grad_norm_raw"]) == 5.0
