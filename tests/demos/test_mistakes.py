"""What the command refuses, in one line, and what its help says."""

import re
import sys

import jax
import pytest

import clipjax
from clipjax import __main__
from clipjax.demos import arms, cli, presets, train
from clipjax.demos.options import check

TINY = ["compare", "--hidden", "8", "--length", "10", "--batch", "4", "--steps", "6"]

REFUSED = {
    "steps -3": ("--steps -3", ["--steps", "'-3'", "whole number"]),
    "steps 0": ("--steps 0", ["--steps", "'0'"]),
    "steps 2.5": ("--steps 2.5", ["--steps", "'2.5'"]),
    "steps huge": ("--steps 99999999999", ["--steps", "1000000000"]),
    "seeds 0": ("--seeds 0", ["--seeds", "'0'"]),
    "log-every 0": ("--log-every 0", ["--log-every", "'0'"]),
    "lr nan": ("--lr nan", ["--lr", "'nan'", "finite numbers above 0"]),
    "lr inf": ("--lr inf", ["--lr", "'inf'"]),
    "lr 0": ("--lr 0", ["--lr", "'0'"]),
    "lr negative": ("--lr -1e-3", ["--lr", "'-1e-3'"]),
    "lr text": ("--lr fast", ["--lr", "'fast'"]),
    "lr without value": ("--lr", ["--lr", "requires an argument"]),
    "gain negative": ("--gain -1", ["--gain", "'-1'"]),
    "task": ("--task cnn", ["--task", "'cnn'", "rnn", "mlp", "transformer"]),
    "cell": ("--cell tanh", ["--cell", "'tanh'", "vanilla, gru, lstm"]),
    "lr twice": ("--lr 0.1,0.10", ["--lr", "each once"]),
    "near task": ("--task transfomer", ["did you mean 'transformer'?"]),
    "near cell": ("--cell gur", ["did you mean 'gru'?"]),
    "near clip": ("--clips clip_by_globl_norm:1", ["mean 'clip_by_global_norm'?"]),
    "near optimizer": ("--optimizer adamm", ["did you mean 'adam'?"]),
    "huge width": ("--hidden 1000000000", ["--hidden", "1 to 100000"]),
    "text not UTF-8": ("--text \udcff.txt", ["--text", "\\udcff.txt", "name in UTF-8"]),
    "out not UTF-8": ("--out \udcff", ["--out", "name in UTF-8"]),
    "nothing to resume": ("--resume", ["--resume", "results.json"]),
    "other task's option": ("--depth 3", ["--depth 3", "--task rnn", "--task mlp"]),
    "heads": ("--task transformer --heads 5", ["--heads 5", "--width 64"]),
    "unknown option": ("--wdith 3", ["--wdith", "Did you mean", "'--width'"]),
    "abbreviation": ("--step 3", ["--step", "--steps"]),
    "unexpected word": ("fast", ["fast"]),
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
    "empty place": ("--clips @none", ["'@none'", "unknown place ''"]),
    "place for few clips": (
        "--task outliers --clips per_example@quantile_clip",
        ["'per_example@quantile_clip'", "accepted: clip_by_global_norm"],
    ),
    "place for thresholds": (
        "--task diffusion --clips time@clip_by_global_norm:0",
        ["'time@clip_by_global_norm:0'", "a finite one above 0"],
    ),
    "too large for float32": ("--task ring --radius 1e300", ["'1e300'", "1e30"]),
    "epochs and steps": ("--task mlp --epochs 1 --steps 2", ["--epochs 1", "--steps"]),
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
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        error == "clipjax: error: clip 'none' cannot train here: needs something else"
    )
    assert tree(here) == before


def test_settings_are_checked_without_the_command_line():
    for preset in presets.PRESETS.values():
        check(preset)
    with pytest.raises(ValueError, match="--steps 0"):
        presets.Settings("rnn", presets.RNN(), steps=0)
    with pytest.raises(ValueError, match="--gain"):
        presets.RNN(gain=float("nan"))
    with pytest.raises(ValueError, match="--bad-step 9"):
        presets.Explosion(length=8, bad_step=9)


