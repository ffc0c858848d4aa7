"""Derivatives through a clip: no NaN anywhere (sharp edges K)."""

import functools

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from oracle import assert_close, eps, flat, random_tree

import clipjax
from clipjax import granularity, norms, rules

# One of each norm, rule, structure, and of thresholds that pass derivatives on: these,
# and those that are derived twice.
TWICE = ("rule-hard", "norm-lp", "recipe-spectral_clip")
ONCE = (
    "recipe-clip_by_value",
    "recipe-adaptive_grad_clip",
    "norm-linf",
    "rule-tanh",
    "rule-skip",
    "guard-drop",
    "entries-soft",
    "threshold-quantile",
    "threshold-estimated_smoothness",
)


def total(key):
    """Gives the sum of the clipped entries, weighed, as a scalar function."""
    clip, params = catalogue.clip(key), catalogue.parameters()
    weights = catalogue.gradients(seed=7)

    def function(grads):
        updates, _ = clip.update(grads, clip.init(params), params)
        products = jax.tree.map(lambda u, w: jnp.sum(u * w), updates, weights)
        return sum(jax.tree.leaves(products))

    return function


@jax.jit
def derivatives(grads):
    """Derives all in one program, which compiles faster than one for each."""
    return {key: jax.grad(total(key))(grads) for key in ONCE}


@jax.jit
def both_derivatives(grads):
    def curvature(grads, key):
        slope = jax.grad(total(key))(grads)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(slope)), slope

    return {key: jax.grad(curvature, has_aux=True)(grads, key) for key in TWICE}


@pytest.mark.parametrize("key", ONCE + TWICE)
def test_k71_first_derivative_is_finite(key):
    def first(size):
        grads = catalogue.gradients(size=size)
        if key in TWICE:
            return flat(both_derivatives(grads)[key][1])
        return flat(derivatives(grads)[key])

    found = np.array([first(size) for size in (0.0, 1e-3, 5.0)])
    assert np.all(np.isfinite(found))
    assert np.any(found[1:] != 0)


@pytest.mark.parametrize("key", TWICE)
def test_k72_second_derivative_is_finite(key):
    for size in (0.0, 5.0):
        second, _ = both_derivatives(catalogue.gradients(size=size))[key]
        assert np.all(np.isfinite(flat(second))), size


def test_k72_jvp_vmap_and_remat_agree():
    function = total("rule-hard")
    grads, tangent = catalogue.gradients(), catalogue.gradients(seed=3)

    @jax.jit
    def three_ways(grads, batch):
        gradient = jax.grad(jax.checkpoint(function))(grads)
        _, slope = jax.jvp(function, (grads,), (tangent,))
        return gradient, slope, jax.vmap(jax.grad(function))(batch)

    batch = jax.tree.map(lambda leaf: np.stack([0 * leaf, leaf]), jax.device_get(grads))
    gradient, slope, many = three_ways(grads, batch)
    expected = float(np.vdot(flat(gradient), flat(tangent)))
    # The two modes add the same terms up in another order.
    assert float(slope) == pytest.approx(expected, rel=64 * eps(jnp.float32))
    assert np.all(np.isfinite(flat(many)))
    second = jax.tree.map(lambda leaf: np.asarray(leaf)[1], many)
    assert_close(second, gradient, rtol=64 * eps(jnp.float32), atol=1e-6)


@jax.jit
def jacobian(grads, threshold):
    clip = clipjax.clip_by_global_norm(threshold)
    return jax.jacobian(lambda grads: clip.update(grads, None)[0])(grads)


def test_hard_clip_has_the_derivative_of_the_formula():
    # d/dg of c g / |g| is c/n (I - g g'/n²).
    grads = np.float32([3.0, 4.0])
    found = jacobian(grads, 1.0)
    g = np.array([3.0, 4.0])
    expected = (np.eye(2) - np.outer(g, g) / 25) / 5
    np.testing.assert_allclose(found, expected, atol=4 * eps(jnp.float32))
    inside = jacobian(grads / 10, 1.0)
    np.testing.assert_array_equal(inside, np.eye(2))


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_derivative_at_extreme_magnitudes(size):
    """As far as the square of the norm is in range: from some 1e-18 to 1e18."""
    found = jacobian(np.float32([0.6, 0.8]) * np.float32(size), size / 5)
    g = np.array([0.6, 0.8])
    expected = (np.eye(2) - np.outer(g, g)) / 5
    np.testing.assert_allclose(found, expected, atol=16 * eps(jnp.float32))


NORMS = [norms.l1, norms.l2, norms.rms, norms.lp(3)]


@jax.jit
def values_and_slopes(grads):
    def function(grads, norm):
        clip = clipjax.clip_by(
            0.5, norm=norm, rule=rules.sqrt, granularity=granularity.leaf()
        )
        return jnp.sum(clip.update(grads, None)[0] ** 3)

    return {repr(norm): jax.value_and_grad(function)(grads, norm) for norm in NORMS}


