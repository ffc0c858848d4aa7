"""Clipping each example by itself: both methods, against one example at a time.

What several tests ask for is compiled once, in one program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracle import eps, flat, norm

import clipjax
from clipjax import rules

every_method = pytest.mark.parametrize("method", ["ghost", "vmap"])
BATCH = 6


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


PARAMS = {"first": normal(0, 4, 5), "bias": normal(1, 1, 5), "last": normal(2, 5, 3)}
INPUTS, TARGETS = normal(3, BATCH, 4), normal(4, BATCH, 3)
NO_PADDING = np.zeros(BATCH, bool)
LIMITS = np.linspace(0.1, 5.0, BATCH, dtype=np.float32)


def loss(params, inputs, targets):
    hidden = jnp.tanh(inputs @ params["first"] + params["bias"])
    return jnp.sum((hidden @ params["last"] - targets) ** 2)


@functools.cache
def singles():
    """Gives every example's gradient, by itself."""
    one = jax.jit(jax.grad(loss))
    found = [one(PARAMS, INPUTS[i : i + 1], TARGETS[i : i + 1]) for i in range(BATCH)]
    return jax.tree.map(np.asarray, found)


def expected(weigh):
    return sum(weigh(i, norm(g)) * flat(g) for i, g in enumerate(singles()))


def make(method, **options):
    options = {"l2_clip_norm": 1.0, **options}
    return clipjax.clipped_grad(loss, batch_argnums=(1, 2), method=method, **options)


RULES = {
    "hard": lambda n: min(1.0, 1 / n),
    "soft": lambda n: 1 / (1 + n),
    "normalise": lambda n: 1 / n,
}


TABLE = {"first": 0.5, "bias": None, "last": 2.0}
VARIANTS = {name: {"rule": getattr(rules, name), "normalize_by": 2.0} for name in RULES}
VARIANTS |= {
    "reported": {"return_grad_norms": True, "return_values": True},
    "unsafe": {"nan_safe": False},
    "by function": {"l2_clip_norm": lambda x, y: jnp.abs(x[0]) + 0 * y[0]},
    "by table": {"l2_clip_norm": TABLE},
    "zero": {"l2_clip_norm": 0.0},
    "infinite": {"l2_clip_norm": np.inf},
}


@functools.cache
def compiled(method):
    """Compiles all variants in one program, of thresholds that are arguments too."""

    def run(inputs, targets, padding, limit, limits):
        traced = {"limit": limit, "limits": limits}
        of_limits = {name: {"l2_clip_norm": value} for name, value in traced.items()}
        return {
            name: make(method, **options)(
                PARAMS, inputs, targets, is_padding_example=padding
            )
            for name, options in (VARIANTS | of_limits).items()
        }

    return jax.jit(run)


def results(method, inputs=INPUTS, padding=NO_PADDING, limit=1.0, targets=TARGETS):
    found = compiled(method)(inputs, targets, padding, np.float32(limit), LIMITS)
    return jax.tree.map(np.asarray, found)


@every_method
@pytest.mark.parametrize("rule", RULES)
def test_rules(method, rule):
    found = results(method)[rule]
    exact = expected(lambda i, n: RULES[rule](n) / 2)
    np.testing.assert_allclose(flat(found), exact, rtol=1e-5, atol=1e-6)


# How a batch is divided does not depend on the method.
@pytest.mark.parametrize(
    ("method", "size"),
    [("ghost", 4), ("ghost", None), ("vmap", 4), ("vmap", 6), ("vmap", 8)],
)
def test_microbatches(method, size):
    padding = np.arange(BATCH) == 2
    grad = make(
        method, microbatch_size=size, return_grad_norms=True, return_values=True
    )
    found, extra = jax.jit(grad.__call__)(
        PARAMS, INPUTS, TARGETS, is_padding_example=padding
    )
    exact = expected(lambda i, n: 0 if i == 2 else min(1, 1 / n))
    np.testing.assert_allclose(flat(found), exact, rtol=1e-5, atol=1e-6)
    lengths = [norm(gradient) for gradient in singles()]
    np.testing.assert_allclose(extra.grad_norms, lengths, rtol=1e-5)
    assert extra.values.shape == (BATCH,) and extra.aux is None
    assert int(extra.nonfinite_count) == 0


