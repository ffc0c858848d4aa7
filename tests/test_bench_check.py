"""The command that compares exact figures with the committed ones."""

import json

import pytest

from benchmarks import check
from benchmarks.collectives import compiled_on_mesh
from benchmarks.costs import Cost, compile_step, structs
from benchmarks.exact import figures, stored, tables
from benchmarks.exact.compare import compare
from benchmarks.exact.subjects import subjects
from clipjax import clip_by_global_norm

CHEAPEST = "clip_by_global_norm"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Commit fake figures of all subjects, for this version of JAX."""
    path = tmp_path / "exact.json"
    monkeypatch.setattr(stored, "FILE", path)
    entry = stored.entry(fake(subjects()), {})
    stored.write({stored.version(): entry, "0.1": entry})
    return path


def fake(some, **changed):
    """Count nothing."""
    return {name: {"bytes": 2.0, "flops": 1.0} | changed for name in some}


def one_changed(**changed):
    return lambda some: fake(some) | {CHEAPEST: fake([CHEAPEST], **changed)[CHEAPEST]}


@pytest.mark.parametrize("changed", [{"bytes": 2.01}, {"new": 0.0}])
def test_what_is_worse_or_new_fails(file, capsys, changed):
    assert check.main([], one_changed(**changed)) == 1
    told = capsys.readouterr().out
    assert told.count(CHEAPEST) == 1
    assert "Worse or missing: 1." in told and check.WRITE in told


def test_what_is_better_passes_with_a_hint(file, capsys):
    before = file.read_bytes()
    assert check.main([], one_changed(bytes=1.99)) == 0
    told = capsys.readouterr().out
    assert "| 2 | 1.99 | better |" in told and check.WRITE in told
    assert file.read_bytes() == before


def test_one_better_figure_does_not_hide_a_worse_one(file):
    assert check.main([], one_changed(bytes=1.0, flops=1.01)) == 1


def test_no_change_passes(file, capsys):
    assert check.main([], fake) == 0
    assert "are as committed" in capsys.readouterr().out


def test_a_subject_that_only_one_side_has_fails(file):
    everything = json.loads(file.read_text())
    for change in ("gone", "added"):
        entry = json.loads(json.dumps(everything[stored.version()]))
        if change == "gone":
            entry[stored.SUBJECTS]["a recipe that was deleted"] = {"bytes": 1.0}
        else:
            del entry[stored.SUBJECTS]["zclip"]
        stored.write({stored.version(): entry})
        assert check.main([], fake) == 1
        assert check.main(["--only", CHEAPEST], fake) == 0


def test_writing_one_subject_keeps_the_others_and_other_versions(file):
    before = json.loads(file.read_text())
    worse = lambda some: fake(some, bytes=3.0)  # noqa: E731
    assert check.main(["--only", CHEAPEST, "--write"], worse) == 0
    after = json.loads(file.read_text())
    here = after[stored.version()][stored.SUBJECTS]
    assert here.pop(CHEAPEST)["bytes"] == 3.0
    before[stored.version()][stored.SUBJECTS].pop(CHEAPEST)
    assert here == before[stored.version()][stored.SUBJECTS]
    assert after["0.1"] == before["0.1"]
    assert not list(file.parent.glob("*.new"))


@pytest.mark.parametrize("content", ["{}", '{"0.1": {}, "0.2": {}}', "{"])
def test_without_figures_for_this_jax_it_says_so_in_one_line(file, capsys, content):
    file.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        check.main([], fake)
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert content == "{" or stored.version() in told
    assert "0.1" not in content or "0.1, 0.2" in told


def test_the_committed_file_has_all_subjects():
    for version, entry in stored.read().items():
        assert entry[stored.SUBJECTS].keys() == subjects().keys(), version
        rows = [row for show in (tables.clips, tables.ratios) for row in show(entry)[1]]
        names = [name for name, *_ in rows if "Optax" not in name]
        assert sorted(names) == sorted(subjects())


needs_figures = pytest.mark.skipif(
    stored.version() not in stored.read(), reason="no figures for this version of JAX"
)


@needs_figures
def test_a_recomputed_figure_is_the_committed_one():
    committed = stored.read()[stored.version()][stored.SUBJECTS][CHEAPEST]
    assert compare({"it": committed}, {"it": figures.count(subjects()[CHEAPEST])}) == []


def test_counts_do_not_depend_on_the_code_generator():
    clip, params = clip_by_global_norm(1.0), structs(2)
    step, mesh = compile_step(clip, params), compiled_on_mesh(clip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.costs.COUNTED_ONLY", None)
        patch.setattr("benchmarks.collectives.COUNTED_ONLY", None)
        assert Cost.of(compile_step(clip, params), params) == Cost.of(step, params)
        assert compiled_on_mesh(clip).as_text() == mesh.as_text()
