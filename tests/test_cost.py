"""What XLA says a clip costs: exact numbers, unlike times."""

import catalogue
import jax
import jax.numpy as jnp
import optax
import pytest
from oracle import random_tree
from placements import SPECTRAL

import clipjax
from clipjax.guards import drop

pytestmark = pytest.mark.optimized

SHAPE = (256, 512)
LEAVES = 6

recent_xla = pytest.mark.skipif(
    jax.__version_info__ < (0, 10), reason="older XLA fuses less into sums"
)


def make_step(transformation, dtype, *, with_metrics=False):
    """Compiles a train step whose gradient is a product of matrices."""
    params = {f"layer{i}": jnp.ones(SHAPE, dtype) for i in range(LEAVES)}

    def gradient(number, shift):
        inputs = jnp.sin(jnp.arange(16.0 * SHAPE[0]) * (number + 1) + shift)
        errors = jnp.cos(jnp.arange(16.0 * SHAPE[1]) * (number + 1) + shift)
        inputs, errors = inputs.reshape(-1, 16), errors.reshape(16, -1)
        return inputs.astype(dtype) @ errors.astype(dtype)

    def step(params, state, shift):
        grads = {name: gradient(i, shift) for i, name in enumerate(params)}
        updates, state = transformation.update(grads, state, params)
        measured = clipjax.metrics(state) if with_metrics else {}
        return optax.apply_updates(params, updates), state, measured

    state = transformation.init(params)
    with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes here
        return jax.jit(step).lower(params, state, jnp.float32(0.1)).compile()


def bytes_accessed(compiled):
    return compiled.cost_analysis()["bytes accessed"]


def test_state_of_the_global_clip_holds_scalars_only():
    params = {"a": jnp.ones((3, 4)), "b": [jnp.ones(5)]}
    clip = clipjax.clip_by_global_norm(1.0)
    _, state = clip.update(params, clip.init(params))
    assert {leaf.shape for leaf in jax.tree.leaves(state)} == {()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_metrics_add_no_pass(dtype):
    chain = optax.chain(clipjax.clip_by_global_norm(1.0), optax.adam(1e-3))
    silent = bytes_accessed(make_step(chain, jnp.dtype(dtype)))
    telling = bytes_accessed(make_step(chain, jnp.dtype(dtype), with_metrics=True))
    assert telling == pytest.approx(silent, rel=0.01)


@recent_xla
def test_no_wide_copy_of_narrow_leaves_is_kept():
    """Optax's clip keeps the float32 copies of all leaves until they are scaled."""
    size = LEAVES * SHAPE[0] * SHAPE[1]
    adam = make_step(optax.adam(1e-3), jnp.bfloat16)
    chain = optax.chain(clipjax.clip_by_global_norm(1.0), optax.adam(1e-3))
    ours = make_step(chain, jnp.bfloat16)
    added = (
        ours.memory_analysis().temp_size_in_bytes
        - adam.memory_analysis().temp_size_in_bytes
    )
    assert added < 2 * size  # one bfloat16 copy, half of a float32 one


@recent_xla
def test_the_plain_path_reads_the_gradient_twice_and_writes_it_once(monkeypatch):
    """Beside the conditional that is taken for extreme magnitudes only."""
    monkeypatch.setattr(clipjax.norms.Lp, "needs_rescaling", False)
    grads = {f"layer{i}": jnp.ones(SHAPE) for i in range(LEAVES)}
    clip = clipjax.clip_by_global_norm(1.0)
    compiled = jax.jit(clip.update).lower(grads, clip.init(grads)).compile()
    size = 4 * LEAVES * SHAPE[0] * SHAPE[1]
    assert bytes_accessed(compiled) == pytest.approx(3 * size, rel=0.01)


@recent_xla
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_clip_of_entries_reads_four_times_and_writes_once(dtype, monkeypatch):
    """For two norms, a count and the update; and sums of rows are written and read."""
    monkeypatch.setattr(clipjax.norms.Lp, "needs_rescaling", False)
    grads = {f"layer{i}": jnp.ones(SHAPE, dtype) for i in range(LEAVES)}
    clip = clipjax.clip_by_value(0.5)
    compiled = jax.jit(clip.update).lower(grads, clip.init(grads)).compile()
    size = dtype.dtype.itemsize * LEAVES * SHAPE[0] * SHAPE[1]
    assert bytes_accessed(compiled) == pytest.approx(5 * size, rel=0.03)


# What an optimizer's memory makes, or a first clip, is written down before it is read.
WRITES = ("acclip", "spam_clip", "stable_spam_clip", "stable_update_clip")
RECIPES = {
    name: recipe
    for name, recipe in (catalogue.RECIPES | catalogue.COMPOUNDS).items()
    if name not in SPECTRAL + WRITES
} | {"drop": lambda: clipjax.clip_by(1.0, nonfinite=drop)}


@recent_xla
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", RECIPES)
def test_donated_gradients_need_next_to_no_memory_beside(name, dtype):
    """Sums of rows take 1/128 of a float32 leaf each, and sums of units a bit more."""
    grads = random_tree(0, {f"layer{i}": SHAPE for i in range(LEAVES)}, dtype)
    clip = RECIPES[name]()
    update = jax.jit(clip.update, donate_argnums=(0, 1))
    compiled = update.lower(grads, clip.init(grads), grads).compile()
    size = dtype.dtype.itemsize * LEAVES * SHAPE[0] * SHAPE[1]
    assert compiled.memory_analysis().temp_size_in_bytes < size / 8
