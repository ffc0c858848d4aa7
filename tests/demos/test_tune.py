"""The heat map, run by run, and thresholds from recorded norms."""

import csv
import dataclasses
import json
import math
import signal

import jax
import numpy as np
import optax
import pytest

import clipjax
from clipjax.demos import (
    arms,
    cli,
    heat_map,
    presets,
    report,
    train,
    tune_report,
)
from clipjax.demos.tasks.build import build_task
from clipjax.diagnostics import ThresholdRow, ThresholdTable

TINY = ["tune", "--hidden", "8", "--length", "10", "--batch", "4", "--steps", "6"]
TINY += ["--last", "2", "--seeds", "2", "--lr", "0.1,1.0", "--thresholds", "0.01,1"]
SETTINGS = presets.Tuning(
    "rnn",
    presets.RNN(hidden=8, length=10, batch=4),
    lr=(0.1, 1.0),
    thresholds=(0.01, 1.0),
    steps=6,
    last=2,
    seeds=2,
)


@pytest.fixture(scope="module", autouse=True)
def quick_generator():
    """The generator of random numbers that compiles fastest."""
    with jax.default_prng_impl("unsafe_rbg"):
        yield


@pytest.fixture(autouse=True)
def table(monkeypatch):
    """A table by hand: the rules for thresholds have tests of their own."""
    rows = [ThresholdRow("median", 3.0, 0.5), ThresholdRow("largest", 0.9, 0.0)]
    found = ThresholdTable(rows, rows[1], "Rare.", [], 3, 0, 0)
    monkeypatch.setattr(tune_report, "suggest_thresholds", lambda norms: found)


@pytest.fixture(scope="module")
def task():
    return build_task(SETTINGS.model)


@pytest.fixture(scope="module")
def runs(task):
    """All runs of the settings, by one compiled program."""
    loops = []
    make = train.Loop.__init__

    def counted(self, *args, **settings):
        loops.append(self)
        make(self, *args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Loop, "__init__", counted)
        keys = heat_map.keys_of(SETTINGS)
        found = list(heat_map.train(SETTINGS, task, keys, lambda *unused: None))
    assert len(loops) == 1
    return {run.key: run for run in found}


def test_every_cell_is_there_and_first_seeds_come_first(runs):
    keys = list(runs)
    assert len(set(keys)) == 2 * 3 * 2
    assert [seed for *_, seed in keys] == [0] * 6 + [1] * 6
    assert {threshold for _, threshold, _ in keys} == {0.01, 1.0, math.inf}


def test_a_cell_is_the_run_with_its_numbers(task, runs):
    """A loop of its own, with the rate and the threshold as Python numbers."""
    rate, threshold, seed = 1.0, 0.01, 1
    static, params, batches = train.begin(task, seed)
    optimizer = optax.chain(clipjax.clip_by_global_norm(threshold), optax.sgd(rate))
    step = jax.jit(train.make_step(task, optimizer, static, learning_rate=rate))
    carry, losses = (params, optimizer.init(params)), []
    for index in range(6):
        carry, log = step(carry, task.train, batches, index)
        losses.append(float(log["loss"]))
    found = runs[rate, threshold, seed]
    assert found.loss == pytest.approx(np.mean(losses[-2:]), rel=1e-5)
    assert found.clipped == 1 and found.norms == ()
    free = runs[rate, math.inf, seed]
    assert free.clipped == 0 and len(free.norms) == 6
    assert free.loss < found.loss  # short steps are slow


def made(loss, diverged=None):
    """A heat map of given losses, `(rates, columns, seeds)`."""
    loss = np.asarray(loss, np.float64)
    diverged = np.zeros(loss.shape, bool) if diverged is None else np.asarray(diverged)
    rows, columns, seeds = loss.shape
    return heat_map.HeatMap(
        learning_rates=10.0 ** np.arange(rows),
        thresholds=np.array([*(10.0 ** np.arange(columns - 1)), np.inf]),
        loss=loss,
        diverged=diverged,
        norms=np.ones((rows, seeds, 5)),
    )


def test_gathered_in_ascending_order_with_no_clip_last(runs):
    backwards = dataclasses.replace(SETTINGS, lr=(1.0, 0.1), thresholds=(1.0, 0.01))
    for settings in (SETTINGS, backwards):
        heat = heat_map.gather(settings, runs)
        np.testing.assert_array_equal(heat.learning_rates, [0.1, 1.0])
        np.testing.assert_array_equal(heat.thresholds, [0.01, 1.0, np.inf])
        assert heat.loss.shape == (2, 3, 2) and heat.norms.shape == (2, 2, 6)
        assert heat.loss[1, 0, 1] == runs[1.0, 0.01, 1].loss


