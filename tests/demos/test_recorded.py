"""Thresholds from recorded norms."""

import numpy as np
import pytest

import clipjax
from clipjax import diagnostics
from clipjax.demos import cli, recorded

HISTORIES = {
    "numbers": ("1.5\n2\n", [1.5, 2]),
    "metrics": ('{"step": 0, "clip/grad_norm_raw": 3}\n', [3]),
    "bare name": ('{"grad_norm_raw": 3.5}\n\n{"grad_norm_raw": 4}\n', [3.5, 4]),
    "not finite": ('null\n"inf"\nNaN\nInfinity\n', [np.nan, np.inf, np.nan, np.inf]),
    "after a restart": (
        "".join(
            f'{{"step": {step}, "clip/grad_norm_raw": {norm}}}\n{{"step": {step}}}\n'
            for step, norm in [(0, 1), (1, 2), (2, 3), (1, 4), (2, "NaN")]
        ).replace("NaN", '"NaN"'),
        [1, 4, np.nan],
    ),
    "half a line": ('1\n2\n{"clip/gr', [1, 2]),
}


@pytest.mark.parametrize("case", HISTORIES)
def test_norms_are_read(case, tmp_path):
    text, norms = HISTORIES[case]
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    np.testing.assert_array_equal(recorded.read_norms(path), norms)


BAD_HISTORIES = {
    "missing": (None, ["No such file"]),
    "empty": (b"\n", ["holds no norms"]),
    "not UTF-8": (b"\xff\n", ["line 1", "not JSON"]),
    "a line without end": (b"1\n" + b" 1" * 2**20, ["line 2", "not JSON"]),
    "not JSON": (b"1\ntwo\n3\n", ["line 2", "not JSON"]),
    "no norm": (b'{"loss": 1}\n', ["grad_norm_raw", "--key", "'loss'"]),
    "several": (
        b'{"a/grad_norm_raw": 1, "b/grad_norm_raw": 2}\n',
        ["--key", "'a/grad_norm_raw', 'b/grad_norm_raw'"],
    ),
    "a list": (b"[1]\n", ["line 1", "[1]"]),
    "true": (b"true\n", ["line 1", "True"]),
    "text": (b'"large"\n', ["line 1", "large"]),
}


@pytest.mark.parametrize("case", BAD_HISTORIES)
def test_other_files_are_refused(case, tmp_path, monkeypatch, capsys):
    content, named = BAD_HISTORIES[case]
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "run.jsonl").write_bytes(content)
    assert cli.main(["tune", "--history", "run.jsonl"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for name in ("run.jsonl", *named):
        assert name in error


def test_a_key_chooses_the_norm(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text('{"a/grad_norm_raw": 1, "b/grad_norm_raw": 2}\n')
    assert recorded.read_norms(path, "b/grad_norm_raw") == [2]
    with pytest.raises(ValueError, match="did you mean 'b/grad_norm_raw'"):
        recorded.read_norms(path, "b/grad_norm")


def test_a_history_gives_a_table_and_a_line_to_paste(tmp_path, capsys):
    norms = np.exp(np.random.default_rng(0).normal(size=500))
    (tmp_path / "run.jsonl").write_text("\n".join(map(str, norms)))
    assert cli.main(["tune", "--history", str(tmp_path / "run.jsonl")]) == 0
    shown = capsys.readouterr().out
    assert "500 recorded norms" in shown and "quantile 0.5" in shown
    assert "Recommended: " in shown
    line = shown.splitlines()[-1]
    threshold = eval(line, {"clipjax": clipjax})
    assert threshold.init(np.zeros(1)) is not None
    printed = float(line.partition("(")[2].rstrip(")"))
    recommended = diagnostics.suggest_thresholds(norms).recommended.threshold
    assert printed == pytest.approx(recommended, rel=1e-3)
