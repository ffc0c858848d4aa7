"""The command: what it refuses, and what a small run leaves behind."""

import base64
import json
import re
import sys

import jax
import pytest

from clipjax.demos import arms, cli, compare, presets, report, train
from clipjax.demos.options import check

TINY = ["compare", "--hidden", "8", "--length", "10", "--batch", "4", "--steps", "6"]

REFUSED = {
    "steps -3": ("--steps -3", ["--steps", "'-3'", "whole number"]),
    "steps 0": ("--steps 0", ["--steps", "'0'"]),
    "steps 2.5": ("--steps 2.5", ["--steps", "'2.5'"]),
    "steps huge": ("--steps 99999999999", ["--steps", "1000000000"]),
    "seeds 0": ("--seeds 0", ["--seeds", "'0'"]),
    "log-every 0": ("--log-every 0", ["--log-every", "'0'"]),
    "lr nan": ("--lr nan", ["--lr", "'nan'", "finite number above 0"]),
    "lr inf": ("--lr inf", ["--lr", "'inf'"]),
    "lr 0": ("--lr 0", ["--lr", "'0'"]),
    "lr negative": ("--lr -1e-3", ["--lr", "'-1e-3'"]),
    "lr text": ("--lr fast", ["--lr", "'fast'"]),
    "lr without value": ("--lr", ["--lr", "expected one argument"]),
    "gain negative": ("--gain -1", ["--gain", "'-1'"]),
    "task": ("--task cnn", ["--task", "'cnn'", "rnn", "mlp", "transformer"]),
    "cell": ("--cell tanh", ["--cell", "'tanh'", "vanilla, gru, lstm"]),
    "other task's option": ("--depth 3", ["--depth 3", "--task rnn", "--task mlp"]),
    "heads": ("--task transformer --heads 5", ["--heads 5", "--width 64"]),
    "unknown option": ("--wdith 3", ["--wdith"]),
    "abbreviation": ("--step 3", ["--step"]),
    "unknown clip": ("--clips foo:1", ["'foo'", "none", "clip_by_global_norm"]),
    "empty clip": ("--clips none,,none", ["--clips", "'none,,none'"]),
    "same clip": (
        "--clips clip_by_global_norm:1,clip_by_global_norm:1.0",
        ["'clip_by_global_norm:1.0'", "once"],
    ),
    "clip without number": (
        "--clips clip_by_global_norm",
        ["'clip_by_global_norm'", "max_norm"],
    ),
    "clip with text": ("--clips clip_by_global_norm:a", ["'a'", "not a number"]),
    "clip with too many": (
        "--clips clip_by_global_norm:1:2",
        ["'clip_by_global_norm:1:2'", "max_norm"],
    ),
    "clip with other name": (
        "--clips adaptive_grad_clip:0.01:epsilon=1",
        ["epsilon", "eps=0.001"],
    ),
    "negative threshold": ("--clips clip_by_global_norm:-1", ["max_norm", "-1"]),
    "nan threshold": ("--clips clip_by_global_norm:nan", ["max_norm", "nan"]),
    "none with number": ("--clips none:1", ["'none:1'"]),
    "unknown optimizer": ("--optimizer sdg", ["'sdg'", "sgd", "adamw", "lion"]),
    "optimizer argument": ("--optimizer adam:b9=1", ["'b9'", "b1=0.9"]),
    "missing text": ("--text missing.txt", ["missing.txt", "UTF-8"]),
    "missing MNIST": ("--task mlp --mnist nowhere", ["nowhere", "train-images"]),
    "empty path": ("--text=", ["--text", "''"]),
    "sequence too long": ("--length 99999", ["99999", "characters"]),
    "out is a file": ("--out file", ["--out 'file'", "not a directory"]),
    "out below a file": ("--out file/below", ["--out", "file"]),
    "out has a directory in the way": ("--out taken", ["report.html"]),
}