def test_best_cell_leaves_out_those_with_a_diverged_seed():
    loss = np.array([[[3, 3], [2, 2]], [[0.1, 0.1], [9, np.nan]]])
    diverged = np.array([[[0, 0], [0, 0]], [[0, 1], [1, 1]]], bool)
    heat = made(loss, diverged)
    assert heat.best() == (0, 1)
    assert heat.best(slice(0, -1)) == (0, 0)
    assert heat.highest_rate(0) == heat.highest_rate(1) == 1.0
    assert made(loss, np.ones_like(diverged)).best() is None
    assert made(loss, np.ones_like(diverged)).highest_rate(0) is None


def test_highest_rate_ends_at_the_first_divergence():
    diverged = np.array([[[0], [0]], [[0], [1]], [[0], [0]]], bool)
    heat = made(np.ones((3, 2, 1)), diverged)
    assert heat.highest_rate(0) == 100.0
    assert heat.highest_rate(1) == 1.0


def test_findings():
    loss = np.array([[[3, 3.2], [2, 2.2]], [[1, 1.2], [9, 9]], [[5, 5], [9, 9]]])
    diverged = np.zeros(loss.shape, bool)
    diverged[1:, 1] = True
    said = " ".join(tune_report.findings(made(loss, diverged)))
    assert "Best cell: learning rate 10, threshold 1, loss 1.100 ± 0.141." in said
    assert "Best without a clip: learning rate 1, no clip, loss 2.100" in said
    assert "1.000 above." in said
    assert "up to 1 without a clip, up to 100 with 1." in said
    near = " ".join(tune_report.findings(made([[[1, 2], [1.1, 2.1]]])))
    assert "0.100 above, within the range over seeds" in near
    assert "lowest one tried" in near
    assert "Every cell diverged" in tune_report.findings(made(loss, loss > 0))[0]


def test_table_marks_the_best_and_the_diverged():
    diverged = np.zeros((2, 2, 2), bool)
    diverged[1, 1, 0] = True
    heat = made([[[3, 3], [2, 2]], [[4, 4], [np.nan, 1]]], diverged)
    header, rows = tune_report.cells(heat)
    assert header == ["rate", "1", "no clip"]
    assert rows == [["1", "3.000", "2.000 *"], ["10", "4.000", "- (1 div.)"]]


def test_recommendation_is_placed_by_the_nearest_column():
    loss = np.ones((1, 4, 1))
    loss[0, 1] = 0.5
    heat = made(loss)  # thresholds 1, 10, 100 and none; recommended: 0.9
    found = tune_report.suggestion(heat)
    assert found["recommended"]["threshold"] == 0.9 and found["best_column"] == 10.0
    assert found["columns_apart"] == 1
    assert found["nearest_to_best"]["strategy"] == "median"
    assert "10 over all: the column beside it" in tune_report.say_suggestion(found)


def test_the_best_column_depends_on_the_learning_rate():
    loss = np.array([[[2], [1.9], [1.8]], [[1], [5], [6]]])  # without a clip: rate 1
    found = tune_report.suggestion(made(loss))
    assert found["learning_rate"] == 1.0
    assert found["best_column_at_this_rate"] == 10.0
    assert found["best_column"] == 1.0 and found["columns_apart"] == 0
    assert tune_report.suggestion(made(loss, np.ones(loss.shape, bool))) is None


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("sgd", "optax.sgd(0.5)"),
        ("momentum", "optax.sgd(0.5, momentum=0.9)"),
        ("rmsprop:0.8:eps=0.1", "optax.rmsprop(0.5, eps=0.1, decay=0.8)"),
    ],
)
def test_recipe_lines_are_what_they_say(spec, text):
    line = arms.recipe(spec, 0.5, math.inf)
    assert line == text
    line = arms.recipe(spec, 0.5, 2.0)
    assert line == f"optax.chain(clipjax.clip_by_global_norm(2), {text})"
    pasted = eval(line, {"optax": optax, "clipjax": clipjax})
    params = np.array([3.0, 4.0], np.float32)
    built = optax.chain(
        clipjax.clip_by_global_norm(2.0), arms.read_optimizer(spec)(0.5)
    )
    updates = [
        chain.update(params, chain.init(params), params)[0] for chain in (pasted, built)
    ]
    np.testing.assert_array_equal(*updates)


@pytest.fixture
def here(tmp_path, monkeypatch, runs):
    """An empty directory, and runs that are only looked up."""
    trained = []

    def looked_up(settings, task, keys, watch):
        for key in keys:
            watch(key, settings.steps, {"loss": runs[key].loss})
            trained.append(key)
            yield runs[key]

    monkeypatch.setattr(heat_map, "train", looked_up)
    monkeypatch.chdir(tmp_path)
    return trained


