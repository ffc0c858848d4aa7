"""The documentation runs, and leaves nothing out."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
import types

import pytest
from reading import DOCS, ROOT, SITE


def exports(module_name):
    """Lists what a module offers: its public definitions, and ``X as X`` imports."""
    source = inspect.getsource(importlib.import_module(module_name))
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names = [name]
            case ast.Assign(targets=[*targets]):
                names = [node.id for node in targets if isinstance(node, ast.Name)]
            case ast.ImportFrom():
                names = [alias.name for alias in node.names if alias.asname]
            case _:
                names = []
        yield from (name for name in names if not name.startswith("_"))


def lookup(path):
    module_name, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module_name), name)


def exists(path):
    """Tells whether there still is what an entry of a page is about."""
    try:
        lookup(path)
    except (AttributeError, ImportError):
        return False
    return True


def is_ours(thing):
    """Tells definitions and parts from modules, plain constants and type aliases."""
    kind = thing if isinstance(thing, type | types.FunctionType) else type(thing)
    return kind.__module__.startswith("clipjax")


def public_modules():
    """Gives clipjax, and the modules that it exports."""
    parts = [f"clipjax.{name}" for name in exports("clipjax")]
    is_module = lambda path: isinstance(lookup(path), types.ModuleType)  # noqa: E731
    return ["clipjax", *filter(is_module, parts), "clipjax.plotting"]


def test_every_export_has_an_entry_and_only_one():
    pages = [path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md")]
    entry = re.compile(r"^\.\. auto(?!module)\w+:: (clipjax\S*)", re.MULTILINE)
    entries = [name for page in pages for name in entry.findall(page)]
    assert len(entries) == len(set(entries))
    gone = [entry for entry in entries if not exists(entry)]
    assert not gone, f"take out of docs/api/: {', '.join(gone)}"
    documented = {id(lookup(entry)) for entry in entries}
    every = {
        f"{module}.{name}": lookup(f"{module}.{name}")
        for module in public_modules()
        for name in exports(module)
    }
    assert len(every) > 100
    missing = [
        path
        for path, thing in every.items()
        if is_ours(thing) and id(thing) not in documented
    ]
    assert not missing, f"add to a page of docs/api/: {', '.join(missing)}"


def test_the_index_of_the_api_leads_to_every_page():
    listed = re.findall(r"^(api/\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert set(listed) == {f"api/{path.stem}" for path in (DOCS / "api").glob("*.md")}


def test_what_dir_shows_is_what_is_exported():
    import clipjax

    shown = {name for name in dir(clipjax) if not name.startswith("_")}
    # Modules with extras of their own are exported once they are imported.
    assert shown - {"plotting"} == set(exports("clipjax"))
    assert all(hasattr(clipjax, name) for name in dir(clipjax))


def test_the_version_is_that_of_the_package():
    import clipjax

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert clipjax.__version__ == project["project"]["version"]


# Examples of recipes are those of their docstrings, which CI runs as doctests.
WITH_SNIPPETS = [page for page in SITE if page.parent != DOCS / "methods"]
PAGES = [ROOT / "README.md", *WITH_SNIPPETS]


def needs_own_process(page):
    """Tells whether a page asks for devices, which JAX hears before its first step."""
    return "XLA_FLAGS" in page.read_text(encoding="utf-8")


ALONE = [[page] for page in PAGES if needs_own_process(page)]
OTHERS = [page for page in PAGES if [page] not in ALONE]
HALVES = [OTHERS[::2], OTHERS[1::2]]  # one for each worker


@pytest.mark.parametrize("pages", [*HALVES, *ALONE], ids=lambda pages: pages[-1].stem)
def test_snippets(pages, pytestconfig):
    """Run in a process that has no conftest, as a reader has none."""
    command = [sys.executable, "-W", "error", DOCS / "run_snippets.py", *pages]
    reader = {name: os.environ[name] for name in os.environ if name != "XLA_FLAGS"}
    if hasattr(pytestconfig, "cache"):  # as for the tests themselves, see conftest.py
        compiled = pytestconfig.cache.mkdir(pages[-1].stem)
        reader["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
        reader["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=reader)
    assert done.returncode == 0, done.stdout + done.stderr


def test_snippets_that_fail_are_found(tmp_path):
    """And the pages after them run all the same."""
    pages = {
        "raises.md": "```python\nx = 1\nraise ValueError(x)\n```\n",
        "prints.md": "```python\n>>> 1 + 1\n3\n\n```\n",
        "warns.md": "```python\nimport warnings\nwarnings.warn('old')\n```\n",
        "good.md": "```python\nx = 1\n```\n\n```python\n>>> x\n1\n\n```\n",
    }
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-W", "error", DOCS / "run_snippets.py", *pages]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    found = re.findall(r"^failed: (.*)$", done.stdout, re.MULTILINE)
    assert found == ["raises.md", "prints.md", "warns.md"]
    assert 'raises.md", line 3' in done.stderr
