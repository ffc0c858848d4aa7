"""The command that checks a GPU or TPU, on the CPU."""

import math

import jax
import numpy as np
import pytest
from catalogue import about
from oracle import kinds

from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator.differences import BARS, SMALL_SHAPES, difference, trees
from benchmarks.accelerator.recipes import build, recipes

# Of blocks, entries and singular values; learnt, with parameters, with an optimizer.
STRUCTURES = (
    "adagc",
    "clip_by_group_norm",
    "clip_by_value",
    "larc_clip",
    "spam_clip",
    "spectral_clip",
)


def run(*arguments):
    # Adam mixes dtypes, and the command is not held to the tests' strictness.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return command.main(list(arguments))


def test_small_report(tmp_path, capsys):
    path = tmp_path / "report.txt"
    small = ("--small", "--dtypes", "float32", "--clips", "global")
    assert run(*small, "--recipes", *STRUCTURES, "--out", str(path)) == 0
    text = path.read_text()
    assert text == capsys.readouterr().out
    assert "Beyond the bar: none." in text
    assert all(f"\n| {name} |" in text for name in STRUCTURES)
    assert all(f"| {row} | float32 |" in text for row in ("Adam", "clipjax global"))


def test_every_recipe_can_be_checked():
    for name in recipes():
        clip = build(name, SMALL_SHAPES)
        params, gradients = trees(SMALL_SHAPES, "bfloat16")
        with about(name), jax.numpy_dtype_promotion("standard"):
            state = jax.eval_shape(clip.init, params)
            updates, _ = jax.eval_shape(clip.update, gradients[0], state, params)
            assert kinds(updates) == kinds(params)


def test_wrong_numbers_are_reported(monkeypatch, capsys):
    found = {"clip_by_value": (1e-3, 30.0), "zclip": (1e-7, 30.0)}
    monkeypatch.setattr(command.differences, "compare", lambda name, *_: found[name])
    monkeypatch.setattr(command, "time_clips", lambda *_: None)
    assert run("--recipes", *found, "--dtypes", "float32") == 1
    assert "Beyond the bar: clip_by_value." in capsys.readouterr().out


@pytest.mark.parametrize("bad", [math.nan, math.inf, -2.0, 1.0001])
def test_difference(bad):
    right = np.array([1.0, -3.0, 2.0], np.float32)
    assert difference(right, right) == 0
    wrong = np.array([bad, -3.0, 2.0], np.float32)
    assert difference(wrong, right) > BARS["float32"]
    assert difference(right, wrong) > BARS["float32"]


def test_errors_are_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        run("--out", "no/such/folder/report.txt")
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