@pytest.mark.parametrize("norm", NORMS, ids=repr)
def test_norms_match_finite_differences(norm):
    with jax.enable_x64(True):
        grads = np.array([0.3, -1.2, 2.0])
        _, found = values_and_slopes(grads)[repr(norm)]
        step = 1e-6
        for i in range(3):
            shift = step * np.eye(3)[i]
            higher, lower = (
                float(values_and_slopes(grads + side * shift)[repr(norm)][0])
                for side in (1, -1)
            )
            slope = (higher - lower) / (2 * step)
            assert float(found[i]) == pytest.approx(float(slope), rel=1e-6, abs=1e-9)


def test_stop_gradient_on_the_threshold_input():
    def loss(threshold):
        updates, _ = clipjax.clip_by_global_norm(threshold).update(
            jnp.array([3.0, 4.0]), None
        )
        return jnp.sum(updates)

    # u = c g / n, so that the sum moves by (3 + 4) / 5 a unit of threshold.
    assert float(jax.jit(jax.grad(loss))(1.0)) == pytest.approx(1.4, rel=1e-6)


# One of each kind: sums and maxima over devices, memories, thresholds of entries.
ON_A_MESH = (
    "recipe-clip_by_global_norm",
    "recipe-clippy",
    "recipe-quantization_clip",
    "recipe-zclip",
    "norm-lp",
)


@functools.cache
def slopes_on_a_mesh():
    """Gives the derivatives of all on a mesh, and those on one device."""
    shapes, specs = (
        {"b": (1, 4), "w": (8, 4)},
        {"b": PartitionSpec(), "w": PartitionSpec("x")},
    )
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    params, grads, weights = (random_tree(seed, shapes, size=3.0) for seed in range(3))

    def products(key, grads, params, weights):
        clip = catalogue.clip(key)
        updates, _ = clip.update(grads, clip.init(params), params)
        return {name: jnp.sum(updates[name] * weights[name]) for name in shapes}

    def on_one_device(grads, key):
        return sum(products(key, grads, params, weights).values())

    def on_mesh(grads, key):
        def on_shards(*trees):
            found = products(key, *trees)
            return found["b"] + jax.lax.psum(found["w"], "x")

        mapped = jax.shard_map(
            on_shards, mesh=mesh, in_specs=(specs,) * 3, out_specs=PartitionSpec()
        )
        return mapped(grads, params, weights)

    return [
        jax.jit(lambda g, way=way: {key: jax.grad(way)(g, key) for key in ON_A_MESH})(
            grads
        )
        for way in (on_mesh, on_one_device)
    ]


@pytest.mark.parametrize("key", ON_A_MESH)
def test_derivatives_on_a_mesh_are_those_on_one_device(key):
    found, expected = (slopes[key] for slopes in slopes_on_a_mesh())
    assert np.any(flat(expected) != 0)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_derivatives_where_types_do_not_tell():
    """Of a sum over devices, and of a maximum."""
    grads = np.random.default_rng(0).standard_normal((8, 3), np.float32)
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))

    def update(shard, axis_name="x"):
        return [
            clipjax.clip_by(1.0, norm=norm, axis_name=axis_name).update(shard, None)[0]
            for norm in (norms.l2, norms.linf)
        ]

    spec = PartitionSpec("x")
    on_shards = jax.shard_map(
        update, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )

    def slope(function):
        return jax.grad(lambda g: sum(jnp.sum(jnp.sin(u)) for u in function(g)))

    expected = jax.jit(slope(lambda grads: update(grads, ())))(grads)
    for gradient in (
        slope(jax.pmap(update, axis_name="x"))(grads),
        jax.jit(slope(on_shards))(grads),
    ):
        assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_derivatives_of_each_worker_s_clip():
    grads = np.random.default_rng(0).standard_normal((8, 4), np.float32)
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    clip = clipjax.clip_by_global_norm(1.0)
    each = clipjax.per_worker(clip, "x")

    def joined(grads):
        updates, state = each.update(grads, each.init(grads))
        return jnp.sum(jnp.sin(updates)) + state.clip_info.norm_before

    def one_by_one(grads):
        updates, states = jax.vmap(lambda g: clip.update(g, clip.init(g)))(grads)
        return jnp.sum(jnp.sin(jnp.mean(updates, 0))) + jnp.mean(
            states.clip_info.norm_before
        )

    on_mesh = jax.shard_map(
        lambda g: joined(g[0]),
        mesh=mesh,
        in_specs=PartitionSpec("x"),
        out_specs=PartitionSpec(),
    )
    found = jax.jit(jax.grad(on_mesh))(grads)
    expected = jax.jit(jax.grad(one_by_one))(grads)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