@every_method
def test_j64_two_gradients(method):
    grad = clipjax.clipped_grad(
        lambda w, x: jnp.sum(x @ w), l2_clip_norm=1.0, method=method
    )
    found = jax.jit(grad)(np.zeros(2, "f4"), np.float32([[3.0, 4.0], [0.3, 0.4]]))
    np.testing.assert_allclose(found, [0.9, 1.2], rtol=1e-6)


@every_method
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e25])
def test_bad_examples_add_exactly_nothing(method, bad):
    clean, _ = results(method, padding=np.arange(BATCH) == 1)["reported"]
    targets = TARGETS.copy()
    targets[1] = bad
    with_bad = results(method, targets=targets)
    found, extra = with_bad["reported"]
    np.testing.assert_array_equal(flat(found), flat(clean))
    assert int(extra.nonfinite_count) == 1
    if np.isnan(bad):
        assert np.isnan(flat(with_bad["unsafe"])).any()


@every_method
def test_empty_and_padding_batches(method):
    grad = jax.jit(make(method, return_values=True).__call__)
    found, extra = grad(PARAMS, INPUTS[:0], TARGETS[:0])
    assert not flat(found).any() and extra.values.shape == (0,)
    found, _ = results(method, padding=np.ones(BATCH, bool))["reported"]
    assert not flat(found).any()


@every_method
def test_thresholds_by_example_and_by_parameter(method):
    found = results(method)
    by_example = expected(lambda i, n: min(1, float(LIMITS[i]) / n))
    np.testing.assert_allclose(flat(found["limits"]), by_example, rtol=1e-5, atol=1e-6)
    exact = expected(lambda i, n: min(1, abs(float(INPUTS[i, 0])) / n))
    np.testing.assert_allclose(flat(found["by function"]), exact, rtol=1e-5, atol=1e-6)
    for name, limit in TABLE.items():
        exact = sum(
            g[name] * min(1, (limit or np.inf) / norm(g[name])) for g in singles()
        )
        np.testing.assert_allclose(found["by table"][name], exact, rtol=1e-5, atol=1e-6)
    assert make(method, l2_clip_norm=TABLE).sensitivity() == np.inf
    bounded = make(method, l2_clip_norm={"first": 3.0, "bias": 0.0, "last": 4.0})
    assert bounded.sensitivity("REPLACE_ONE") == 10.0


@every_method
@pytest.mark.parametrize("limit", ["zero", "infinite"])
def test_limits_of_the_threshold(method, limit):
    found = results(method)[limit]
    exact = expected(lambda i, n: 1.0 if limit == "infinite" else 0.0)
    np.testing.assert_allclose(flat(found), exact, rtol=1e-5, atol=1e-5)


@every_method
def test_invalid_thresholds_that_are_traced(method):
    assert flat(results(method)["limit"]).any()
    for invalid in (-1.0, np.nan):
        assert not flat(results(method, limit=invalid)["limit"]).any()


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("ghost", jnp.bfloat16), ("ghost", jnp.float16), ("vmap", jnp.float16)],
)
def test_bound_in_narrow_dtypes(method, dtype):
    params, inputs, targets = jax.tree.map(
        lambda x: np.asarray(x).astype(dtype), (PARAMS, INPUTS, TARGETS)
    )
    grad = jax.jit(make(method, l2_clip_norm=0.01))
    for i in range(BATCH):
        found = grad(params, inputs[i : i + 1], targets[i : i + 1])
        assert jax.tree.leaves(found)[0].dtype == dtype
        assert norm(found) <= 0.01 * (1 + eps(dtype))
    wide = jax.eval_shape(make(method, dtype=jnp.float32), params, inputs, targets)
    assert jax.tree.leaves(wide)[0].dtype == jnp.float32


@every_method
def test_aux_keys_and_several_arguments(method):
    def noisy(weights, batch, key, offset):
        kept = jax.random.bernoulli(key, 0.5, batch["x"].shape)
        value = jnp.sum((jnp.where(kept, batch["x"], 0) @ weights + offset) ** 2)
        return value, {"kept": kept}

    grad = clipjax.clipped_grad(
        *(noisy, (0, 3), True),
        l2_clip_norm=np.inf,
        prng_argnum=2,
        keep_batch_dim=False,
        method=method,
    )

    def summed(weights, offset, inputs, key):
        one = lambda x, key: noisy(weights, {"x": x}, key, offset)[0]  # noqa: E731
        return jnp.sum(jax.vmap(one)(inputs, jax.random.split(key, BATCH)))

    @jax.jit
    def both(weights, offset, inputs, key):
        plain = jax.grad(summed, argnums=(0, 1))(weights, offset, inputs, key)
        return grad(weights, {"x": inputs}, key, offset), plain

    arguments = (normal(0, 4), np.float32(0.5), INPUTS, jax.random.key(7))
    ((found, offset), extra), alone = both(*arguments)
    assert extra.aux["kept"].shape == INPUTS.shape and extra.values is None
    np.testing.assert_allclose(found, alone[0], rtol=1e-5)
    np.testing.assert_allclose(offset, alone[1], rtol=1e-5)


