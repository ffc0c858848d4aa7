"""The documentation runs, and leaves nothing out."""

import ast
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import types

import pytest


ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"


def exports(module_name):
    """Lists what a module offers: its public definitions, and ``X as X`` imports."""
    source = inspect.getsource(importlib.import_module(module_name))
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names = [name]
            case ast.Assign(targets=[ast.Name(id=name)]):
                names = [name]
            case ast.ImportFrom():
                names = [alias.name for alias in node.names if alias.asname]
            case _:
                names = []
        yield from (name for name in names if not name.startswith("_"))


def lookup(path):
    module_name, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module_name), name)


def is_ours(thing):
    """Tells definitions and parts from modules, plain constants and type aliases."""
    kind = thing if isinstance(thing, type | types.FunctionType) else type(thing)
    return kind.__module__.startswith("clipjax")


PARTS = [
    f"clipjax.{name}"
    for name in exports("clipjax")
    if isinstance(lookup(f"clipjax.{name}"), types.ModuleType)
]
EXPORTS = [
    f"{module}.{name}"
    for module in ["clipjax", *PARTS, "clipjax.plotting"]
    for name in exports(module)
    if is_ours(lookup(f"{module}.{name}"))
]


@pytest.fixture(scope="module")
def documented():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    return re.findall(r"^\.\. auto\w+:: (clipjax\S*)", page, re.MULTILINE)


@pytest.mark.parametrize("path", EXPORTS)
def test_every_export_has_an_entry(path, documented):
    thing = lookup(path)
    assert any(lookup(entry) is thing for entry in documented), f"add {path} to api.md"


def test_no_entry_is_there_twice(documented):
    assert len(documented) == len(set(documented))


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_snippets(page):
    command = [sys.executable, "-W", "error", DOCS / "run_snippets.py", page]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
