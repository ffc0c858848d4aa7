"""The tables of recipes are made of docstrings, and docstrings say what clips are."""

import importlib.util
import inspect
import pathlib

import jax.numpy as jnp
import pytest

import clipjax
from clipjax import recipes
from clipjax.thresholds.entries import AverageMaximum

ROOT = pathlib.Path(__file__).parent.parent


def load_script():
    script = ROOT / "docs" / "methods_table.py"
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    importlib.import_module("sys").modules[script.stem] = module
    spec.loader.exec_module(module)
    return module


TABLES = load_script()
FUNCTIONS = {
    name: function
    for name, function in vars(recipes).items()
    if inspect.isfunction(function)
}
# What recipes need; all else is as it is by default.
NEEDED = {
    "clip_by_value": (0.2,),
    "clip_by_global_norm": (1.0,),
    "clip_by_leaf_norm": (1.0,),
    "clip_by_group_norm": ({"a": "x", "b": "y"}, {"x": 1.0, "y": 2.0}),
    "clip_by_block_rms": (1.0,),
    "adaptive_grad_clip": (0.1,),
    "soft_clip_by_global_norm": (1.0,),
    "torch_clip_grad_norm": (1.0,),
    "clip_by_momentum": (5.0,),
}
# Those that are chains, by the clip that their docstring places.
CHAINS = {
    "scale_by_l0_l1": clipjax.soft_clip_by_global_norm(1.0),
    "stable_spam_clip": clipjax.clip_entries(AverageMaximum(0.999)),
}


def coordinates_of(name):
    clip = CHAINS.get(name) or FUNCTIONS[name](*NEEDED.get(name, ()))
    return clip.clipper.coordinates


def test_every_docstring_has_the_coordinates_of_its_clip():
    wrong = {}
    for name in FUNCTIONS:
        line = TABLES.read_recipe(name, inspect.getdoc(FUNCTIONS[name])).coordinates
        if line != coordinates_of(name):
            wrong[name] = (line, coordinates_of(name))
    assert not wrong
    assert len(FUNCTIONS) >= 32


def test_chains_start_with_the_clip_that_is_placed():
    """Their states show it: one that learns, or one of the whole."""
    params = {"w": jnp.ones(2)}
    state = clipjax.stable_spam_clip().init(params)
    assert list(state[0].clip_memory) == ["average-maximum"]
    state = clipjax.scale_by_l0_l1(1.0, 1.0).init(params)
    assert isinstance(state[0], clipjax.ClipState)


def test_the_tables_have_a_row_for_each_recipe():
    for table in (TABLES.readme_table(), TABLES.page_table()):
        assert len(table.splitlines()) == len(FUNCTIONS) + 2
    rows = TABLES.coordinates_table().splitlines()
    assert len(rows) == len(FUNCTIONS) + 2
    assert {row.count(" | ") for row in rows} == {4}


def test_the_readme_has_the_table_as_it_is_made():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    if TABLES.BEGIN not in page:
        pytest.skip("the README has no table")
    assert TABLES.with_table(page) == page, "run python docs/methods_table.py --write"
