"""Per-example clipping gives what jax_privacy 2.0.0 gives, argument for argument."""

import functools
import importlib.util
import inspect
import json
import pathlib

import jax
import numpy as np
import pytest

import clipjax

GOLDEN = pathlib.Path(__file__).parent / "golden"
STORED = json.loads((GOLDEN / "jax_privacy.json").read_text())
ADDED = {"rule", "method"}
# Options that act before a method is called, so that one method tells for both.
OUTSIDE = {"keep_batch_dim", "microbatch_size", "prng_argnum"}


@functools.cache
def script():
    spec = importlib.util.spec_from_file_location("made", GOLDEN / STORED["script"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_provenance():
    assert STORED["jax_privacy"] == "2.0.0"
    assert [case["case"] for case in STORED["cases"]] == list(script().CASES)


def test_signature():
    theirs = STORED["parameters"]
    ours = inspect.signature(clipjax.clipped_grad).parameters
    assert set(theirs) <= set(ours)
    assert set(ours) - set(theirs) == ADDED
    for name in set(theirs) & set(ours):
        is_required = ours[name].default is inspect.Parameter.empty
        default = "required" if is_required else ours[name].default
        if name == "pre_clipping_transform":  # theirs is the identity
            default = "a function" if default is None else default
        assert default == theirs[name]["default"], name
        assert ours[name].kind.name == theirs[name]["kind"], name
    positional = [n for n, p in theirs.items() if p["kind"] != "KEYWORD_ONLY"]
    assert list(ours)[: len(positional)] == positional
    docs = (GOLDEN.parents[1] / "docs" / "per_example.md").read_text()
    assert all(f"`{name}`" in docs for name in ADDED)


def describe(case):
    return " ".join(f"{name}={value}" for name, value in case["case"].items())


GHOST = [pytest.param(case, "ghost", id=describe(case)) for case in STORED["cases"]]
VMAP = [
    pytest.param(case, "vmap", id=f"{describe(case)} by vmap")
    for case in STORED["cases"]
    if not OUTSIDE & set(case["case"])
]


@pytest.mark.parametrize(("case", "method"), GHOST + VMAP)
def test_results(case, method):
    make = functools.partial(clipjax.clipped_grad, method=method)
    with jax.numpy_rank_promotion("allow"):
        grad, found = script().run(make, case["case"])
    found = script().stored(found)
    # Counted by clipjax alone.
    found.pop("[1].nonfinite_count", None)
    assert set(found) == set(case["found"])
    rtol = 1e-2 if case["case"].get("narrow") else 1e-5
    for path, theirs in case["found"].items():
        ours = found[path]
        assert (ours["dtype"], ours["shape"]) == (theirs["dtype"], theirs["shape"]), (
            path
        )
        entries = [np.array(leaf["entries"], float) for leaf in (ours, theirs)]
        np.testing.assert_allclose(*entries, rtol=rtol, atol=1e-6, err_msg=path)
    if not case["case"].get("nan_safe", True):
        return
    assert grad.sensitivity() == case["default_sensitivity"]
    for relation, value in case["sensitivity"].items():
        assert grad.sensitivity(relation) == value
