"""Each recipe has a page made of its docstring, which says what the clip is."""

import importlib
import inspect
import pathlib
import re

import jax.numpy as jnp
import pytest

import clipjax
from clipjax import recipes
from clipjax.thresholds.entries import AverageMaximum

DOCS = pathlib.Path(__file__).parent.parent / "docs"
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


@pytest.fixture(scope="module")
def script():
    """Import the script as it runs by itself, with its folder on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield importlib.import_module("method_pages")


@pytest.fixture(scope="module")
def made(script):
    return script.pages()


def coordinates_of(name):
    clip = CHAINS.get(name) or FUNCTIONS[name](*NEEDED.get(name, ()))
    return clip.clipper.coordinates


def test_every_docstring_has_the_coordinates_of_its_clip(script):
    wrong = {}
    for name, recipe in script.read_recipes().items():
        if recipe.coordinates != coordinates_of(name):
            wrong[name] = (recipe.coordinates, coordinates_of(name))
    assert not wrong
    assert len(FUNCTIONS) >= 32


def test_chains_start_with_the_clip_that_is_placed():
    """Their states show it: one that learns, or one of the whole."""
    params = {"w": jnp.ones(2)}
    state = clipjax.stable_spam_clip().init(params)
    assert list(state[0].clip_memory) == ["average-maximum"]
    state = clipjax.scale_by_l0_l1(1.0, 1.0).init(params)
    assert isinstance(state[0], clipjax.ClipState)


def test_the_pages_are_as_they_are_made(script, made):
    assert not script.stale(made), "run python docs/method_pages.py --write"


def test_a_page_that_is_changed_or_left_over_is_found(script, made, monkeypatch):
    first = script.FOLDER / "zclip.md"
    changed = {path: text for path, text in made.items() if path != first}
    assert script.stale(changed) == ["zclip.md"]
    assert script.stale(made | {first: made[first] + " "}) == ["zclip.md"]
    monkeypatch.setattr(script, "read_groups", lambda: script_groups[1:])
    script_groups = importlib.import_module("method_parts.notes").read_groups()
    with pytest.raises(ValueError, match="is in no group"):
        script.pages()


def test_every_recipe_has_one_purpose_and_a_call_that_is_drawn(script):
    purposes = [name for group in script.read_groups() for name in group.methods]
    assert sorted(purposes) == sorted(FUNCTIONS)
    scenes = importlib.import_module("method_parts.scenes").SCENES
    assert scenes.keys() == FUNCTIONS.keys()


def test_the_index_links_every_page(script, made):
    index = made[script.INDEX]
    for name in FUNCTIONS:
        assert index.count(f"[{name}](methods/{name}.md)") >= 3, name
    rows = re.findall(r"^\| \[\w+\]\(methods/\w+\.md\) .*$", index, re.MULTILINE)
    assert len(rows) == 2 * len(FUNCTIONS)
    for row in script.read_others():
        assert f"| `{row['name']}` |" in index
        assert hasattr(clipjax, row["name"])


def test_every_page_has_its_figures_and_right_links(script, made):
    used = set()
    for path, text in made.items():
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), (path.name, target)
        figures = re.findall(r"!\[[^]]*\]\(\.\./figures/methods/([\w-]+\.svg)\)", text)
        used |= set(figures)
        assert path == script.INDEX or figures[0] == f"{path.stem}.svg"
    drawn = {path.name: path.stat().st_size for path in script.FIGURES.iterdir()}
    assert used == drawn.keys(), "run python docs/method_pages.py --draw"
    assert max(drawn.values()) <= 25_000


def test_related_methods_and_pitfalls_are_there(script):
    for group in script.read_groups():
        for name, notes in group.methods.items():
            assert notes.pitfalls and notes.use and notes.avoid, name
            assert notes.related and name not in notes.related, name
            assert notes.related.keys() <= FUNCTIONS.keys(), name


def test_a_docstring_without_a_part_is_named(script):
    whole = inspect.getdoc(clipjax.zclip)
    read = importlib.import_module("method_parts.docstrings").read_recipe
    for part, text in {
        "coordinates": "Coordinates:",
        "references": "References:",
        "table of inputs": "| input | result |",
    }.items():
        with pytest.raises(ValueError, match=f"zclip has no {part}"):
            read("zclip", whole.replace(text, ""))
