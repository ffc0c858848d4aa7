"""Virtual batches: sums over physical batches, with the optimizer's step once."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from oracle import assert_same_bits

import clipjax
from clipjax import privacy

EXAMPLES, FEATURES, STEPS = 60, 3, 4


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["kernel"] + params["bias"][None])
    return jnp.mean((hidden - y[:, None]) ** 2)


GRAD = clipjax.clipped_grad(
    loss, l2_clip_norm=0.5, normalize_by=20.0, batch_argnums=(1, 2), dtype=jnp.float32
)
clipped_sum = jax.jit(GRAD)
RNG = np.random.default_rng(0)
DATA = (
    RNG.normal(size=(EXAMPLES, FEATURES)).astype(np.float32),
    RNG.normal(size=EXAMPLES).astype(np.float32),
)


def parameters():
    return {"bias": jnp.zeros(2), "kernel": jnp.ones((FEATURES, 2))}


def sampler_of(batch_size):
    return privacy.PoissonSampler(
        EXAMPLES, 1 / 3, jax.random.key(1), batch_size=batch_size
    )


@functools.cache
def private(noise_multiplier=1.0):
    """DP-SGD with momentum, and its compiled update, of a traced is_last."""
    inner = privacy.dp_sgd(
        0.5,
        sensitivity=GRAD.sensitivity("ADD_OR_REMOVE_ONE"),
        noise_multiplier=noise_multiplier,
        key=jax.random.key(2),
        momentum=0.9,
    )
    optimizer = privacy.virtual_batches(inner)

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def advance(clipped, state, params, is_last):
        updates, state = optimizer.update(clipped, state, params, is_last=is_last)
        return optax.apply_updates(params, updates), state

    return inner, optimizer, advance


def trained(batch_size, noise_multiplier=1.0):
    _, optimizer, advance = private(noise_multiplier)
    params, sampler = parameters(), sampler_of(batch_size)
    state = optimizer.init(params)
    for step in range(STEPS):
        for (x, y), is_padding, is_last in sampler.take(DATA, step):
            clipped = clipped_sum(params, x, y, is_padding_example=is_padding)
            params, state = advance(clipped, state, params, is_last)
    return params, state


def test_as_one_batch():
    """Batches of 8 and one of 60: the same run, noise included."""
    (small, state), (large, _) = trained(8), trained(EXAMPLES)
    for mine, theirs in zip(*map(jax.tree.leaves, (small, large)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)
    assert optax.tree_utils.tree_get(state, "noise_steps") == STEPS
    assert state.pending_batches == 0
    assert not any(map(np.any, jax.tree.leaves(state.pending_sum)))
    assert any(len(list(sampler_of(8).batches(step))) > 2 for step in range(STEPS))


def test_one_call_is_a_whole_step():
    """Bit for bit what the inner optimizer gives."""
    inner, optimizer, _ = private()
    params = parameters()
    clipped = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), params)
    found = optimizer.update(clipped, optimizer.init(params), params, is_last=True)
    assert_same_bits(found[0], inner.update(clipped, inner.init(params), params)[0])


def test_noise_once():
    """Eight batches of zeros: one draw of noise, not eight, and none before the last.

    The variance of N normal numbers has the relative deviation sqrt(2 / N).
    """
    noise = privacy.gaussian_noise(0.5, 4.0, jax.random.key(0))
    optimizer = privacy.virtual_batches(noise)
    params = jnp.full(20_000, -0.0)
    state = optimizer.init(params)
    for _ in range(7):
        updates, state = optimizer.update(jnp.zeros_like(params), state, is_last=False)
        # -0.0 + 0.0 would be 0.0.
        assert np.signbit(params + updates).all() and not np.any(updates)
    assert state.inner_state.noise_steps == 0 and state.pending_batches == 7
    updates, state = optimizer.update(jnp.zeros_like(params), state, is_last=True)
    assert abs(np.var(updates) / 4 - 1) < 4 * np.sqrt(2 / params.size)
    assert state.inner_state.noise_steps == 1
    expected, _ = noise.update(jnp.zeros_like(params), noise.init(params))
    assert_same_bits(updates, expected)


def test_scan_over_the_batches_of_several_steps():
    """The stacked batches of all steps, in one compiled loop."""
    _, optimizer, _ = private()
    batches = [batch for step in range(STEPS) for batch in sampler_of(8).batches(step)]
    indices, is_last = (np.stack(column) for column in zip(*batches, strict=True))
    x, y = map(jnp.asarray, DATA)

    @jax.jit
    def run(params):
        def body(carry, batch):
            params, state = carry
            rows, is_last = batch
            clipped = GRAD(params, x[rows], y[rows], is_padding_example=rows < 0)
            updates, state = optimizer.update(clipped, state, params, is_last=is_last)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, optimizer.init(params)), (indices, is_last))

    (params, state), _ = run(parameters())
    expected, final = trained(8)
    for mine, theirs in zip(
        *map(jax.tree.leaves, ((params, state), (expected, final))), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)


def test_restore_amid_a_step(tmp_path):
    """A kill after any batch: what is restored goes on bit for bit."""
    _, optimizer, advance = private()
    sampler, expected = sampler_of(8), trained(8)
    params = parameters()
    state = optimizer.init(params)

    def go_on(params, state, stop=None):
        done = int(optax.tree_utils.tree_get(state, "noise_steps"))
        for step in range(done, STEPS):
            first = int(state.pending_batches)
            for batch in itertools.islice(sampler.take(DATA, step), first, None):
                if stop == (step, int(state.pending_batches)):
                    return params, state
                (x, y), is_padding, is_last = batch
                clipped = clipped_sum(params, x, y, is_padding_example=is_padding)
                params, state = advance(clipped, state, params, is_last)
        return params, state

    params, state = go_on(params, state, stop=(2, 1))
    assert state.pending_batches == 1
    assert any(map(np.any, jax.tree.leaves(state.pending_sum)))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", (params, state))
        checkpointer.wait_until_finished()
        fresh = jax.eval_shape(lambda: (parameters(), optimizer.init(parameters())))
        restored = checkpointer.restore(tmp_path / "run", fresh)
    restored = jax.tree.map(jnp.array, restored)
    assert_same_bits(restored, (params, state))
    assert_same_bits(go_on(*restored), expected)


def test_multi_steps_with_a_fixed_number_of_batches():
    inner, _, advance = private()
    params = expected = parameters()
    theirs = optax.MultiSteps(inner, 2, use_grad_mean=False)
    state, other = private()[1].init(params), theirs.init(params)
    update = jax.jit(theirs.update)
    for step in range(4):
        clipped = jax.tree.map(
            lambda p, s=step: 0.1 * (s + np.ones(p.shape, "f")), params
        )
        with jax.numpy_dtype_promotion("standard"):
            updates, other = update(clipped, other, expected)
        expected = optax.apply_updates(expected, updates)
        params, state = advance(clipped, state, params, step % 2 == 1)
    for mine, one in zip(*map(jax.tree.leaves, (params, expected)), strict=True):
        np.testing.assert_allclose(mine, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("traced", [False, True])
def test_leaves_of_every_kind(traced):
    """Integers, float0 and None pass; sums are wide, and results as the optimizer's."""
    noise = privacy.gaussian_noise(1.0, 0.0, jax.random.key(0))
    optimizer = privacy.virtual_batches(noise)
    params = {
        "half": jnp.zeros(2, jnp.bfloat16),
        "complex": jnp.zeros(2, jnp.complex64),
        "integer": jnp.arange(3),
        "none": None,
    }
    clipped = params | {
        "half": jnp.array([256.0, 1.0], jnp.float32),
        "complex": jnp.full(2, 1 + 2j, jnp.complex64),
    }
    if not traced:
        clipped["integer"] = np.zeros(3, jax.dtypes.float0)

    def update(is_last, clipped, state, params):
        with jax.numpy_dtype_promotion("standard"):  # for the noise of complex leaves
            return optimizer.update(clipped, state, params, is_last=is_last)

    update = jax.jit(update) if traced else update
    state = before = optimizer.init(params)
    assert state.pending_sum["half"].dtype == jnp.float32
    updates, state = update(np.bool_(False), clipped, state, params)
    assert updates["half"].dtype == jnp.bfloat16 and not np.any(updates["half"])
    # 256 + 1 is no number of bfloat16, and 2 x 257 is none either.
    clipped["half"] = jnp.array([258.0, 1.0], jnp.float32)
    updates, state = update(np.bool_(True), clipped, state, params)
    assert updates["half"].tolist() == [514 - 2, 2]
    assert updates["complex"].tolist() == [2 + 4j, 2 + 4j]
    assert updates["none"] is None
    np.testing.assert_array_equal(updates["integer"], clipped["integer"])
    typed = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert typed(state) == typed(before)


