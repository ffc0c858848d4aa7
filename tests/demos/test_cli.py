"""What a small comparison leaves behind, finished or interrupted."""

import base64
import dataclasses
import html
import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from clipjax.demos import (
    cli,
    compare,
    files,
    interrupts,
    report,
    report_figures,
    summary,
    train,
)
from clipjax.demos.presets import RNN
from clipjax.demos.tasks.build import build_task

TINY = ["compare", "--hidden", "8", "--length", "10", "--batch", "4", "--steps", "6"]
CLIPS = "none,clip_by_global_norm:1e-1"
# The threshold is the same at every step: a sentence, and no figure.
DRAWN = ("loss", "score", "norm", "ratio")
WRITTEN = (*report.FILES, *(f"{name}.png" for name in DRAWN))
LOG = {"loss": 1.0, "grad_norm_raw": 1.0}


@pytest.fixture(scope="module", autouse=True)
def quick_generator():
    """The generator of random numbers that compiles fastest."""
    with jax.default_prng_impl("unsafe_rbg"):
        yield


def tree(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A tiny comparison written over an older one: where, and with what results."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    out.mkdir()
    (out / "results.json").write_text("old")
    (out / "notes.txt").write_text("mine")
    (out / "threshold.png").write_text("old")  # this one draws no such figure
    command = [*TINY, "--seeds", "2", "--lr", "0.5", "--clips", CLIPS]
    results, compare_all = [], compare.compare

    def keep(*args, **settings):
        for result in compare_all(*args, **settings):
            results.append(result)
            yield result

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

    def instead(settings, task, built, *, finished=(), watch):
        arms.extend(built)
        for label, result in zip(built, comparison[1], strict=True):
            for rate in settings.lr:
                if (label, rate) not in finished:
                    watch(compare.Moment(label, rate, 0, settings.steps, LOG))
                    yield dataclasses.replace(result, label=label, learning_rate=rate)

    monkeypatch.setattr(compare, "compare", instead)
    return arms


def test_new_directories_are_made(here, capsys, trained):
    command = [*TINY, "--seeds", "2", "--clips", CLIPS]
    assert cli.main([*command, "--out", "new/deeper"]) == 0
    assert tree(here / "new") == sorted(
        ["deeper", *(f"deeper/{name}" for name in WRITTEN)]
    )
    shown = capsys.readouterr().out
    assert "final loss" in shown and "Report: new/deeper/report.html" in shown


def test_comparison_writes_its_files_and_no_others(finished):
    assert tree(finished) == sorted([*WRITTEN, "notes.txt"])
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


def drawn(results, **changes):
    """The names of the figures of arms with other values in their log."""
    changed = [
        dataclasses.replace(one, log=one.log | {k: v(one) for k, v in changes.items()})
        for one in results
    ]
    rows = [summary.summarise(one) for one in changed]
    return report_figures.draw(changed, rows, build_task(RNN()))


def test_constants_have_a_number_and_no_figure(comparison):
    results = comparison[1]
    figures, said = drawn(results, clip_ratio=lambda one: np.ones((2, 6)))
    assert list(figures) == ["loss", "score", "norm"]
    assert said == [
        "The clip ratio is 1 throughout: no clip changed any gradient.",
        "Thresholds, the same at every step: none: no limit; "
        "clip_by_global_norm:1e-1: 0.1.",
    ]
    figures, said = drawn(
        results, threshold=lambda one: np.geomspace(1, 2, 12).reshape(2, 6)
    )
    assert list(figures) == ["loss", "score", "norm", "ratio", "threshold"]
    assert not said
    assert "none from 1 to 2" in figures["threshold"].alt


@pytest.mark.parametrize(
    ("values", "is_log"),
    [
        ([[2.0, 60.0]], True),
        ([[2.0, 30.0], [np.inf, np.nan]], False),
        ([[0.0, 60.0]], False),
        ([[np.nan]], False),
    ],
)
def test_a_score_that_spans_decades_has_a_logarithmic_axis(values, is_log):
    assert report_figures.spans_decades(map(np.array, values)) == is_log


def test_report_stands_alone(finished):
    page = (finished / "report.html").read_text()
    assert "clipjax compare --hidden 8 --length 10" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    for name, image in zip(DRAWN, images, strict=True):
        png = (finished / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG") and base64.b64decode(image) == png
    for heading in ("final loss", "diverged", "steps clipped", "time per step"):
        assert f"<th>{heading}</th>" in page
    assert page.count("<tr>") == 3
    assert "All arms share one learning rate" in page
    assert "Thresholds, the same at every step: none: no limit; clip_by" in page


def test_report_says_first_what_happened(comparison):
    out, results = comparison
    page = (out / "report.html").read_text()
    first = page.index('<div class="verdict">')
    assert page.index("</h1>") < first < page.index("<h2>")
    said = json.loads((out / "results.json").read_text())["verdict"]
    for sentence in said:
        assert html.escape(sentence) in page[first:]
    assert said[-1].startswith("Steps in which the clip changed the gradient: all with")
    # A figure says in words what is seen in it, with the numbers of the run.
    start = results[0].log["loss"][:, 0].mean()
    alts = re.findall('<img alt="([^"]+)"', page)
    assert (
        f"Training loss by step, running mean over 1: none from {start:.3g} to "
        in (alts[0])
    )
    assert "clip_by_global_norm:1e-1 clipped in 100 %" in alts[2]


def test_failed_writing_leaves_nothing(here, capsys, monkeypatch, trained):
    def full(*unused):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    monkeypatch.setattr(files.pathlib.Path, "rename", full)
    before = tree(here)
    command = [*TINY, "--seeds", "2", "--clips", CLIPS]
    assert cli.main([*command, "--out", "new/deeper"]) == 2
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


@pytest.mark.parametrize("window", [10**12, 10**9])
def test_a_window_that_does_not_fit_is_refused(window, here, capsys, monkeypatch):
    monkeypatch.setattr(train.os, "sysconf", lambda name: 2**15)  # 1 GiB
    before = tree(here)
    assert cli.main([*TINY, "--out", "new", "--clips", f"autoclip:50:{window}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"clipjax: error: clip 'autoclip:50:{window}' cannot train")
    assert tree(here) == before


def test_an_interrupted_comparison_keeps_what_is_finished(
    here, capsys, monkeypatch, trained
):
    all_arms = compare.compare

    def interrupted(*args, **settings):
        yield next(all_arms(*args, **settings))
        signal.raise_signal(signal.SIGINT)
        settings["watch"](compare.Moment("none", 0.5, 0, 1, LOG))
        raise AssertionError("went on")

    command = [*TINY, "--seeds", "2", "--lr", "0.5", "--clips", CLIPS, "--out", "new"]
    with monkeypatch.context() as patch:
        patch.setattr(compare, "compare", interrupted)
        assert cli.main(command) == 130
    shown = capsys.readouterr()
    last = shown.err.splitlines()[-1]
    assert "1 of 2 arms are finished" in last
    assert last.endswith(f"{' '.join(['clipjax', *command])} --resume")
    assert "new/report.html" in shown.out
    first = json.loads((here / "new" / "results.json").read_text())
    assert list(first["arms"]) == ["none"]

    assert cli.main([*command, "--resume", "--steps", "7"]) == 2
    assert "steps was 6" in capsys.readouterr().err
    # What was finished is not trained again.
    assert cli.main([*command, "--resume"]) == 0
    second = json.loads((here / "new" / "results.json").read_text())
    assert list(second["arms"]) == CLIPS.split(",")
    assert second["arms"]["none"] == first["arms"]["none"]


def test_resuming_trains_what_is_missing_alone(here, capsys, trained):
    command = [*TINY, "--seeds", "2", "--clips", CLIPS, "--out", "new"]
    assert cli.main([*command, "--lr", "0.5"]) == 0
    capsys.readouterr()
    assert cli.main([*command, "--lr", "0.5,1.5", "--resume"]) == 0
    progress = capsys.readouterr().err
    assert progress.count("lr 1.5") == 2 and "lr 0.5" not in progress


def test_several_rates_show_each_arm_at_its_best(here, capsys, trained):
    command = [*TINY, "--seeds", "2", "--clips", CLIPS, "--out", "new"]
    assert cli.main([*command, "--lr", "0.5,1.5"]) == 0
    shown = capsys.readouterr().out
    assert "Each arm at its own best learning rate" in shown
    arms = json.loads((here / "new" / "results.json").read_text())["arms"]
    assert list(arms) == [
        f"{clip} @ {lr}" for clip in CLIPS.split(",") for lr in (0.5, 1.5)
    ]
    page = (here / "new" / "report.html").read_text()
    assert (
        page.count("<th>rate</th>") == 1
    )  # all at 0.5 where the arms are at their best
    assert page.count("<tr>") == 3 + 5


def test_interruption_leaves_nothing(here, capsys, monkeypatch):
    def interrupt(*unused, **unused_too):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Loop, "__init__", lambda *unused, **unused_too: None)
    monkeypatch.setattr(train.Loop, "run", interrupt)
    before = tree(here)
    assert cli.main([*TINY, "--clips", "none", "--out", "new"]) == 130
    error = capsys.readouterr().err.strip()
    assert error.splitlines()[-1] == "clipjax: interrupted, nothing written"
    assert tree(here) == before


def test_ctrl_c_waits_for_the_compiled_program():
    before = signal.getsignal(signal.SIGINT)
    with interrupts.deferred() as check:
        check()
        signal.raise_signal(signal.SIGINT)  # raises nothing here
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is before


def run_alone(tmp_path, arguments, **settings):
    """The command in a process of its own."""
    environment = dict(os.environ, PYTHONPATH=os.getcwd(), COLUMNS="80")
    environment.pop("XLA_FLAGS", None)
    if kept := jax.config.jax_compilation_cache_dir:  # see tests/conftest.py
        environment["JAX_COMPILATION_CACHE_DIR"] = kept
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return subprocess.Popen(
        [sys.executable, "-m", "clipjax", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
        **settings,
    )


def test_ctrl_c_ends_the_process_with_130_and_a_report(tmp_path):
    options = ["--clips", "none,clip_by_global_norm:1", "--steps", "3000"]
    process = run_alone(
        tmp_path,
        [*TINY, "--seeds", "1", *options, "--log-every", "50", "--out", "new"],
    )
    seen = []
    assert process.stderr is not None
    for line in process.stderr:  # what a pipe sees while it trains
        seen.append(line)
        if line.startswith("clip_by_global_norm:1: ") and "loss" in line:
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert any(line.startswith("none: 3000/3000 ") for line in seen)
    assert "Traceback" not in err and "1 of 2 arms are finished" in err.splitlines()[-1]
    assert "new/report.html" in out
    assert (tmp_path / "new" / "report.html").exists()