@pytest.mark.parametrize("missing", ["click", "flax", "matplotlib", "rich"])
def test_a_missing_extra_is_named(missing, here, capsys, monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == missing or (
            name.startswith(("clipjax.demos.", "clipjax.plotting"))
            and not name.endswith((".presets", ".options", ".arms"))
        ):
            monkeypatch.delitem(sys.modules, name)
    for name in ("cli", "compare", "report", "run", "summary", "terminal", "train"):
        monkeypatch.delattr(sys.modules["clipjax.demos"], name, raising=False)
    monkeypatch.delattr(sys.modules["clipjax"], "plotting", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    assert __main__.run([*TINY, "--out", "new"]) == 2
    error = capsys.readouterr().err
    assert missing in error and "pip install 'clipjax[demos]'" in error
    assert error.count("\n") == 1
    assert not (here / "new").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["-h"],
        ["compare", "--help"],
        ["tune", "--help"],
        ["explode", "--help"],
        ["probe", "--help"],
        ["private", "--help"],
    ],
)
def test_help(arguments, capsys):
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: clipjax")
    assert max(map(len, shown.splitlines())) <= 80


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"clipjax {clipjax.__version__}\n"


def test_a_near_command_is_suggested(capsys):
    assert cli.main(["comapre"]) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'compare'?" in error and error.count("\n") == 1


def test_help_lists_what_can_be_named(capsys):
    cli.main(["compare", "--help"])
    shown = capsys.readouterr().out
    for name in (*arms.OPTIMIZERS, *arms.clips_by_name(), *presets.PRESETS, "lstm"):
        assert re.search(rf"\b{name}\b", shown), name
    assert "clip_by_global_norm:max_norm" in shown
    assert "generator@ (ring, critic): the generator's gradient" in shown


@pytest.mark.parametrize("task", presets.PRESETS)
def test_the_help_of_a_task_shows_its_options_and_defaults(task, capsys):
    cli.main(["compare", f"--task={task}", "--help"])
    shown = capsys.readouterr().out
    model = presets.PRESETS[task].model
    own = {field.name for field in cli.fields_of(type(model))}
    every = {
        field.name
        for preset in presets.PRESETS.values()
        for field in cli.fields_of(type(preset.model))
    }
    for name in {"task", "lr", "clips", "steps", "seeds", "out", "log_every"} | every:
        is_shown = f"{cli.flag(name)} " in shown
        assert is_shown == (name not in every - own), name
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    assert f"(default: {presets.PRESETS[task].steps})" in words


def test_recipes_are_found_by_themselves():
    found = arms.clips_by_name()
    assert {"clip_by_global_norm", "clip_by_value", "adaptive_grad_clip"} <= set(found)
    assert all(found[name].__name__ == name for name in found)
    none, agc = arms.read_clips(("none", "adaptive_grad_clip:0.01:eps=1e-2"))
    assert none.build().init({"w": 1.0}).clip_names.keys() == {"clip"}
    assert agc.arguments["eps"] == 1e-2 and agc.place == ""


def test_places_of_clips():
    places = {"generator": "the generator alone"}
    one, other = arms.read_clips(
        ("generator@clip_by_global_norm:2", "clip_by_global_norm:2"), places
    )
    assert (one.place, other.place) == ("generator", "")
    assert one.arguments["max_norm"] == 2
    with pytest.raises(ValueError, match="did you mean 'generator'"):
        arms.read_clips(("generater@none",), places)
    with pytest.raises(ValueError, match="unknown place 'critic'.*none for this task"):
        arms.read_clips(("critic@none",))


def test_each_optimizer_has_a_rate_of_its_own():
    given = {"task": "rnn", "optimizer": "adam:b1=0.8"}
    assert cli.read_settings(given, presets.PRESETS).lr == (presets.RATES["adam"],)
    given = {"task": "rnn", "optimizer": "sgd"}
    assert cli.read_settings(given, presets.PRESETS).lr == presets.PRESETS["rnn"].lr
    given = {"task": "rnn", "optimizer": "adam", "lr": (0.5,)}
    assert cli.read_settings(given, presets.PRESETS).lr == (0.5,)
    assert set(presets.RATES) == set(arms.OPTIMIZERS)
