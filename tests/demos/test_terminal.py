"""Tables and progress at any width."""

import re

import pytest

from clipjax.demos import terminal


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_cell_is_cut_at_any_width(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal
    monkeypatch.setenv("TERM", "xterm")
    header = ["clip", *(f"column {index}" for index in range(8))]
    names = ["clip_by_global_norm:1.0", "adaptive_grad_clip:0.01:eps=0.001"]
    cells = [[name, *(f"{index}.123 ± 0.456" for index in range(8))] for name in names]
    terminal.show_table("Title", header, cells)
    shown = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert "…" not in shown
    for text in (*header, *names, *cells[0]):
        assert text in shown
    if width >= 60:
        assert max(map(len, shown.splitlines())) <= width
    # The names stand in front of each part.
    assert shown.count(names[0]) == {40: 8, 60: 8, 80: 4, 200: 1}[width]


def test_progress_shows_whole_names(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    names = ["clip_by_global_norm:1.0", "clip_by_global_norm:10.0"]
    with terminal.bars({name: 100 for name in names}) as show:
        for name in names:
            show(name, 50, "seed 0 loss 1.234 norm 1.23e+04, and much more than fits")
    shown = re.sub("\x1b\\[[0-9;]*[A-Za-z]", "", capsys.readouterr().err)
    last = [line for line in shown.splitlines() if "50/100" in line][-2:]
    for name, line in zip(names, last, strict=True):
        assert line.split()[:3] == [name, "50/100", "seed"] and len(line.rstrip()) <= 60