@every_method
def test_all_else_on_a_mesh(method):
    """Thresholds by example, norms in microbatches, arguments that are no arrays."""

    def named(params, inputs, targets, name):
        return loss(params, inputs, targets) * (2.0 if name == "twice" else 1.0)

    batch = (normal(5, 8, 4), normal(6, 8, 3), np.linspace(0.1, 2.0, 8, dtype="f4"))
    options = {"batch_argnums": (1, 2), "method": method}

    def measure(inputs, targets, limits):
        grad = clipjax.clipped_grad(named, l2_clip_norm=limits, **options)
        norms = clipjax.per_example_grad_norms(named, microbatch_size=4, **options)
        arguments = (PARAMS, inputs, targets, "twice")
        return grad(*arguments), norms(*arguments)

    alone = jax.jit(measure)(*batch)
    # XLA chooses shardings in both modes: `test_one_all_reduce` has all four pairs.
    kind = AxisType.Explicit if method == "ghost" else AxisType.Auto
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        split = NamedSharding(mesh, PartitionSpec("data"))
        found = jax.jit(measure)(*jax.device_put(batch, split))
    np.testing.assert_allclose(flat(found), flat(alone), rtol=1e-5, atol=1e-6)


def test_norms_alone():
    norms = clipjax.per_example_grad_norms(loss, batch_argnums=(1, 2))
    lengths = [norm(gradient) for gradient in singles()]
    found = jax.jit(norms)(PARAMS, INPUTS, TARGETS)
    np.testing.assert_allclose(found, lengths, rtol=1e-5)
    by_leaf = clipjax.per_example_grad_norms(
        loss, batch_argnums=(1, 2), per_leaf=True, microbatch_size=4
    )
    by_leaf = jax.jit(by_leaf)(PARAMS, INPUTS, TARGETS)
    lengths = [norm(gradient["first"]) for gradient in singles()]
    np.testing.assert_allclose(by_leaf["first"], lengths, rtol=1e-5)


def test_integer_and_absent_parameters():
    params = {"w": PARAMS["first"], "count": jnp.arange(3), "none": None}
    value = lambda p, x: jnp.sum((x @ p["w"]) ** 2) + p["count"].astype("f4")[0]  # noqa: E731
    found = jax.jit(clipjax.clipped_grad(value, l2_clip_norm=1.0))(params, INPUTS)
    assert found["none"] is None and not np.asarray(found["count"]).any()
    assert np.asarray(found["w"]).any()


def test_a_python_number_is_a_parameter():
    value = lambda p, x: 0.5 * jnp.mean((x - p) ** 2)  # noqa: E731
    grad = clipjax.clipped_grad(value, l2_clip_norm=np.inf)
    batch = jnp.array([0.0, 7.0, -2.0])
    both = jax.jit(lambda traced, batch: (grad(3.0, batch), grad(traced, batch)))
    assert both(3.0, batch) == (4.0, 4.0)


def test_jit_takes_it_whatever_the_threshold_is():
    for limit in (1.0, jnp.ones(BATCH)):
        grad = make("ghost", l2_clip_norm=limit)
        form = jax.jit(grad).eval_shape(PARAMS, INPUTS, TARGETS)
        assert jax.tree.structure(form) == jax.tree.structure(PARAMS)
    # Without jit: `test_parity_jax_privacy.py`.
    grad = make("ghost", l2_clip_norm=TABLE | {"first": LIMITS})
    found = jax.jit(grad)(PARAMS, INPUTS, TARGETS)
    for name, limit in (TABLE | {"first": None}).items():
        limits = LIMITS if name == "first" else np.full(BATCH, limit or np.inf)
        exact = sum(
            g[name] * min(1, c / norm(g[name]))
            for c, g in zip(limits, singles(), strict=True)
        )
        np.testing.assert_allclose(found[name], exact, rtol=1e-5, atol=1e-6)


