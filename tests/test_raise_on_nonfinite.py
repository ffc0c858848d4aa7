"""`raise_on_nonfinite` names the first bad leaf, outside jit and through checkify."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify
from oracle import assert_same_bits

import clipjax

GOOD = {"a": jnp.ones(2), "b": {"{0}": jnp.ones(3)}}
OPTIMIZER = clipjax.raise_on_nonfinite(optax.trace(0.9))


def bad(first=1.0, second=1.0):
    return {"a": jnp.array([1, first]), "b": {"{0}": jnp.array([second, 1, 1])}}


CASES = [
    (bad(second=jnp.nan), "b/{0}"),
    (bad(first=jnp.inf), "a"),
    (bad(first=-jnp.inf, second=jnp.nan), "a"),
]


@pytest.mark.parametrize(("grads", "name"), CASES)
def test_outside_jit_it_raises_before_the_optimizer_acts(grads, name):
    def never(*_):
        raise AssertionError

    inner = optax.GradientTransformation(lambda params: (), never)
    with pytest.raises(FloatingPointError) as raised:
        clipjax.raise_on_nonfinite(inner).update(grads, ())
    assert str(raised.value) == f"the gradient has NaN or inf in {name!r}"


def test_finite_steps_are_those_of_the_inner_optimizer():
    state = OPTIMIZER.init(GOOD)
    inner = optax.trace(0.9)
    assert jax.tree.structure(state) == jax.tree.structure(inner.init(GOOD))
    assert_same_bits(OPTIMIZER.update(GOOD, state), inner.update(GOOD, state))


def test_inside_jit_checkify_returns_the_error():
    update = jax.jit(checkify.checkify(OPTIMIZER.update))
    state = OPTIMIZER.init(GOOD)
    error, (updates, _) = update(GOOD, state)
    assert error.get() is None
    error.throw()
    assert_same_bits(updates, GOOD)
    for grads, name in CASES:
        error, _ = update(grads, state)
        expected = f"the gradient has NaN or inf in {name!r} (`check` failed)"
        assert error.get() == expected
        with pytest.raises(checkify.JaxRuntimeError, match="NaN or inf in"):
            error.throw()


def test_under_scan_and_vmap_with_checkify():
    sizes = np.float32([1, 2, np.nan, 3])

    def step(state, size):
        return OPTIMIZER.update({"w": size}, state)[::-1]

    def many(sizes):
        return jax.lax.scan(step, OPTIMIZER.init({"w": sizes[0]}), sizes)

    def batch(sizes):
        return jax.vmap(lambda s: step(OPTIMIZER.init({"w": s}), s))(sizes)

    for function in (many, batch):
        checked = checkify.checkify(function)
        assert checked(sizes)[0].get().startswith("the gradient has NaN or inf in 'w'")
        assert checked(sizes[:2])[0].get() is None


def test_inside_jit_without_checkify_it_says_so():
    with pytest.raises(ValueError, match=r"functionalizing it through `checkify"):
        jax.jit(OPTIMIZER.update)(GOOD, OPTIMIZER.init(GOOD))


def test_a_wrong_argument():
    with pytest.raises(TypeError, match="inner must be a gradient transformation"):
        clipjax.raise_on_nonfinite(optax.adam)
