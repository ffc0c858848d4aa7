"""Writers of fetched batches: JSONL, TensorBoard, W&B."""

from __future__ import annotations

import os
import pathlib
import socket
import time
from typing import Any, Protocol

from ..core.checks import require_integer
from .extras import require_extra
from .files import append_lines, cut_half_line, jsonl_text
from .history import History


class Writer(Protocol):
    """The protocol of a writer, to which a `Recorder` passes its batches."""

    def write(self, batch: History) -> None:
        """Write the rows of a batch; their steps may go back after a restart."""
        ...

    def close(self) -> None:
        """Finish; called once, at the end."""
        ...


class JsonlWriter:
    """Append each batch to a file, one JSON object per row.

    Lines are appended whole and synced to the disk. If the process is killed, at most
    the last line is incomplete; `History.from_jsonl` ignores it, and the next writer of
    the file removes it. Repeated steps are appended again; readers use the later ones.

    Args:
        path: the file; missing folders above it are created. Rows are appended to an
            existing file.

    Example:
        >>> import pathlib, tempfile
        >>> from clipjax.monitoring import History, JsonlWriter
        >>> path = pathlib.Path(tempfile.mkdtemp(), "run.jsonl")
        >>> JsonlWriter(path).write(History({"step": [0, 1], "loss": [2.5, 1.5]}))
        >>> print(path.read_text(), end="")
        {"step": 0, "loss": 2.5}
        {"step": 1, "loss": 1.5}
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut_half_line(self.path)

    def write(self, batch: History) -> None:
        append_lines(self.path, jsonl_text(batch.rows()))

    def close(self) -> None:
        """Do nothing: the file is complete after each batch."""


class TensorBoardWriter:
    """Write each batch as scalars of TensorBoard, with tensorboardX.

    One event holds all numbers of a step; each batch is flushed to the file. Needs the
    extra ``monitoring``.

    Args:
        log_dir: the folder of the event files.
        purge_step: after a restart, the first step that is run again: TensorBoard hides
            what the earlier run wrote from there on.

    Raises:
        ImportError: tensorboardX is not installed.
        TypeError: purge_step is not an integer.
        ValueError: purge_step is negative.

    Example:
        >>> import os, tempfile
        >>> from clipjax.monitoring import Recorder, TensorBoardWriter
        >>> folder = tempfile.mkdtemp()
        >>> with Recorder(writers=[TensorBoardWriter(folder)]) as recorder:
        ...     recorder.record((), loss=2.5)
        >>> [name.startswith("events.out.tfevents") for name in os.listdir(folder)]
        [True]
    """

    def __init__(
        self, log_dir: str | os.PathLike[str], *, purge_step: int | None = None
    ):
        if purge_step is not None:
            require_integer("purge_step", purge_step, 0)
        who = "TensorBoardWriter"
        self._events = require_extra("tensorboardX.proto.event_pb2", who)
        self._summary = require_extra("tensorboardX.proto.summary_pb2", who).Summary
        # Not SummaryWriter: its queue between processes makes the caller wait after ten
        # events, and its flush returns before the queue is empty.
        name = f"events.out.tfevents.{time.time():.9f}.{socket.gethostname()}"
        os.makedirs(log_dir, exist_ok=True)
        self._file = require_extra("tensorboardX", who).RecordWriter(
            os.path.join(log_dir, name)
        )
        self._add(file_version="brain.Event:2")
        if purge_step is not None:
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            self._add(session_log=start, step=purge_step)

    def write(self, batch: History) -> None:
        for step, numbers in batch.rows():
            values = [
                self._summary.Value(tag=key, simple_value=float(value))
                for key, value in numbers.items()
            ]
            self._add(summary=self._summary(value=values), step=step)
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, **fields: Any) -> None:
        event = self._events.Event(wall_time=time.time(), **fields)
        self._file.write(event.SerializeToString())


class WandbWriter:
    """Write each batch to a run of Weights & Biases.

    Rows are written several steps late, and W&B's own step counter cannot go back. So
    each row stores its step as ``clipjax_step``, which becomes the x axis of its keys.
    Other calls of ``run.log`` are not disturbed.

    Args:
        run: what ``wandb.init()`` returned, in any mode. The writer does not finish it.

    Raises:
        TypeError: run has no ``log`` and ``define_metric``.
    """

    STEP = "clipjax_step"

    def __init__(self, run: Any):
        if not all(hasattr(run, name) for name in ("log", "define_metric")):
            raise TypeError(
                f"run must be a run of wandb, as wandb.init() returns it, got {run!r}"
            )
        self._run = run
        self._defined: set[str] = set()

    def write(self, batch: History) -> None:
        for key in batch.keys:
            if key not in self._defined:
                self._run.define_metric(key, step_metric=self.STEP)
                self._defined.add(key)
        for step, numbers in batch.rows():
            row = {key: float(value) for key, value in numbers.items()}
            self._run.log({self.STEP: step} | row)

    def close(self) -> None:
        """Do nothing: the run belongs to the caller."""