def test_plan():
    text = make("ghost").plan(PARAMS, INPUTS, TARGETS)
    assert text.splitlines()[:2] == [
        "bias: gradients per example (used in add), 0.000114 MiB",
        "first: dot by Gram matrices, 0.000206 MiB",
    ]
    assert text.count("MiB") == 4
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    assert make("ghost").plan(shapes, INPUTS, TARGETS) == text
    assert "the method vmap" in make("vmap").plan(PARAMS, INPUTS, TARGETS)


REFUSED = [
    ({"l2_clip_norm": -1.0}, ValueError, "l2_clip_norm must be"),
    ({"l2_clip_norm": np.nan}, ValueError, "l2_clip_norm must be"),
    ({"l2_clip_norm": "1"}, TypeError, "l2_clip_norm must be"),
    ({"method": "fast"}, ValueError, "method must be one of"),
    ({"rule": "hard"}, TypeError, "rule must be a Rule"),
    ({"normalize_by": 0.0}, ValueError, "normalize_by must be"),
    ({"microbatch_size": 0}, ValueError, "microbatch_size must be"),
    ({"argnums": 1}, ValueError, "must name different arguments"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_what_is_refused(options, error, message):
    options = {"l2_clip_norm": 1.0, **options}
    with pytest.raises(error, match=message):
        clipjax.clipped_grad(loss, **options)


def test_what_has_no_sensitivity():
    for options, message in [
        ({"rule": rules.floored(0.1)}, "does not bound"),
        ({"nan_safe": False}, "nan_safe must be True"),
        ({"l2_clip_norm": lambda x, y: x[0]}, "must not be a function"),
    ]:
        with pytest.raises(ValueError, match=message):
            make("ghost", **options).sensitivity()
    with pytest.raises(ValueError, match="neighboring_relation must be one of"):
        make("ghost").sensitivity("ONE_MORE")
    assert make("ghost", normalize_by=4.0).sensitivity() == 0.25
    with pytest.raises(ValueError, match="the examples along the first axis"):
        make("ghost")(PARAMS, INPUTS, TARGETS[:2])
    with pytest.raises(ValueError, match="must return a scalar loss"):
        clipjax.clipped_grad(lambda w, x: x @ w, l2_clip_norm=1.0)(
            jnp.ones((4, 2)), INPUTS
        )


def test_plan_takes_shapes_for_all_arguments():
    def loss(params, inputs, key, scale):
        keep = jax.random.bernoulli(key, 0.5, inputs.shape)
        return jnp.sum(jnp.where(keep, inputs, 0) @ params["w"]) * scale

    grad = clipjax.clipped_grad(loss, l2_clip_norm=1.0, prng_argnum=2)
    arguments = (
        {"w": jnp.ones((3, 2)), "steps": jnp.int32(4)},
        jnp.ones((5, 3)),
        jax.random.key(0),
        jnp.float32(2.0),
    )
    shapes = jax.eval_shape(lambda *arguments: arguments, *arguments)
    assert grad.plan(*shapes) == grad.plan(*arguments)
    assert "w: dot" in grad.plan(*shapes)


@pytest.mark.parametrize("method", ["ghost", "vmap"])
def test_shard_map_must_not_sum_before_the_clip(method):
    mesh = jax.make_mesh((4,), ("d",), (AxisType.Auto,), devices=jax.devices()[:4])
    inputs, part = 3 * np.eye(4, dtype=np.float32), PartitionSpec("d")
    whole = PartitionSpec()
    grad = clipjax.clipped_grad(
        lambda w, x: jnp.sum(x @ w), l2_clip_norm=1.0, method=method
    )
    local = lambda inputs: grad(jnp.zeros(4), inputs)  # noqa: E731
    where = {"mesh": mesh, "in_specs": part}
    with pytest.raises(ValueError, match="before they can be clipped.*check_vma=False"):
        jax.jit(jax.shard_map(local, out_specs=whole, **where))(inputs)
    summed = lambda inputs: jax.lax.psum(local(inputs), "d")  # noqa: E731
    run = jax.shard_map(summed, out_specs=whole, check_vma=False, **where)
    found, alone = jax.jit(lambda inputs: (run(inputs), local(inputs)))(inputs)
    np.testing.assert_allclose(found, alone)


def test_padding_of_another_shape_is_refused():
    grad = make("ghost")
    for padding in (True, jnp.ones(3, bool)):
        with pytest.raises(ValueError, match=r"is_padding_example must be of shape"):
            grad(PARAMS, normal(5, 8, 4), normal(6, 8, 3), is_padding_example=padding)
