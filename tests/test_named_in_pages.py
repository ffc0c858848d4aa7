"""What the pages, the README and the notebooks name exists.

Code in running text is compared with what can be imported, with the options of the
command line, with the targets of the Makefile and with the files of the repository.
"""

import functools
import importlib
import inspect
import keyword
import pathlib
import re
import tokenize
import types

import click
import pytest
from reading import (
    DOCS,
    NOTEBOOKS,
    PAGES,
    ROOT,
    code_of,
    console_lines_of,
    spans_of,
)

import clipjax
import clipjax.plotting
from clipjax.demos import cli
from clipjax.demos.presets import PRESETS
from clipjax.demos.probes.catalogue import GROUPS, PROBES

HERE = pathlib.Path(__file__)
PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
CALL = re.compile(r"([A-Za-z_][\w.]*)\((.*)\)", re.DOTALL)
FILE = re.compile(r"[\w./-]+\.(md|py|ipynb|toml|txt|yml|cff)")

# Modules whose names pages may use without importing them first.
IMPORTED = {"jnp": "jax.numpy", "np": "numpy", "nnx": "flax.nnx", "nn": "flax.linen"}
PEERS = ("jax", "optax", "flax", "jax_privacy", "dp_accounting", "chex", "orbax")
# Libraries that tests do without, or whose names differ between their releases.
NOT_INSTALLED = ("torch", "keras", "tf", "opacus", "wandb", "tensorboardX", "equinox")
# What is no name of ours, and stands for itself: of other libraries and programs.
OTHERS = set(
    (ROOT / "tests" / "names_of_others.txt").read_text(encoding="utf-8").split()
)
OPTIONS_OF_OTHERS = {"--cache-clear", "--durations", "--overwrite", "--nbmake", "-n"}


