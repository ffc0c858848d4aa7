"""`clip_cotangent`: the identity forwards, and a clip of what comes back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from oracle import assert_close, assert_same_bits, hard_clip, random_tree

import clipjax
from clipjax import clip_cotangent

X = np.float32([3, -4, 12])  # of norm 13


@functools.partial(jax.jit, static_argnames="recipe")
def pulled_back(x, cotangent, max_norm, recipe=clipjax.clip_by_global_norm):
    """Gives the value, and the cotangent that leaves the clip."""
    value, pull = jax.vjp(lambda x: clip_cotangent(x, max_norm, recipe=recipe), x)
    return value, pull(cotangent)[0]


@pytest.mark.parametrize("max_norm", [0.0, 2.6, 13.0, np.inf])
def test_the_value_stays_and_the_cotangent_is_clipped(max_norm):
    value, found = pulled_back(X, X[::-1].copy(), max_norm)
    assert_same_bits(value, X)
    assert_close(found, hard_clip(X[::-1], max_norm), rtol=1e-6)
    if max_norm >= 13:
        assert_same_bits(found, X[::-1])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_a_tree_has_one_norm_and_each_leaf_its_dtype(dtype):
    cotangent = random_tree(1, {"a": (3,), "b": (2, 2)}, jnp.float32, 7.0)
    cotangent["a"] = cotangent["a"].astype(dtype)
    value, found = pulled_back(cotangent, cotangent, 1.0)
    assert_same_bits(value, cotangent)
    assert found["a"].dtype == dtype
    rounding = float(jnp.finfo(dtype).eps)
    assert_close(found, hard_clip(cotangent, 1.0), rtol=rounding)


def test_extreme_magnitudes_nan_and_integers():
    for scale in (1e-25, 1e25):
        _, found = pulled_back(X, np.float32(scale) * X, scale)
        assert_close(found / np.float32(scale), X / 13, rtol=1e-6)
    # 300s in float16, whose squares would overflow.
    _, found = pulled_back(*[np.full(100, 300, np.float16)] * 2, 1.0)
    assert_close(found, np.full(100, 0.1), rtol=1e-3)
    assert np.all(np.isnan(pulled_back(X, np.float32([1, np.nan, 1]), 1.0)[1]))

    def loss(tree):
        tree = clip_cotangent(tree, 1.0)
        return jnp.sum(tree["w"] * tree["n"].astype(jnp.float32))

    tree = {"w": X, "n": np.arange(3)}
    found = jax.grad(loss, allow_int=True)(tree)
    assert found["n"].dtype == jax.dtypes.float0
    assert_close(found["w"], np.arange(3) / np.sqrt(5), rtol=1e-6)


def recurrent(weight, h, max_norm, steps=50):
    """Sums the last state of an RNN; the state is clipped on its way back."""

    def step(h, _):
        return weight @ clip_cotangent(h, max_norm), None

    return jnp.sum(jax.lax.scan(step, h, length=steps)[0])


def test_the_gradient_through_fifty_steps():
    """It explodes without the clip, and with it is that of a loop in NumPy."""
    weight = np.random.default_rng(0).standard_normal((4, 4)).astype("f")
    weight *= np.float32(1.6) / np.abs(np.linalg.eigvals(weight)).max()
    grad = jax.jit(jax.grad(recurrent, argnums=(0, 1)))
    h = np.full(4, 1e-8, np.float32)
    _, exploded = grad(weight, h, np.float32(np.inf))
    by_weight, found = grad(weight, h, np.float32(2.0))
    assert np.linalg.norm(exploded) > 1e9
    states = [h.astype("f8")]
    for _ in range(50):
        states.append(weight @ states[-1])
    cotangent, expected = np.ones(4), np.zeros((4, 4))
    for h in states[-2::-1]:
        expected += np.outer(cotangent, h)
        cotangent = hard_clip(weight.T @ cotangent, 2.0)
    assert_close(found, cotangent, rtol=1e-4)
    assert_close(by_weight, expected, rtol=1e-4)
    assert np.linalg.norm(found) <= 2.0 * (1 + 1e-6)
    # No retrace for another number.
    assert grad._cache_size() == 1


def test_under_vmap_each_example_has_its_own_norm():
    batch = np.float32([1, 0.01, -3])[:, None] * X
    expected = np.stack([hard_clip(example, 1.0) for example in batch])

    def loss(x, max_norm, by):
        return jnp.vdot(clip_cotangent(x, max_norm), by)

    of_each = jax.jit(jax.vmap(jax.grad(loss), (0, 0, 0)))
    assert_close(of_each(batch, np.ones(3, "f"), batch), expected, rtol=1e-6)
    limits, xs = np.array([0.5, 1, 100], np.float32), np.stack([X] * 3)
    by_limit = np.stack([hard_clip(X, c) for c in limits])
    assert_close(of_each(xs, limits, xs), by_limit, rtol=1e-6)

    @jax.jit
    @jax.grad
    def total(xs):
        each = jax.vmap(loss, (0, None, 0))(xs, 1.0, batch)
        # The batch in x itself: one norm for all.
        return jnp.sum(each) + 0.5 * jnp.vdot(clip_cotangent(xs, 1.0), batch)

    expected += hard_clip(0.5 * batch, 1.0)
    assert_close(total(batch), expected, rtol=1e-6)


def test_second_derivatives_are_those_of_the_clip():
    """In reverse over reverse and forward over reverse, against NumPy's formula."""
    loss = lambda x: jnp.sum(clip_cotangent(x, 1.0) ** 3)  # noqa: E731
    cotangent = 3 * np.square(X.astype("f8"))
    size = np.linalg.norm(cotangent)
    along = np.outer(cotangent, cotangent) / size**2
    expected = (np.eye(3) - along) / size @ np.diag(6 * X.astype("f8"))
    for second in (jax.jacrev(jax.grad(loss)), jax.hessian(loss)):
        assert_close(jax.jit(second)(X), expected, rtol=1e-4)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(loss, (X,), (X,))


