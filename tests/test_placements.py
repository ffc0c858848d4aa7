"""Clips on every placement under jit and in shard_map: one device's numbers.

How many collectives they take is counted in `test_cost_meshes.py`.
"""

import pytest
from catalogue import about
from oracle import assert_close, eps
from placements import (
    CLIPS,
    KINDS,
    SHAPES,
    UNIT_SPECS,
    OneDevice,
    Placed,
    assert_same_numbers,
    make,
)

ONE_DEVICE = OneDevice(SHAPES, "rows")
PARAMS = ONE_DEVICE.params


@pytest.mark.parametrize("name", CLIPS)
def test_placement(name):
    for kind in KINDS:
        with about(f"{name} placed by {kind}"):
            check(name, kind)


def check(name, kind):
    clip, specs = make(name), {}
    if kind == "shard_map" and name == "spectral":
        with pytest.raises(ValueError, match="gather it first"):
            Placed(clip, kind, PARAMS)
        return
    if kind == "shard_map" and name == "units":
        with pytest.raises(ValueError, match="which of its axes a unit spans"):
            Placed(clip, kind, PARAMS)
        clip, specs = make(name, axis=0), {"specs": UNIT_SPECS}
    placed = Placed(clip, kind, PARAMS, **specs)
    for grads, (expected, expected_state) in zip(
        ONE_DEVICE.gradients(), ONE_DEVICE.results(name), strict=True
    ):
        updates = placed.step(grads)
        assert_same_numbers(updates, expected)
        rtol = 32 * eps("f4")
        assert_close(placed.state, expected_state, rtol=rtol, atol=1e-6)
    text = placed.compiled.as_text()
    assert "callback" not in text
    # The donated gradient is written over.
    assert text.count("may-alias") + text.count("must-alias") >= len(SHAPES)
