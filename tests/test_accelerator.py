"""The command that checks a GPU or TPU, on the CPU."""

import math
import sys

import jax
import numpy as np
import pytest
from catalogue import about
from oracle import kinds

from benchmarks import page, suite
from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import differences, per_example, steps
from benchmarks.accelerator.differences import BARS, SMALL_SHAPES, difference, trees
from benchmarks.recipes import build, recipes
from benchmarks.report import Table

# Of blocks with parameters, and of singular values.
STRUCTURES = ("larc_clip", "spectral_clip")
SMALL = ("--small", "--dtypes", "float32", "--clips", "global")


@pytest.fixture(autouse=True)
def defaults():
    """Adam mixes dtypes, in threads too, and the command allows it."""
    names = ("jax_numpy_dtype_promotion", "jax_numpy_rank_promotion")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, ("standard", "allow"), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_small_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_privacy", None)  # as if not installed
    out = ("--out", str(tmp_path / "new"), "--models", "perceptron")
    assert command.main([*SMALL, *out, "--recipes", *STRUCTURES]) == 0
    text = (tmp_path / "new" / "report.md").read_text()
    assert text == capsys.readouterr().out
    assert "Nothing failed." in text and "Left out" not in text
    assert tuple(command.PARTS) == suite.PARTS_ON_ACCELERATOR
    tables = {}
    for part in command.PARTS:
        path = tmp_path / "new" / f"accelerator-{part}.json"
        tables[part] = table = Table.read(path)
        assert page.section(table) in text
        assert table.about_run["device"]["platform"] == "cpu"
    rows = {part: [row[0] for row in tables[part].rows] for part in tables}
    assert rows["bandwidth"] == ["float32"]
    names = ("limit", "clipjax", "Optax", "Adam", "Adam, again")
    assert rows["clips"] == [f"global: {name}" for name in names]
    assert set(rows["numbers"]) == set(STRUCTURES)
    assert {"AdamW", "clip_by_global_norm"} < set(rows["steps"])
    assert {"clip_by_global_norm + Adam"} < set(rows["leaves"])
    ways = {row[1]: row[2] for row in tables["per-example"].rows}
    assert {*per_example.peers.WAYS, "clipjax, private step"} < set(ways)
    missing = {way for way in ways if ways[way] == "jax_privacy: not installed"}
    assert missing == {way for way in ways if "jax_privacy" in way}


def test_what_is_stored_leads_the_page(tmp_path):
    on = dict(cores=2, processor="x", architecture="", memory_gib=12, load=0.0)
    about = dict(date="", seconds=1, machine=on, versions={})
    device = dict(platform="gpu", kind="H200", count=2, memory_gib=104)
    other = Table("other", "Other", "", {}, about_run=about)
    Table(
        *("accelerator-clips", "Clips", "About.", {"clip": ""}),
        about_run=about | {"device": device},
    ).write(tmp_path / "accelerator")
    text = page.results_page(page.stored(tmp_path) | {"other": other})
    assert text.index("\n## On a GPU") < text.index("\n### Clips")
    assert text.index("\n### Clips") < text.index("\n## Other")
    assert "on one H200 (104 GiB) and 2 cores" in text
    assert "On a" not in page.results_page({"other": other})


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
    monkeypatch.setattr(differences, "compare", lambda name, *_: found[name])
    numbers = ("--parts", "numbers", "--dtypes", "float32", "--recipes")
    assert command.main([*numbers, *found]) == 1
    text = capsys.readouterr().out
    assert "clip_by_value in float32: differs by 1.0e-03" in text
    assert "zclip in float32" not in text


def test_what_lacks_time_is_listed(monkeypatch, capsys):
    monkeypatch.setattr(command, "MARGIN", 1)
    parts = ("--parts", "numbers", "leaves", "--recipes", "zclip")
    assert command.main([*SMALL, *parts]) == 1
    text = capsys.readouterr().out
    assert "Left out for lack of time: zclip in float32." in text
    assert "Left out for lack of time: Adam, clip_by_global_norm + Adam" in text


def test_a_part_that_fails_hides_no_other(monkeypatch, capsys):
    def fails(*_):
        raise ValueError("a | b\nc")

    monkeypatch.setattr(steps, "update_arm", fails)
    monkeypatch.setattr(differences, "compare", lambda *_: (0.0, 0.0))
    assert command.main([*SMALL, "--parts", "leaves", "numbers"]) == 1
    text = capsys.readouterr().out
    assert "- 12 leaves: ValueError: a / b\n" in text
    assert "| zclip | 0.0e+00 |" in text


@pytest.mark.parametrize("bad", [math.nan, math.inf, -2.0, 1.0001])
def test_difference(bad):
    right = np.array([1.0, -3.0, 2.0], np.float32)
    assert difference(right, right) == 0
    wrong = np.array([bad, -3.0, 2.0], np.float32)
    assert difference(wrong, right) > BARS["float32"]
    assert difference(right, wrong) > BARS["float32"]


def test_errors_are_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["--out", f"{__file__}/folder"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