def test_other_recipes_and_max_norm_s_derivative():
    _, found = pulled_back(X, X, 3.5, recipe=clipjax.clip_by_value)
    assert_close(found, np.clip(X, -3.5, 3.5))
    _, found = pulled_back(X, X, 13.0, recipe=clipjax.soft_clip_by_global_norm)
    assert_close(found, X / 2, rtol=1e-6)
    by_norm = jax.grad(lambda c: jnp.sum(clip_cotangent(X, c) ** 2))(1.0)
    assert by_norm == 0
    for recipe in (clipjax.zclip, lambda c, **_: clipjax.scale_by_l0_l1(1, c)):
        with pytest.raises(ValueError, match="recipe must return a clip without a mem"):
            clip_cotangent(X, 1.0, recipe=recipe)


def test_remat_and_double_precision():
    loss = lambda x: jnp.sum(clip_cotangent(x, 0.1) * x)  # noqa: E731
    plain, remat = (jax.jit(jax.grad(f)) for f in (loss, jax.checkpoint(loss)))
    assert_close(remat(X), plain(X), rtol=1e-6)
    with jax.enable_x64(True):
        _, found = pulled_back(X.astype("f8"), X.astype("f8"), 0.1)
        assert found.dtype == np.float64
        assert_close(found, hard_clip(X, 0.1), rtol=1e-14)


def test_on_a_mesh():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    xs = np.arange(16, dtype=np.float32)
    split = PartitionSpec("x")

    def grads(axis_name):
        grad = jax.grad(
            lambda x: jnp.vdot(clip_cotangent(x, 1.0, axis_name=axis_name), x) / 2
        )
        shard = jax.shard_map(grad, mesh=mesh, in_specs=split, out_specs=split)
        return jax.jit(shard)(xs)

    # Half of it comes by the product, and does not pass the clip.
    assert_close(grads("x"), xs / 2 + hard_clip(xs / 2, 1.0), rtol=1e-6)
    each = [hard_clip(pair / 2, 1.0) for pair in xs.reshape(8, 2)]
    assert_close(grads(()), xs / 2 + np.concatenate(each), rtol=1e-6)
    with pytest.raises(ValueError, match="pass axis_name"):
        grads(None)
    alone = jax.jit(jax.grad(lambda x: jnp.vdot(clip_cotangent(x, 1.0), xs)))
    sharded = jax.device_put(xs, jax.NamedSharding(mesh, split))
    assert_close(alone(sharded), hard_clip(xs, 1.0), rtol=1e-6)


def test_wrong_arguments():
    for settings, kind, message in (
        ({"max_norm": -1.0}, ValueError, "max_norm must be .* got -1.0"),
        ({"max_norm": np.nan}, ValueError, "max_norm must be .* got nan"),
        ({"max_norm": "1"}, TypeError, "max_norm must be .* got '1'"),
        ({"max_norm": 1.0, "recipe": 2}, TypeError, "recipe must be a function .* 2"),
        ({"max_norm": 1.0, "axis_name": 3}, TypeError, "axis_name must be .* got 3"),
    ):
        with pytest.raises(kind, match=message):
            clip_cotangent(X, **settings)
