"""Every recipe on every placement: one device's numbers, for one collective."""

import jax.numpy as jnp
import pytest
from oracle import assert_close, eps
from placements import (
    KINDS,
    RECIPES,
    SHAPES,
    SPECS,
    SPECTRAL,
    UNIT_SPECS,
    OneDevice,
    Placed,
    all_reduces,
    assert_same_numbers,
    least_all_reduces,
)

ONE_DEVICE = OneDevice(RECIPES, SHAPES, "rows")
PARAMS = ONE_DEVICE.params

# All-reduces per set of axes, if not one. A clip after a clip measures what that has
# left; a range that is found from all entries comes before the count of those beyond;
# and under jit, units of one leaf that lie on several devices are measured, and then
# reported.
MORE = {"stable_spam_clip": 2, "quantization_clip": 2, "adaptive_grad_clip": 2}


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
        ONE_DEVICE.gradients(), ONE_DEVICE.results(name), strict=True
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
        limit = MORE.get(name, 1) * least_all_reduces(kind)
        assert all_reduces(placed.compiled) <= limit
        assert "all-gather" not in text
        assert "all-to-all" not in text
