"""Two processes with two devices each clip as one process with four."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
from two_processes import steps_on

HERE = pathlib.Path(__file__).parent
SECONDS = 240


def start(port, rank):
    paths = [str(HERE), str(HERE.parent)]
    return subprocess.Popen(
        [sys.executable, str(HERE / "two_processes.py"), str(port), str(rank)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def results(processes):
    """Reads what the processes print, and leaves none of them behind."""
    try:
        found = []
        for process in processes:
            out, err = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, err[-3000:]
            found.append(json.loads(out.splitlines()[-1]))
        return found
    finally:
        for process in processes:
            process.kill()


def test_two_processes_are_as_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = steps_on(jax.devices()[:4])
    first, second = results([start(port, rank) for rank in range(2)])
    assert first.keys() == second.keys() == alone.keys()
    for step, expected in alone.items():
        # The same threshold, decision and counts, to the bit; NaN is in one process.
        assert first[step]["state"] == second[step]["state"], step
        for mine, theirs in zip(first[step]["state"], expected["state"], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, err_msg=step)
        mine = first[step]["updates"] | second[step]["updates"]
        assert mine.keys() == expected["updates"].keys()
        for shard, values in expected["updates"].items():
            np.testing.assert_allclose(mine[shard], values, rtol=1e-6, err_msg=shard)
    for way in ("jit", "shard_map"):
        last = alone[f"{way}-3"]["updates"].values()
        assert all(np.all(np.asarray(values) == 0) for values in last)