def test_tune_writes_its_files(here, capsys, tmp_path, runs):
    assert cli.main([*TINY, "--out", "new"]) == 0
    out = tmp_path / "new"
    assert {path.name for path in out.iterdir()} == {"cells.jsonl", *tune_report.FILES}
    shown = " ".join(capsys.readouterr().out.split())
    assert "optax." in shown and "no clip" in shown and "new/heat_map.png" in shown
    assert "recommend 0.9 (largest)" in shown
    content = json.loads((out / "heat_map.json").read_text())
    assert content["thresholds"] == [0.01, 1.0, "inf"]
    assert content["loss"][1][0][1] == runs[1.0, 0.01, 1].loss
    assert content["settings"]["model"]["hidden"] == 8
    with (out / "heat_map.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert float(rows[0]["loss"]) == runs[0.1, math.inf, 0].loss
    assert (out / "heat_map.png").read_bytes().startswith(b"\x89PNG")


def test_tune_goes_on_where_it_was_interrupted(here, capsys, tmp_path, monkeypatch):
    all_runs = heat_map.train

    def interrupted(settings, task, keys, watch):
        for count, found in enumerate(all_runs(settings, task, keys, watch)):
            if count == 5:
                signal.raise_signal(signal.SIGINT)
            yield found

    command = [*TINY, "--out", "new"]
    with monkeypatch.context() as patch:
        patch.setattr(heat_map, "train", interrupted)
        assert cli.main(command) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert "6 of 12 runs are kept in new/cells.jsonl" in last
    assert last.endswith(" ".join(["to go on: clipjax", *command]))
    cells = tmp_path / "new" / "cells.jsonl"
    kept = cells.read_bytes()
    assert kept.count(b"\n") == 7
    cells.write_bytes(kept[:-40])  # killed while it wrote the last line
    here.clear()
    assert cli.main(command) == 0
    assert here == heat_map.keys_of(SETTINGS)[5:]
    assert cells.read_bytes().startswith(kept)
    # Finished: nothing to train. More seeds, rates and thresholds are welcome.
    here.clear()
    assert cli.main(command) == 0 and not here
    assert cli.main([*command, "--seeds", "1"]) == 0 and not here


def test_runs_of_other_settings_are_refused(here, capsys, tmp_path):
    assert cli.main([*TINY, "--out", "new"]) == 0
    capsys.readouterr()
    for changed, named in (
        ("--gain 2", "model"),
        ("--steps 7", "steps was 6 and is 7"),
    ):
        assert cli.main([*TINY, "--out", "new", *changed.split()]) == 2
        error = capsys.readouterr().err
        assert named in error and "another --out" in error and error.count("\n") == 1
    (tmp_path / "new" / "cells.jsonl").write_text("mine\n")
    assert cli.main([*TINY, "--out", "new"]) == 2
    assert "no file of a heat map" in capsys.readouterr().err
    assert (tmp_path / "new" / "cells.jsonl").read_text() == "mine\n"


REFUSED = {
    "last": ("--last 7", ["--last 7", "--steps 6"]),
    "thresholds": ("--thresholds 1,inf", ["--thresholds", "finite numbers above 0"]),
    "optimizer": ("--optimizer sgdd", ["did you mean 'sgd'?"]),
    "key": ("--key norm", ["--history"]),
    "history with a task's option": ("--history a.jsonl", ["goes with a task"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_one_line(case, here, capsys, tmp_path):
    options, named = REFUSED[case]
    assert cli.main([*TINY, *options.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not list(tmp_path.iterdir()) and not here
    for name in named:
        assert name in error


def test_rates_follow_the_optimizer():
    assert presets.rates_around(1.5) == (0.1, 0.3, 1.0, 3.0)
    given = {"task": "rnn", "optimizer": "adam"}
    rates = cli.read_settings(given, presets.TUNING).lr
    assert rates == presets.rates_around(presets.RATES["adam"])
    assert min(rates) < presets.RATES["adam"] < max(rates)


def test_settings_that_decide_about_resuming_are_all_but_the_grid(tmp_path):
    settings = report.described(SETTINGS)
    file = heat_map.RunFile(tmp_path / "cells.jsonl", settings)
    file.start()
    more = dataclasses.replace(
        SETTINGS, lr=(0.1, 7.0), thresholds=(3.0,), seeds=5, log_every=3
    )
    heat_map.RunFile(file.path, report.described(more))
    for name, value in (("last", 1), ("optimizer", "adam"), ("steps", 7)):
        other = dataclasses.replace(SETTINGS, **{name: value})
        with pytest.raises(ValueError, match=name):
            heat_map.RunFile(file.path, report.described(other))
