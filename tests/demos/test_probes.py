"""The command `clipjax probe`, and how measured numbers stand beside reported ones."""

import json

import numpy as np
import pytest

from clipjax.demos import cli
from clipjax.demos.probes import attention_scaling, catalogue
from clipjax.demos.probes.base import beside, is_apart, over_seeds

SMALL = "attention-scaling:seeds=2:pairs=500"


@pytest.fixture(scope="module")
def measured():
    return attention_scaling.measure(seeds=2, pairs=500, queries=20)


@pytest.mark.parametrize(
    ("reported", "values", "is_wrong"),
    [
        ("0.35", [0.345], False),
        ("0.35", [0.3449], True),
        ("0.35", [0.30, 0.40], False),
        ("0.35", [0.36, 0.40], True),
        ("1013", [1013.4], False),
        ("1013", [1013.6], True),
        ("1.2e10", [1.24e10], False),
        ("1.2e10", [1.26e10], True),
        ("-1.6", [-1.62], False),
        ("2.0", [np.nan, 2.0], True),
    ],
)
def test_a_reported_number_stands_for_what_rounds_to_it(reported, values, is_wrong):
    assert is_apart(reported, values) == is_wrong


def test_a_table_of_measured_beside_reported_numbers():
    table = beside("t", [("a", "2", [2.0]), ("b", "3", [2.0, 2.2]), ("c", None, 1.0)])
    assert [row[3] for row in table.rows] == ["agrees", "differs", ""]
    assert table.rows[1][2] == "2.1 (2 to 2.2)"
    assert over_seeds([2.0, 2.0]) == "2"


def test_attention_logits(measured):
    np.testing.assert_allclose(measured.variance, [[4] * 2, [64] * 2, [1024] * 2], 0.25)
    np.testing.assert_allclose(measured.scaled_variance, 1, rtol=0.25)
    np.testing.assert_allclose(measured.gradient[1:], [[8] * 2, [32] * 2], rtol=0.02)


def test_the_command_prints_and_writes(measured, tmp_path, capsys, monkeypatch):
    calls = []

    def measure(*, seeds: int = 3, pairs: int = 20_000):
        calls.append((seeds, pairs))
        return measured

    monkeypatch.setattr(attention_scaling, "measure", measure)
    out = tmp_path / "out"
    command = ["probe", SMALL, "--out", str(out)]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "variance of q·k, d = 64" in shown and "attention-scaling.png" in shown
    content = json.loads((out / "attention-scaling.json").read_bytes())
    assert content["measured"]["widths"] == [4, 64, 1024]
    assert content["arguments"] == {"seeds": 2, "pairs": 500}
    assert (out / "attention-scaling.png").read_bytes().startswith(b"\x89PNG")
    assert SMALL in (out / "attention-scaling.md").read_text(encoding="utf-8")
    # What is there is not measured again, unless its arguments differ.
    assert cli.main([*command, "--resume"]) == 0
    assert capsys.readouterr().out == shown
    assert calls == [(2, 500)]
    other = ["probe", "attention-scaling:seeds=1", "--out", str(out), "--resume"]
    assert cli.main(other) == 0
    assert calls[1:] == [(1, 20_000)]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["atention-scaling"], "did you mean 'attention-scaling'?"),
        (["attention-scaling:seed=1"], "accepted: attention-scaling(*, seeds=3"),
        (["attention-scaling:seeds=x"], "'seeds=x' is not a number"),
        ([SMALL, "attention-scaling"], "is given twice"),
        ([], "Missing argument 'NAME...'"),
    ],
)
def test_mistakes_are_one_line(names, said, capsys, tmp_path):
    assert cli.main(["probe", *names, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_interrupt_keeps_what_is_finished(measured, tmp_path, capsys, monkeypatch):
    def interrupted(*, watch=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(attention_scaling, "measure", interrupted)
    assert cli.main(["probe", "attention-scaling", "--out", str(tmp_path)]) == 130
    assert "interrupted, nothing written" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_every_probe_has_its_functions_and_arguments_with_defaults():
    for name in catalogue.PROBES:
        module = catalogue.load(name)
        assert callable(module.report)
        defaults = module.measure.__kwdefaults__ or {}
        assert module.measure.__code__.co_kwonlyargcount == len(defaults)
        assert module.measure.__code__.co_argcount == 0
