"""What XLA makes anew for each reader, or reads from memory, is the same."""

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from oracle import random_tree

import clipjax
from clipjax import granularity, order
from clipjax.guards import drop

SHAPES = {"bias": (7,), "kernel": (5, 7)}
CLIPS = catalogue.RECIPES | {
    "spam_clip": lambda **k: clipjax.spam_clip(theta=0.5, warmup_steps=1, **k),
    "stable_update_clip": clipjax.stable_update_clip,
    "stable_spam_clip": clipjax.stable_spam_clip,
    "acclip": clipjax.acclip,
    "drop": lambda **k: clipjax.clip_by(1.0, nonfinite=drop, **k),
    "drop entries": lambda **k: clipjax.clip_by(
        1.0, granularity=granularity.element(), nonfinite=drop, **k
    ),
}
READ_ANEW = (
    "cclip",
    "clip_by_value",
    "drop",
    "drop entries",
    "quantization_clip",
    "spam_clip",
    "stable_spam_clip",
    "stable_update_clip",
    "two_sided_clip",
)


class Never:
    """In place of a primitive that is known when a program is lowered."""

    @staticmethod
    def bind():
        return np.False_


def as_off_cpus(monkeypatch):
    """Orders reads, and shares what is made of them."""

    def default_of(*arguments, default, **_):
        return default(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", default_of)


def as_on_several_cpus(monkeypatch):
    """Reads from memory what is made once."""
    monkeypatch.setattr(order, "IS_REMADE", Never)


elsewhere = pytest.mark.parametrize("as_elsewhere", [as_off_cpus, as_on_several_cpus])


def gradients(dtype):
    """Short, long, of a norm beyond the range of squares, tiny, and with NaN."""
    steps = [
        random_tree(seed, SHAPES, size=size)
        for seed, size in enumerate((0.5, 30.0, 1e25, 1e-25, 3.0))
    ]
    steps[-1]["kernel"] = steps[-1]["kernel"].at[2, 3].set(jnp.nan)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), steps)


def run(clip, dtype):
    params = jax.tree.map(
        lambda leaf: leaf.astype(dtype), random_tree(9, SHAPES, size=3.0)
    )
    with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes
        state, results = clip.init(params), []
        update = jax.jit(
            lambda *arguments: clip.update(*arguments),
            # XLA leaves out the rounding between Adam and a clip that it fuses.
            compiler_options={"xla_allow_excess_precision": False},
        )
        for grads in gradients(dtype):
            updates, state = update(grads, state, params)
            results.append((updates, state))
    return results


@elsewhere
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", READ_ANEW)
def test_the_same_numbers(name, dtype, as_elsewhere, monkeypatch):
    expected = run(CLIPS[name](), dtype)
    as_elsewhere(monkeypatch)
    found = run(CLIPS[name](), dtype)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=1e-6
        ),
        found,
        expected,
    )


@elsewhere
@pytest.mark.parametrize("name", READ_ANEW)
def test_the_same_numbers_on_shards(name, as_elsewhere, monkeypatch):
    mesh = jax.make_mesh((2,), ("x",), (AxisType.Auto,), devices=jax.devices()[:2])
    tree = {"split": jnp.arange(8.0), "whole": jnp.ones(3)}
    specs = {"split": PartitionSpec("x"), "whole": PartitionSpec()}

    def updates(size):
        def step(grads, params):
            clip = CLIPS[name]()
            return clip.update(grads, clip.init(params), params)[0]

        on_shards = jax.shard_map(
            step, mesh=mesh, in_specs=(specs, specs), out_specs=specs
        )
        with jax.numpy_dtype_promotion("standard"):
            scaled = jax.tree.map(lambda leaf: size * leaf, tree)
            return jax.jit(on_shards)(scaled, tree)

    expected = [updates(size) for size in (1.0, 1e25)]
    as_elsewhere(monkeypatch)
    found = [updates(size) for size in (1.0, 1e25)]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected
    )
