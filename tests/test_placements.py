"""Every recipe on every placement: one device's numbers, for one collective."""

import functools

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_close, eps, norm, random_tree, wide
from placements import (
    KINDS,
    SHAPES,
    SPECS,
    UNIT_SPECS,
    Placed,
    all_reduces,
    least_all_reduces,
)

RECIPES = catalogue.RECIPES | catalogue.COMPOUNDS
PARAMS = random_tree(0, SHAPES, size=3.0)

# A decomposition needs whole matrices.
SPECTRAL = ("spectral_clip", "spectral_clamp", "spectral_soft_clip")
# All-reduces per set of axes, if not one. A clip after a clip measures what that has
# left; a range that is found from all entries comes before the count of those beyond
# it; and under jit, units on several devices are measured, and then reported.
MORE = {
    (name, kind): 2
    for name in ("stable_spam_clip", "quantization_clip")
    for kind in KINDS
} | {("adaptive_grad_clip", kind): 2 for kind in ("auto", "explicit")}


def gradients():
    """Makes three steps: short, long, and with NaN on one shard."""
    steps = [random_tree(seed, SHAPES, size=3.0 * 10.0**seed) for seed in (1, 2, 3)]
    steps[2]["rows"] = steps[2]["rows"].at[5, 1].set(jnp.nan)
    return steps


@functools.cache
def on_one_device(name):
    """Takes the three steps without a mesh."""
    clip = RECIPES[name]()
    update, state, results = jax.jit(clip.update), clip.init(PARAMS), []
    for grads in gradients():
        with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes
            updates, state = update(grads, state, PARAMS)
        results.append((updates, state))
    return results


def assert_same_numbers(updates, expected):
    """Compares to 1e-6 of the norm of what is finite."""
    finite = jax.tree.map(lambda leaf: np.nan_to_num(wide(leaf)), expected)
    atol = 1e-6 * norm(finite)
    assert_close(updates, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECIPES)
def test_placement(name, kind):
    clip = RECIPES[name]()
    if kind == "shard_map" and name in SPECTRAL:
        with pytest.raises(ValueError, match="gather it first"):
            Placed(clip, kind, PARAMS)
        return
    specs = SPECS
    if kind == "shard_map" and name == "adaptive_grad_clip":
        with pytest.raises(ValueError, match="which of its axes a unit spans"):
            Placed(clip, kind, PARAMS)
        clip, specs = RECIPES[name](axis=0), UNIT_SPECS
    placed = Placed(clip, kind, PARAMS, specs)
    for grads, (expected, expected_state) in zip(
        gradients(), on_one_device(name), strict=True
    ):
        updates = placed.step(grads)
        assert_same_numbers(updates, expected)
        assert_close(
            placed.state, expected_state, rtol=32 * eps(jnp.float32), atol=1e-6
        )
    text = placed.compiled.as_text()
    assert "callback" not in text
    assert text.count("may-alias") + text.count("must-alias") >= len(SHAPES)
    if name not in SPECTRAL:
        limit = MORE.get((name, kind), 1) * least_all_reduces(kind)
        assert all_reduces(placed.compiled) <= limit
        assert "all-gather" not in text
        assert "all-to-all" not in text
