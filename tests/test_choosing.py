"""The pages that help to choose name what there is, and lead to it in two clicks."""

import inspect
import pathlib
import re

import pytest

from clipjax import granularity, norms, recipes, rules, thresholds

DOCS = pathlib.Path(__file__).parent.parent / "docs"
TERM = re.compile(r"^\*\*(.+?)\.\*\*", re.MULTILINE)
RECIPES = {name for name, thing in vars(recipes).items() if inspect.isfunction(thing)}


def text_of(name):
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_table_of_thresholds_is_complete():
    _, table = text_of("thresholds.md").split("## All of them")
    listed = re.findall(r"^\| (`thresholds.*?) \|", table, re.MULTILINE)
    listed = re.findall(r"`thresholds\.(\w+)`", " ".join(listed))
    public = [n for n, thing in vars(thresholds).items() if inspect.isfunction(thing)]
    assert sorted(listed) == sorted(public)


def test_terms_of_the_glossary_are_in_order():
    terms = [term.lower().strip("(") for term in TERM.findall(text_of("glossary.md"))]
    assert terms == sorted(terms)


def test_the_glossary_lists_parts_and_tags():
    page = text_of("glossary.md")
    words = {term.lower() for term in TERM.findall(page)}
    assert words >= {"granularity", "norm", "rule", "threshold", "guard", "recipe"}
    kinds = {part.kind for part in (granularity.Leaf, granularity.Group)}
    assert words >= kinds | {"unit", "coordinates", "cotangent", "spike", "update"}
    for tag in ("Bounded", "Contractive"):
        (entry,) = re.findall(rf"^\*\*{tag}\.\*\*(.*?)\n\n", page, re.M | re.S)
        has, has_not = entry.split("`global_adapt`.")
        for name, rule in vars(rules).items():
            if isinstance(rule, rules.Rule) and name != "normalize":
                expected = has if getattr(rule, tag.lower()) else has_not
                assert f"`{name}`" in expected, (tag, name)
    every = [name for name, part in vars(norms).items() if isinstance(part, norms.Norm)]
    assert all(f"`{name}`" in page or f"`norms.{name}`" in page for name in every)


# What a reader looks for on choosing.md, and where its row leads.
SITUATIONS = {
    "RNN explodes": "clip_by_global_norm",
    "GPT-style": "clip_by_global_norm",
    "spikes that still hurt": "zclip",
    "one layer spikes": "adagc",
    "no idea of the scale": "quantile_clip",
    "large batches": "adaptive_grad_clip",
    "by PPO": "clip_by_global_norm",
    "WGAN": "clip_by_global_norm",
    "embeddings": "clippy",
    "loss scale": "unscale",
    "differential privacy": "privacy.md",
    "wrong labels": "robustness.md",
    "federated": "error_feedback",
    "Muon": "placement.md",
    "NaN": "skip_nonfinite",
}


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_page_on_choosing_is_one_click_away(page):
    assert re.search(r"\]\((docs/)?choosing\.md\)", (DOCS.parent / page).read_text())


def test_every_situation_has_a_row_that_leads_to_its_method():
    rows = [row for row in text_of("choosing.md").splitlines() if row.startswith("| ")]
    for situation, method in SITUATIONS.items():
        found = [row for row in rows if situation in row.split(" | ")[0]]
        assert any(method in row and "](" in row for row in found), situation


@pytest.mark.parametrize("page", ["choosing.md", "thresholds.md", "placement.md"])
def test_pages_of_methods_that_are_linked_are_those_of_recipes(page):
    linked = re.findall(r"\]\(methods/(\w+)\.md\)", text_of(page))
    assert set(linked) <= RECIPES
