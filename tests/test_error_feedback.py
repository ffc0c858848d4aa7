"""`error_feedback` gives back what a clip cuts off: nothing is lost but by the cap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec
from oracle import assert_close, assert_same_bits, eps, kinds, norm, random_tree, wide
from steps import run as run_steps

import clipjax
from clipjax import error_feedback, guards

SHAPES = {"a": (3, 2), "b": (4,), "c": ()}


CLIP = clipjax.clip_by_global_norm(1.0)
BY_NORM = error_feedback(CLIP)
BY_VALUE = error_feedback(clipjax.clip_by_value(1.0))


def run(transform, batches, params=None):
    return run_steps(transform, batches, batches[0] if params is None else params)


def gradients(steps, dtype=jnp.float32, size=5.0):
    return [random_tree(seed, SHAPES, dtype, size) for seed in range(steps)]


def test_closed_form_on_scalars():
    sequence = [2.5, 0.0, -3.0, 0.25, 0.5, -4.0, 1.0, 1.0, 1.0, 1.0]
    residual = 0.0
    found = run(BY_VALUE, [jnp.float32(g) for g in sequence])
    for gradient, (update, state) in zip(sequence, found, strict=True):
        total = gradient + residual
        expected = np.clip(total, -1, 1)
        residual = total - expected
        assert float(update) == expected
        assert float(state.residual) == residual


@pytest.mark.parametrize(
    ("transform", "dtype"),
    [(BY_NORM, jnp.float32), (BY_NORM, jnp.float16), (BY_VALUE, jnp.bfloat16)],
)
def test_updates_and_residual_add_up_to_the_gradients(transform, dtype):
    batches = gradients(20, dtype)
    found = run(transform, batches)
    given = jax.tree.map(lambda *us: sum(map(wide, us)), *[u for u, _ in found])
    owed = jax.tree.map(lambda r, u: wide(r) + u, found[-1][1].residual, given)
    came = jax.tree.map(lambda *gs: sum(map(wide, gs)), *batches)
    assert_close(owed, came, rtol=0, atol=20 * 5 * eps(jnp.float32))
    for leaf in jax.tree.leaves(found[-1][1].residual):
        assert leaf.dtype == jnp.float32


def test_a_clip_that_never_clips_changes_nothing():
    single, narrow = gradients(3), gradients(3, jnp.bfloat16)
    for batches in (single, narrow):
        special = jnp.asarray([-0.0, 1e-40, 0.0, -1.0], batches[1]["b"].dtype)
        batches[1]["b"] = special
    batches = list(zip(single, narrow, strict=True))
    found = run(error_feedback(clipjax.clip_by_global_norm(100.0)), batches)
    for grads, (updates, state) in zip(batches, found, strict=True):
        assert_same_bits(updates, grads)
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(state.residual))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_the_bound_of_the_clip_holds(dtype):
    for updates, _ in run(BY_NORM, gradients(8, dtype)):
        assert norm(updates) <= 1 + eps(dtype)


def test_the_cap_holds_and_scales():
    free, capped = BY_NORM, error_feedback(CLIP, cap=6.0)
    batches = gradients(10)
    norms = [norm(state.residual) for _, state in run(capped, batches)]
    assert max(norms) <= 6.0 * (1 + eps(jnp.float32))
    assert max(norms) == pytest.approx(6.0, rel=1e-6)
    # Up to the first time that the cap acts, both have the same history.
    pairs = zip(run(free, batches), run(capped, batches), strict=True)
    for (_, theirs), (_, mine) in pairs:
        length = norm(theirs.residual)
        scale = min(1.0, 6.0 / length)
        scaled = jax.tree.map(lambda leaf, scale=scale: wide(leaf) * scale, theirs)
        assert_close(mine.residual, scaled.residual, rtol=1e-5, atol=1e-6)
        if scale < 1:
            break
    else:
        pytest.fail("the cap was never reached")


def test_cap_zero_is_the_clip_alone():
    clip = clipjax.clip_by_value(0.3)
    batches = [grads["a"] for grads in gradients(4)]
    for (mine, _), (theirs, _) in zip(
        run(error_feedback(clip, cap=0.0), batches), run(clip, batches), strict=True
    ):
        assert_same_bits(mine, theirs)


@pytest.mark.parametrize(
    ("guard", "cap"),
    [(guards.propagate, None), (guards.zero, 2.0), (guards.drop, 2.0)],
    ids=repr,
)
def test_a_bad_gradient_never_enters_the_residual(guard, cap):
    clip = clipjax.clip_by(1.0, nonfinite=guard)
    transform = error_feedback(clip, cap)
    first, second, third = gradients(3)
    good = run(transform, [first, third])
    for bad in (np.nan, -np.inf):
        worse = second | {"b": second["b"].at[2].set(bad)}
        found = run(transform, [first, worse, third])
        assert_same_bits(found[1][1].residual, found[0][1].residual)
        # The residual that stays is not given out as well.
        expected, _ = jax.jit(clip.update)(worse, clip.init(worse))
        assert_same_bits(found[1][0], expected)
        assert_same_bits(found[2][0], good[1][0])
        assert_same_bits(found[2][1].residual, good[1][1].residual)


def test_a_clip_that_breaks_does_not_spoil_the_residual():
    broken = optax.stateless(lambda g, _: jax.tree.map(lambda x: x * jnp.nan, g))
    found = run(error_feedback(broken), gradients(2))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(found[-1][1].residual))


def test_sums_that_overflow_do_not_enter():
    found = run(BY_VALUE, [jnp.float32(3e38)] * 2 + [jnp.float32(0.0)])
    assert float(found[1][1].residual) == float(found[0][1].residual)
    assert [float(update) for update, _ in found] == [1.0, 1.0, 1.0]


def heavy_tailed(steps):
    """Draws gradients of mean 0.15: mostly -0.5, at times 6."""
    rare = np.random.default_rng(0).random(steps) < 0.1
    return jnp.asarray(np.where(rare, 6.0, -0.5), jnp.float32)


def walk(transform, batches):
    optimizer = optax.chain(transform, optax.sgd(1.0))

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jnp.zeros(())
    (params, state), _ = jax.lax.scan(step, (start, optimizer.init(start)), batches)
    return float(params), state


def test_the_mean_update_tends_to_the_mean_gradient():
    batches = heavy_tailed(20_000)
    clip, mean = clipjax.clip_by_value(1.0, report=False), float(batches.mean())
    biased = -walk(clip, batches)[0] / len(batches)
    unbiased, state = walk(error_feedback(clip), batches)
    assert mean == pytest.approx(0.15, abs=0.05)
    assert biased < -0.3  # it even goes the wrong way
    assert -unbiased / len(batches) == pytest.approx(mean, abs=0.005)
    owed = float(state[0].residual)
    assert -unbiased + owed == pytest.approx(len(batches) * mean, rel=1e-4)


def test_vmap_keeps_seeds_apart():
    transform = error_feedback(CLIP, cap=3.0)
    batches = jnp.asarray([[3.0, 4.0], [np.nan, 1.0]])
    state = jax.vmap(transform.init)(batches)
    for _ in range(2):
        updates, state = jax.jit(jax.vmap(transform.update))(batches, state)
    assert_close(updates[0], np.array([0.6, 0.8]))
    assert norm(state.residual[0]) == pytest.approx(3.0, rel=1e-6)
    assert np.all(state.residual[1] == 0)


def test_other_leaves_and_shapes_only():
    key = jax.random.key(0)
    params = {"i": jnp.arange(3), "k": key, "n": None, "w": jnp.ones(2, jnp.bfloat16)}
    transform = error_feedback(CLIP, cap=1.0)
    shapes = jax.eval_shape(lambda: params)
    state = transform.init(shapes)
    assert kinds(state) == kinds(transform.init(params))
    updates, state = jax.jit(transform.update)(params, state, params)
    assert_same_bits(updates["i"], params["i"])
    assert jnp.array_equal(jax.random.key_data(updates["k"]), jax.random.key_data(key))
    assert updates["n"] is None and updates["w"].dtype == jnp.bfloat16
    assert state.residual["n"] is None
    assert not np.any(state.residual["i"]) and float(state.residual["k"]) == 0
    assert state.residual["w"].dtype == jnp.float32


def test_double_precision_and_complex_residuals():
    with jax.enable_x64(True):
        params = {"d": jnp.ones(2, jnp.float64), "z": jnp.ones(2, jnp.complex64)}
        state = BY_NORM.init(params)
        assert state.residual["d"].dtype == jnp.float64
        assert state.residual["z"].dtype == jnp.complex64
    grads = [jnp.asarray([3.0 + 4.0j, 1.0j], jnp.complex64)] * 2
    (first, state), _ = run(BY_NORM, grads)
    assert_close(wide(first) + wide(state.residual), wide(grads[0]))


def test_float32_parameters_and_bfloat16_gradients():
    params, grads = random_tree(9, SHAPES), gradients(1, jnp.bfloat16)[0]
    transform = error_feedback(clipjax.adaptive_grad_clip(0.1), cap=2.0)
    state = transform.init(params)
    updates, new = jax.jit(transform.update).eval_shape(grads, state, params)
    assert kinds(updates) == kinds(grads) and kinds(new) == kinds(state)


def test_parameters_and_extra_arguments_reach_the_clip():
    seen = []

    def update(updates, state, params=None, *, value):
        seen.append((params, value))
        return updates, state

    clip = optax.GradientTransformationExtraArgs(lambda params: (), update)
    transform = error_feedback(clip)
    grads = gradients(1)[0]
    jax.eval_shape(
        lambda: transform.update(grads, transform.init(grads), "params", value=3.0)
    )
    assert seen == [("params", 3.0)]


def test_multi_steps_around_it():
    inner = BY_NORM
    steps = optax.MultiSteps(inner, every_k_schedule=2)
    batches = gradients(4)
    with jax.numpy_dtype_promotion("standard"):  # Optax itself mixes dtypes here
        steps = steps.gradient_transformation()
        updates, state = run(steps, batches)[-1]
    means = [
        jax.tree.map(lambda x, y: (x + y) / 2, *batches[i : i + 2]) for i in (0, 2)
    ]
    expected, inner_state = run(inner, means)[-1]
    assert_close(updates, expected, rtol=1e-5)
    assert_close(
        state.inner_opt_state.residual, inner_state.residual, rtol=1e-5, atol=1e-6
    )


def test_shard_map_equals_one_device():
    grads = {"r": np.arange(1, 5, dtype=np.float32), "s": np.arange(8.0, dtype="f4")}
    specs = {"r": PartitionSpec(), "s": PartitionSpec("x")}
    clip = clipjax.clip_by_global_norm(1.0)
    whole = error_feedback(clip, cap=5.0)
    expected, expected_state = jax.jit(whole.update)(grads, whole.init(grads))

    def shards(transform):
        def step(grads, residual):
            state = transform.init(grads)._replace(residual=residual)
            updates, state = transform.update(grads, state)
            return updates, state.residual

        mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
        mapped = jax.shard_map(
            step, mesh=mesh, in_specs=(specs, specs), out_specs=(specs, specs)
        )
        return jax.jit(mapped)(grads, whole.init(grads).residual)

    split = clipjax.clip_by_global_norm(1.0, axis_name="x")
    updates, residual = shards(error_feedback(split, cap=5.0, axis_name="x"))
    assert_close(updates, expected, rtol=1e-6)
    assert_close(residual, expected_state.residual, rtol=1e-6)
    with pytest.raises(ValueError, match="pass axis_name"):
        shards(error_feedback(split, cap=5.0))


def test_metrics_see_the_clip_inside():
    _, state = run(BY_NORM, gradients(1))[0]
    assert float(clipjax.metrics(state)["clip/grad_norm_raw"]) == pytest.approx(5.0)


def test_a_leaf_that_init_did_not_see():
    state = BY_NORM.init({"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="init's parameters have no leaf b"):
        BY_NORM.update({"b": jnp.ones(2)}, state)


REFUSED = [
    ({"clip": 1.0}, TypeError, "clip must be a gradient transformation, got 1.0"),
    ({"cap": -1.0}, ValueError, "cap must be .* got -1.0"),
    ({"cap": float("nan")}, ValueError, "cap must be .* got nan"),
    ({"cap": True}, TypeError, "cap must be .* got True"),
    ({"cap": "1"}, TypeError, "cap must be .* got '1'"),
]


def test_bad_arguments():
    for arguments, kind, message in REFUSED:
        with pytest.raises(kind, match=message):
            error_feedback(**({"clip": CLIP} | arguments))
