"""A history is compact, and survives what happens to files."""

import csv
import json
import os

import numpy as np
import pytest

from clipjax.monitoring import History, JsonlWriter, log_line

COLUMNS = {
    "loss": np.array([2.5, np.nan, 0.1], np.float32),
    "norm": np.array([1e-30, np.inf, -np.inf]),
    "count": np.array([0, 2**24 + 1, 2**31 - 1], np.int32),
    "rare": np.ma.masked_array([0.0, 7.0, 0.0], [True, False, True]),
}


def full():
    history = History()
    history.append([3, 4, 6], COLUMNS)
    return history


def assert_equal(one, other):
    assert one.keys == other.keys
    for key, column in one.to_numpy().items():
        found = other.to_numpy()[key]
        # JSON has the shortest digits that give back a float32.
        np.testing.assert_array_equal(column, found.astype(column.dtype), key)


def test_columns():
    history = full()
    assert len(history) == 3
    np.testing.assert_array_equal(history.steps, [3, 4, 6])
    for key in ("loss", "norm", "count"):
        np.testing.assert_array_equal(history[key], COLUMNS[key])
    np.testing.assert_array_equal(history["rare"], [np.nan, 7, np.nan])
    kinds = {key: history[key].dtype.name for key in ("loss", "norm", "count")}
    assert kinds == {"loss": "float32", "norm": "float64", "count": "float64"}
    assert "loss" in history and "other" not in history
    assert repr(history) == "History(3 rows, steps 3 to 6, 4 keys)"
    with pytest.raises(KeyError, match="no column 'other'; the columns are loss, norm"):
        history["other"]
    assert_equal(history, History(history.to_numpy()))


def test_rows_that_come_again_replace_later_ones():
    history = full()
    history.append([4, 5], {"loss": [1.0, 0.5]})
    np.testing.assert_array_equal(history.steps, [3, 4, 5])
    np.testing.assert_array_equal(history["loss"], [2.5, 1, 0.5])
    np.testing.assert_array_equal(history["rare"], [np.nan] * 3)
    np.testing.assert_array_equal(history.before(5).steps, [3, 4])
    np.testing.assert_array_equal(history.last(2).steps, [4, 5])
    np.testing.assert_array_equal(history.last(9).steps, [3, 4, 5])


def test_growth_is_by_chunks():
    history, capacities = History(), set()
    for step in range(0, 10_000, 100):
        steps = np.arange(step, step + 100)
        history.append(steps, {"a": steps.astype(np.float32)})
        capacities.add(len(history._steps))
    np.testing.assert_array_equal(history["a"], history.steps)
    assert len(capacities) < 12
    held = sum(c.values.nbytes + c.is_present.nbytes for c in history._columns.values())
    assert held <= 1.5 * 5 * 10_000


def test_jsonl(tmp_path):
    history, path = full(), tmp_path / "run.jsonl"
    history.to_jsonl(path)
    lines = path.read_text().splitlines()
    refuse = {"parse_constant": pytest.fail}  # NaN and Infinity are no JSON
    assert json.loads(lines[1], **refuse) == {
        "step": 4,
        "loss": "NaN",
        "norm": "Infinity",
        "count": 2**24 + 1,
        "rare": 7,
    }
    assert lines[2] == (
        '{"step": 6, "loss": 0.1, "norm": "-Infinity", "count": 2147483647.0}'
    )
    assert_equal(history, History.from_jsonl(path))
    History().to_jsonl(path)
    assert len(History.from_jsonl(path)) == 0


def test_csv(tmp_path):
    path = tmp_path / "run.csv"
    full().to_csv(path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert rows[0] == {
        "step": "3",
        "loss": "2.5",
        "norm": "1e-30",
        "count": "0.0",
        "rare": "",
    }
    assert [float(row["norm"]) for row in rows] == COLUMNS["norm"].tolist()


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    full().to_jsonl(path)
    before = path.read_text()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    for write in (History().to_jsonl, History().to_csv):
        with pytest.raises(KeyboardInterrupt):
            write(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_run_goes_on(tmp_path):
    path = tmp_path / "runs" / "run.jsonl"
    JsonlWriter(path).write(full())
    whole = path.read_text()
    path.write_text(whole[:-10])  # in the middle of step 6
    np.testing.assert_array_equal(History.from_jsonl(path).steps, [3, 4])
    writer = JsonlWriter(path)
    writer.write(History({"step": [4, 5], "loss": [1.0, 0.5]}))
    writer.close()
    found = History.from_jsonl(path)
    np.testing.assert_array_equal(found.steps, [3, 4, 5])
    np.testing.assert_array_equal(found["loss"], [2.5, 1, 0.5])
    assert len(path.read_text().splitlines()) == 4


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "run.jsonl"
    for line in ("{", "[1]", '{"loss": 1.0}', '{"step": 0, "loss": null}'):
        path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 1}}\n')
        with pytest.raises(ValueError, match=r"run.jsonl, line 2: expected a JSON ob"):
            History.from_jsonl(path)


def test_wrong_arguments():
    for steps in ([1, 0], [0, 0], [[0]]):
        with pytest.raises(ValueError, match="steps must be increasing integers"):
            History().append(steps, {})
    with pytest.raises(ValueError, match=r"a must have one number for each of 2 step"):
        History({"step": [0, 1], "a": [1.0]})
    with pytest.raises(ValueError, match="columns must have the key 'step', got a"):
        History({"a": [1.0]})
    for column in (["x"], [1j], [None]):
        with pytest.raises(TypeError, match="a must hold real numbers, got dtype"):
            History({"step": [0], "a": column})


def test_log_line():
    norms = np.append(np.arange(1.0, 101.0), np.inf)
    history = History(
        {
            "step": np.arange(101),
            "clip/grad_norm_raw": norms,
            "clip/clipped_fraction": norms > 90.5,
            "clip/nonfinite_count": norms > 100,
            "clip/threshold": np.linspace(0, 90.5, 101),
            "other/grad_norm_raw": 2 * norms,
        }
    )
    # 11 of 101 rows; quantiles of 1 to 100 by linear interpolation.
    assert log_line(history) == (
        "step 100 | norm p50 50.5, p90 90.1, p99 99 | clipped 10.9 % | non-finite 1 | "
        "threshold 90.5"
    )
    assert log_line(history, name="other") == (
        "step 100 | norm p50 101, p90 180, p99 198"
    )
    assert log_line(history.last(1)).startswith("step 100 | norm p50 nan, p90 nan")
    assert log_line(History()) == "no steps yet"
    assert log_line(History({"step": [4]})) == "step 4 | no clip"
    with pytest.raises(ValueError, match="name must be that .* it has clip, other"):
        log_line(history, name="third")