@pytest.fixture(scope="module", autouse=True)
def quick_generator():
    """The generator of random numbers that compiles fastest."""
    with jax.default_prng_impl("unsafe_rbg"):
        yield


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory but for a file, and a directory with an obstacle."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken" / "report.html").mkdir(parents=True)
    return tmp_path


def tree(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def no_training(*unused, **unused_too):
    raise AssertionError("training began")


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_one_line_before_anything_is_trained(
    case, here, capsys, monkeypatch
):
    monkeypatch.setattr(train.Loop, "__init__", no_training)
    before = tree(here)
    options, named = REFUSED[case]
    out = [] if "--out" in options else ["--out", "new"]
    assert cli.main(["compare", *out, *options.split()]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("clipjax: error: ")
    assert shown.err.count("\n") == 1
    for name in named:
        assert name in shown.err
    assert tree(here) == before


def test_a_clip_that_cannot_be_used_here_is_refused(here, capsys, monkeypatch):
    def refuse(*unused, **unused_too):
        raise ValueError("needs\nsomething else")

    monkeypatch.setattr(train.Loop, "__init__", refuse)
    before = tree(here)
    assert cli.main([*TINY, "--out", "new"]) == 2
    error = capsys.readouterr().err
    assert (
        error == "clipjax: error: clip 'none' cannot train here: needs something else\n"
    )
    assert tree(here) == before


def test_settings_are_checked_without_the_command_line():
    for preset in presets.PRESETS.values():
        check(preset)
    with pytest.raises(ValueError, match="--steps 0"):
        presets.Settings(presets.RNN(), steps=0)
    with pytest.raises(ValueError, match="--gain"):
        presets.RNN(gain=float("nan"))
    with pytest.raises(ValueError, match="--bad-step 9"):
        presets.Explosion(length=8, bad_step=9)


@pytest.mark.parametrize("missing", ["flax", "matplotlib", "rich"])
def test_a_missing_extra_is_named(missing, here, capsys, monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == missing or (
            name.startswith(("clipjax.demos.", "clipjax.plotting"))
            and not name.endswith((".cli", ".presets", ".options"))
        ):
            monkeypatch.delitem(sys.modules, name)
    for name in ("compare", "report", "summary", "terminal", "train"):
        monkeypatch.delattr(sys.modules["clipjax.demos"], name, raising=False)
    monkeypatch.delattr(sys.modules["clipjax"], "plotting", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    assert cli.main([*TINY, "--out", "new"]) == 2
    error = capsys.readouterr().err
    assert missing in error and "pip install 'clipjax[demos]'" in error
    assert error.count("\n") == 1
    assert not (here / "new").exists()


def test_interruption_leaves_nothing(here, capsys, monkeypatch):
    def interrupt(*unused):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Loop, "__init__", lambda *unused, **unused_too: None)
    monkeypatch.setattr(train.Loop, "run", interrupt)
    before = tree(here)
    assert cli.main([*TINY, "--clips", "none", "--out", "new"]) == 130
    assert capsys.readouterr().err == "clipjax: interrupted, nothing written\n"
    assert tree(here) == before


@pytest.mark.parametrize("arguments", [[], ["--help"], ["compare", "--help"]])
def test_help(arguments, capsys):
    try:
        assert cli.main(arguments) == 0
    except SystemExit as leaving:
        assert leaving.code == 0
    assert "compare" in capsys.readouterr().out


def test_every_option_of_every_task_is_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    shown = capsys.readouterr().out
    for name in (
        "task optimizer lr clips steps seeds out cell hidden layers gain depth width "
        "init normalisation batch length text mnist log-every heads"
    ).split():
        assert f"--{name} " in shown


def test_recipes_are_found_by_themselves():
    found = arms.clips_by_name()
    assert {"clip_by_global_norm", "clip_by_value", "adaptive_grad_clip"} <= set(found)
    assert all(found[name].__name__ == name for name in found)
    built = arms.build_clips(("none", "adaptive_grad_clip:0.01:eps=1e-2"))
    assert list(built) == ["none", "adaptive_grad_clip:0.01:eps=1e-2"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A tiny comparison written over an older one: where, and with what results."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    out.mkdir()
    (out / "results.json").write_text("old")
    (out / "notes.txt").write_text("mine")
    clips = "none,clip_by_global_norm:1e-1"
    command = [*TINY, "--seeds", "2", "--lr", "0.5", "--clips", clips]
    results, compare_all = [], compare.compare

    def keep(*args, **settings):
        results.extend(compare_all(*args, **settings))
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "compare", keep)
        assert cli.main([*command, "--log-every", "99", "--out", str(out)]) == 0
    return out, results


@pytest.fixture
def finished(comparison):
    return comparison[0]


@pytest.fixture
def trained(comparison, monkeypatch):
    """What is tested comes after the training, which takes its time: its arms."""
    arms = []

    def instead(settings, task, optimizers, **unused):
        arms.extend(optimizers)
        return comparison[1]

    monkeypatch.setattr(compare, "compare", instead)
    return arms


def test_new_directories_are_made(here, capsys, trained):
    assert cli.main([*TINY, "--seeds", "2", "--out", "new/deeper"]) == 0
    assert tree(here / "new") == sorted(
        ["deeper", *(f"deeper/{name}" for name in report.FILES)]
    )
    shown = capsys.readouterr().out
    assert "final loss" in shown and "Report: new/deeper/report.html" in shown


def test_comparison_writes_its_files_and_no_others(finished):
    assert tree(finished) == sorted([*report.FILES, "notes.txt"])
    assert (finished / "notes.txt").read_text() == "mine"
    assert tree(finished.parent) == sorted(
        ["out", *(f"out/{n}" for n in tree(finished))]
    )


def test_results_can_be_read_back(finished):
    results = json.loads((finished / "results.json").read_text())
    clips = ["none", "clip_by_global_norm:1e-1"]
    assert list(results["arms"]) == clips
    for arm in results["arms"].values():
        assert len(arm["log"]["loss"]) == 2
        assert {len(row) for rows in arm["log"].values() for row in rows} == {6}
    first = {arm["log"]["loss"][0][0] for arm in results["arms"].values()}
    assert len(first) == 1  # same parameters, same batch
    none, hard = results["arms"].values()
    assert none["log"]["threshold"][0] == ["inf"] * 6
    assert none["summary"]["clipped"] == [0, 0]
    assert hard["summary"]["clipped"] == [1, 1]
    assert results["settings"]["task"] == "rnn"
    assert results["settings"]["model"]["hidden"] == 8
    assert set(results["versions"]) >= {"jax", "optax", "flax", "clipjax"}


def test_report_stands_alone(finished):
    page = (finished / "report.html").read_text()
    assert "clipjax compare --hidden 8 --length 10" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 4
    for name, image in zip(report.FIGURES, images, strict=True):
        png = (finished / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG") and base64.b64decode(image) == png
    for heading in ("final loss", "diverged", "steps clipped", "time per step"):
        assert f"<th>{heading}</th>" in page
    assert page.count("<tr>") == 3
    assert "All arms share one learning rate" in page


def test_failed_writing_leaves_nothing(here, capsys, monkeypatch, trained):
    def full(*unused):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "replace", full)
    monkeypatch.setattr(report.pathlib.Path, "rename", full)
    before = tree(here)
    assert cli.main([*TINY, "--seeds", "2", "--out", "new/deeper"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert tree(here) == before


def test_explode_prints_the_worked_step(capsys, trained):
    options = "--hidden 8 --length 12 --batch 3 --steps 5 --bad-step 9 --max-norm 0.25"
    assert cli.main(["explode", *options.split()]) == 0
    shown = capsys.readouterr().out
    for quantity in (
        "gradient norm before clipping",
        "factor = min(1, threshold / norm)",
        "||dL_t/dh_k||",
        "clip_by_global_norm",
    ):
        assert quantity in shown
    assert "clip_by_global_norm:0.25" in trained
