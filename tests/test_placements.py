"""Clips on every placement under jit and in shard_map: one device's numbers.

How many collectives they take is counted in `test_cost_meshes.py`.
"""

import pytest
from catalogue import about
from oracle import assert_close, eps
from placements import (
    CLIPS,
    SHAPES,
    UNIT_SPECS,
    OneDevice,
    Placed,
    assert_same_numbers,
    make,
)

ONE_DEVICE = OneDevice(SHAPES, "rows")
PARAMS = ONE_DEVICE.params


# In shard_map a clip itself sums over devices. Under jit XLA does, for all clips alike:
# one for each kind of sum is enough. On an Explicit mesh a clip has to place what it
# makes.
KINDS = {name: ("shard_map",) for name in CLIPS} | {
    "whole": ("shard_map", "auto"),
    "units": ("shard_map", "explicit"),
    "learnt": ("shard_map", "explicit"),
    "range": ("shard_map", "auto"),
    "spectral": ("auto",),
}


@pytest.mark.parametrize("name", CLIPS)
def test_placement(name):
    for kind in KINDS[name]:
        with about(f"{name} placed by {kind}"):
            check(name, kind)


REFUSED = {"spectral": "gather it first", "units": "which of its axes a unit spans"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_shard_does_not_tell(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        Placed(make(name), "shard_map", PARAMS)


@pytest.mark.parametrize("name", sorted(CLIPS))
def test_explicit_meshes_are_understood(name):
    Placed(make(name), "explicit", PARAMS)


def check(name, kind):
    clip, specs = make(name), {}
    if kind == "shard_map" and name == "units":
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
