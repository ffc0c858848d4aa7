"""What writers write is read back by others; what they need is named."""

import io
import struct
import sys
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from clipjax.monitoring import (
    History,
    Recorder,
    TensorBoardWriter,
    WandbWriter,
    progress,
)

COLUMNS = {
    "clip/grad_norm_raw": np.float32([0.5, 4.0, np.inf]),
    "clip/grad_norm_clipped": np.float32([0.5, 1.0, np.inf]),
    "clip/clip_ratio": np.float32([1.0, 0.25, 1.0]),
    "rare": np.ma.masked_array([0.0, 7.0, 0.0], [True, False, True]),
}
STEPS = [3, 4, 6]


def batch(rows=slice(None)):
    history = History()
    history.append(STEPS[rows], {key: COLUMNS[key][rows] for key in COLUMNS})
    return history


def masked(number):
    return ((number >> 15 | number << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events_in(folder):
    """Reads an event file: records of TFRecord's format, each an event."""
    (path,) = folder.iterdir()
    data = io.BytesIO(path.read_bytes())
    while header := data.read(12):
        length, length_crc = struct.unpack("<QI", header)
        record = data.read(length)
        assert length_crc == masked(crc32c(header[:8]))
        assert struct.unpack("<I", data.read(4))[0] == masked(crc32c(record))
        yield Event.FromString(record)


def test_tensorboard_events(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.write(batch(slice(0, 2)))
    found = {}
    # All that was handed over can be read before the writer is closed.
    for event in events_in(tmp_path):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    writer.close()
    assert found.pop("rare") == [(4, 7.0)]
    assert found == {
        key: list(zip(STEPS[:2], COLUMNS[key][:2].tolist(), strict=True))
        for key in found
    }
    assert set(found) == set(COLUMNS) - {"rare"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_them(tmp_path):
    """Its own reader: two runs in one folder, the second from step 4 on."""
    from tensorboard.backend.event_processing import (
        event_accumulator as accumulators,
    )

    first = TensorBoardWriter(tmp_path)
    first.write(batch())
    first.close()
    second = TensorBoardWriter(tmp_path, purge_step=4)
    second.write(History({"step": [4, 5], "clip/clip_ratio": [0.75, 0.5]}))
    second.close()
    found = accumulators.EventAccumulator(str(tmp_path))
    found.Reload()
    assert set(found.Tags()["scalars"]) == set(COLUMNS)
    ratios = [(e.step, e.value) for e in found.Scalars("clip/clip_ratio")]
    assert ratios == [(3, 1.0), (4, 0.75), (5, 0.5)]


class Run:
    """What is used of a run of wandb."""

    def __init__(self):
        self.rows, self.axes = [], []

    def log(self, row):
        self.rows.append(row)

    def define_metric(self, key, *, step_metric):
        self.axes.append((key, step_metric))


def test_wandb_rows():
    run = Run()
    writer = WandbWriter(run)
    for rows in (slice(0, 2), slice(2, 3)):
        writer.write(batch(rows))
    writer.close()
    assert [row["clipjax_step"] for row in run.rows] == STEPS
    assert [row.get("rare") for row in run.rows] == [None, 7.0, None]
    ratios = [row["clip/clip_ratio"] for row in run.rows]
    assert ratios == COLUMNS["clip/clip_ratio"].tolist()
    assert sorted(run.axes) == [(key, "clipjax_step") for key in sorted(COLUMNS)]
    with pytest.raises(TypeError, match="run must be a run of wandb, as wandb.init()"):
        WandbWriter("offline")


def test_progress():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=60)
    recorder = Recorder(history=batch())
    seen = []
    for step in progress(range(3), recorder, description="train", console=console):
        seen.append(step)
        recorder.extend({key: COLUMNS[key] for key in list(COLUMNS)[:3]})
        recorder.flush()
    assert seen == [0, 1, 2]
    last = shown.getvalue().split("train")[-1]
    assert "3/3" in last
    assert "step 15 | norm p50 2.25" in last
    quiet = io.StringIO()
    plain = Console(file=quiet)
    assert list(progress(iter("ab"), recorder, console=plain)) == ["a", "b"]
    assert quiet.getvalue() == ""


def test_missing_extras(monkeypatch, tmp_path):
    recorder = Recorder()
    for package in ("tensorboardX", "rich.console"):
        monkeypatch.setitem(sys.modules, package, None)
    for make, who in (
        (lambda: TensorBoardWriter(tmp_path), "TensorBoardWriter needs tensorboardX"),
        (lambda: progress([], recorder), "progress needs rich"),
    ):
        with pytest.raises(ImportError, match=who) as raised:
            make()
        assert "pip install 'clipjax[monitoring]'" in str(raised.value)


def test_monitoring_imports_no_extra():
    """What its modules hold is from no extra's package."""
    import clipjax.monitoring

    package = clipjax.monitoring.__name__
    names = [name for name in sys.modules if name.startswith(package)]
    assert len(names) > 5
    for name in names:
        held = list(vars(sys.modules[name]).values())
        sources = {getattr(thing, "__module__", None) for thing in held}
        sources |= {thing.__name__ for thing in held if isinstance(thing, ModuleType)}
        roots = {str(source).partition(".")[0] for source in sources}
        assert roots.isdisjoint({"tensorboardX", "rich", "flax", "matplotlib", "wandb"})