@functools.cache
def words_of_source():
    """Every name in the code of the package, the tests and the benchmarks.

    Strings of one word count, since keys of metrics and names of files are such;
    docstrings and comments do not.
    """
    words = set(keyword.kwlist)
    for folder in ("clipjax", "tests", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            if file == HERE:
                continue
            with tokenize.open(file) as source:
                for token in tokenize.generate_tokens(source.readline):
                    if token.type == tokenize.NAME:
                        words.add(token.string)
                    elif token.type == tokenize.STRING:
                        inside = token.string.strip("rbfRBF'\"")
                        if re.fullmatch(r"[\w./@-]+", inside):
                            words |= {inside, *re.split(r"[/.]", inside)}
    return words


@functools.cache
def names_of_peers():
    """What the libraries offer that clipjax is used with."""
    modules = ["jax", "jax.numpy", "jax.lax", "jax.tree", "jax.sharding", "jax.random"]
    modules += [
        "optax",
        "optax.contrib",
        "optax.tree",
        "optax.projections",
        "flax",
        "flax.nnx",
        "numpy",
    ]
    modules += [
        "flax.nnx",
        "numpy",
        "flax.linen",
        "flax.training.train_state",
        "builtins",
        "jax_privacy",
    ]
    return {name for module in modules for name in dir(importlib.import_module(module))}


@functools.cache
def ours():
    """Each public name of clipjax, with what it is, also below its modules."""
    found = {}
    for name in [n for n in dir(clipjax) if not n.startswith("_")] + ["plotting"]:
        thing = getattr(clipjax, name)
        found[name] = thing
        if isinstance(thing, types.ModuleType):
            inside = {n: getattr(thing, n) for n in dir(thing) if not n.startswith("_")}
            found |= {f"{name}.{inner}": value for inner, value in inside.items()}
            found = inside | found
    return found


def resolves(path):
    """Tells whether a dotted path leads to something that can be imported."""
    first, *rest = path.split(".")
    root = IMPORTED.get(first, first)
    thing = importlib.import_module(root)
    for name in rest:
        if not hasattr(thing, name):
            try:
                thing = importlib.import_module(f"{thing.__name__}.{name}")
            except (ImportError, AttributeError):
                return name in getattr(thing, "__annotations__", {})
        else:
            thing = getattr(thing, name)
    return True


def is_known(word, own):
    """Tells whether a single name occurs in code that runs, or belongs to others."""
    return (
        word in words_of_source()
        or word in own
        or word in names_of_peers()
        or word in ours()
        or word in PROBES
        or word in PRESETS
        or word in OTHERS
    )


def unknown_keywords(name, arguments):
    """The keywords that a call of something of ours passes and it does not take."""
    thing = ours().get(name.removeprefix("clipjax."))
    if thing is None or isinstance(thing, types.ModuleType) or not callable(thing):
        return []
    try:
        parameters = inspect.signature(thing).parameters
    except ValueError:
        return []
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return []
    outside = re.sub(r"\([^()]*\)", "", arguments)  # without arguments of arguments
    passed = re.findall(r"(?:^|,)\s*(\w+)\s*=(?!=)", outside)
    return [word for word in passed if word not in parameters]


def mistakes_in_path(path, own):
    first = path.split(".")[0]
    if first in NOT_INSTALLED:
        return []
    if first in PEERS or first in IMPORTED:
        return [] if resolves(path) else [path]
    if path.removeprefix("clipjax.") in ours():
        return []
    if path.startswith("clipjax."):
        return [] if resolves(path) else [path]
    if isinstance(getattr(clipjax, first, None), types.ModuleType):
        return [] if resolves(f"clipjax.{path}") else [path]
    return [word for word in path.split(".") if not is_known(word, own)]


@functools.cache
def commands():
    """The commands of `clipjax`, as they are for each task."""
    per_task = [cli.make_command(name) for name in PRESETS]
    return {
        name: {
            option
            for group in per_task
            for parameter in group.commands[name].params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        | {"--help", "-h"}
        for name in per_task[0].commands
    }


def every_option():
    found = set().union(*commands().values(), OPTIONS_OF_OTHERS, {"--version"})
    scripts = [*DOCS.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    for file in scripts:
        found |= set(re.findall(r"\"(--[\w-]+)\"", file.read_text(encoding="utf-8")))
    return found


def mistakes_in_clipjax_command(words):
    name, *rest = words or ["--help"]
    if name.startswith("-"):
        return [] if name in {"--help", "--version", "-h"} else [f"clipjax {name}"]
    if name in {"NAME", "…", "..."}:
        return []
    if name not in commands():
        return [f"clipjax {name}"]
    options = {word.partition("=")[0] for word in rest if re.match(r"--\w", word)}
    wrong = [f"clipjax {name} {o}" for o in sorted(options - commands()[name])]
    if name == "probe" and rest and re.fullmatch(r"[a-z][a-z-]*", rest[0]):
        if rest[0] not in PROBES and rest[0] not in GROUPS:
            wrong.append(f"clipjax probe {rest[0]}")
    if "--task" in rest[:-1]:
        task = rest[rest.index("--task") + 1]
        if task.islower() and task not in PRESETS:
            wrong.append(f"--task {task}")
    return wrong


def mistakes_in_command(line):
    """What a command names that does not exist; other programs are not looked at."""
    wrong = []
    for part in re.split(r"&&|\||;", line):
        words = part.split("#")[0].replace('"', "").replace("'", "").split()
        words = [w for w in words if not re.fullmatch(r"[A-Z_]+=\S*", w)]
        match words:
            case ["clipjax", *rest]:
                wrong += mistakes_in_clipjax_command(rest)
            case ["make", *targets]:
                known = re.findall(
                    r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE
                )
                targets = [t for t in targets if "=" not in t and not t.startswith("-")]
                wrong += [f"make {t}" for t in targets if t not in known]
            case ["python", "-m", module, *_] if module.startswith("benchmarks"):
                base = ROOT / module.replace(".", "/")
                if not base.with_suffix(".py").exists() and not base.is_dir():
                    wrong.append(f"python -m {module}")
            case ["python", "-m", "clipjax", *rest]:
                wrong += mistakes_in_clipjax_command(rest)
            case ["python", script, *_] if script.endswith(".py"):
                wrong += [] if (ROOT / script).exists() else [f"python {script}"]
    return wrong


def is_in_repository(name):
    folders = (ROOT, DOCS, ROOT / "clipjax", ROOT / "clipjax" / "core", ROOT / "tests")
    if any((folder / name).exists() for folder in folders):
        return True
    return "/" not in name and any(ROOT.glob(f"*/**/{name}"))


def mistakes_in_span(span, own):
    """What a piece of code in running text names that does not exist."""
    if re.match(r"(clipjax|make|python) [a-z-]", span):
        return mistakes_in_command(span)
    if re.fullmatch(r"--[a-z][\w-]*( \S+)?", span):
        return [] if span.split()[0] in every_option() else [span]
    if FILE.fullmatch(span):
        return [] if is_in_repository(span) or is_known(span, own) else [span]
    if PATH.fullmatch(span):
        return mistakes_in_path(span, own)
    if call := CALL.fullmatch(span):
        wrong = unknown_keywords(*call.groups())
        return mistakes_in_path(call[1], own) + [f"{call[1]}({w}=…)" for w in wrong]
    return []


@functools.cache
def code_of_pages():
    code = "\n".join(code_of(file) for file in (*PAGES, *NOTEBOOKS))
    return set(re.findall(r"\w+", code))


def mistakes_in(file):
    own = code_of_pages()
    wrong = [m for span in spans_of(file) for m in mistakes_in_span(span, own)]
    return wrong + [
        m for line in console_lines_of(file) for m in mistakes_in_command(line)
    ]


def test_all_that_is_named_exists():
    found = {
        f.relative_to(ROOT).as_posix(): mistakes_in(f) for f in (*PAGES, *NOTEBOOKS)
    }
    wrong = [
        f"{file}: {name}" for file, names in found.items() for name in sorted(names)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "span",
    [
        "clipjax.clip_by_nothing",
        "thresholds.nothing",
        "optax.clip_by_nothing",
        "clip_by_nothing",
        "clip_by_value(max_norm=1.0)",
        "zclip(max_grad_norm=None, kind='x')",
        "clipjax nothing",
        "clipjax compare --nothing 1",
        "clipjax compare --task nothing",
        "clipjax probe nothing",
        "make nothing",
        "python -m benchmarks.nothing",
        "python docs/nothing.py",
        "--nothing",
        "docs/nothing.md",
        "state.clip_nothing",
    ],
)
def test_what_does_not_exist_is_found(span):
    assert mistakes_in_span(span, frozenset())


def test_commands_have_options_to_compare_with():
    assert all(isinstance(cli.make_command(t), click.Group) for t in list(PRESETS)[:1])
    assert {"--task", "--seeds", "--out"} <= commands()["compare"]