def test_double_precision():
    with jax.enable_x64(True):
        optimizer = privacy.virtual_batches(optax.identity())
        state = optimizer.init(jnp.zeros(1))
        _, state = optimizer.update(jnp.full(1, 2.0**60), state, is_last=False)
        updates, _ = optimizer.update(jnp.full(1, 1024.0), state, is_last=True)
        assert updates.tolist() == [2**60 + 1024]


def test_a_memory_keeps_its_dtype():
    """Adam's moments of bfloat16 parameters would come back in float32."""
    optimizer = privacy.virtual_batches(optax.adam(0.1))
    params = jnp.zeros(2, jnp.bfloat16)
    state = optimizer.init(params)
    clipped = jnp.ones(2, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        _, after = optimizer.update(clipped, state, params, is_last=True)
        _, waiting = optimizer.update(clipped, state, params, is_last=False)
    for one in (after, waiting):
        assert jax.tree.map(jnp.result_type, one) == jax.tree.map(
            jnp.result_type, state
        )


def test_states_are_rebuilt_by_optax():
    """`optax.tree_map_params` places the pending sum with the parameters."""
    _, optimizer, _ = private()
    state = optimizer.init(parameters())
    mapped = optax.tree_map_params(optimizer, lambda leaf: leaf + 1.0, state)
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(mapped.pending_sum))
    assert mapped.pending_batches == 0
    found = optimizer.update(parameters(), state, parameters(), is_last=False)[1]
    assert jax.tree.structure(found) == jax.tree.structure(state)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e5m2])
