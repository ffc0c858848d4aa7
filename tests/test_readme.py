"""What the README shows is true."""

import pathlib
import subprocess
import sys

import pytest


ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
    "arguments",
    [("run_snippets.py", "README.md"), ("methods_table.py", "--check")],
    ids=["snippets", "table of recipes"],
)
def test_readme(arguments):
    # In a process of its own: a reader has no conftest.
    script, argument = arguments
    command = [sys.executable, "-W", "error", f"docs/{script}", argument]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