def test_narrow_sums_are_refused(dtype):
    """Also in batches that are not the last, where the sum is rounded as well."""
    optimizer = privacy.virtual_batches(optax.sgd(0.1))
    params = {"w": jnp.zeros(2)}
    clipped = {"w": jnp.zeros(2, dtype)}
    with pytest.raises(TypeError, match=r"w has dtype .* dtype=jnp.float32"):
        optimizer.update(clipped, optimizer.init(params), is_last=False)


@pytest.mark.parametrize("is_last", [1, None, "yes", np.ones(2, bool), jnp.int32(1)])
def test_flags_of_the_wrong_kind(is_last):
    optimizer = privacy.virtual_batches(optax.sgd(0.1))
    params = jnp.zeros(2)
    with pytest.raises(TypeError, match="is_last must be a bool"):
        optimizer.update(params, optimizer.init(params), is_last=is_last)


def test_a_flag_is_needed():
    """A sample in three batches would get three draws of noise, and three steps."""
    optimizer = privacy.virtual_batches(optax.sgd(0.1))
    params = jnp.zeros(2)
    with pytest.raises(TypeError, match="apply_gradients does not pass it on"):
        optimizer.update(params, optimizer.init(params), params)


def test_what_does_not_fit_is_refused():
    optimizer = privacy.virtual_batches(optax.sgd(0.1))
    params = {"w": jnp.zeros(2)}
    state = optimizer.init(params)
    for other in (None, state.inner_state, tuple(state)):
        with pytest.raises(ValueError, match="virtual_batches"):
            optimizer.update(params, other, is_last=True)
    with pytest.raises(ValueError, match=r"w has shape \(1,\)"):
        optimizer.update({"w": jnp.zeros(1)}, state, is_last=True)
    with pytest.raises(ValueError, match="have no leaf other"):
        optimizer.update(params | {"other": jnp.zeros(1)}, state, is_last=True)
    with pytest.raises(TypeError, match="optimizer must be a gradient transformation"):
        privacy.virtual_batches(0.1)


def test_checked_types_of_shard_map():
    """Each device its own rows of a parameter: both branches have one type."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("x")
    noise = privacy.gaussian_noise(1.0, 1.0, jax.random.key(0))
    optimizer = privacy.virtual_batches(noise)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(rows, None), out_specs=rows)
    def run(params, flags):
        state = optimizer.init(params)
        _, state = optimizer.update(params, state, params, is_last=flags[0])
        return optimizer.update(params, state, params, is_last=flags[1])[0]

    flags = jnp.array([False, True])
    found = jax.jit(run)(jnp.ones((8, 1000)), flags)
    assert abs(np.mean(found) - 2) < 4 / np.sqrt(8000)
    assert abs(np.var(found) - 1) < 4 * np.sqrt(2 / 8000)
