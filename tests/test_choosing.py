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
    "loss spikes in a long run": "zclip",
    "one layer spikes": "adagc",
    "which number `max_norm` should be": "thresholds.md#find-a-number",
    "no idea of the scale": "quantile_clip",
    "norm is infinite in float16": "mixed_precision.md",
    "`shard_map`": "distributed.md",
    "large batches": "adaptive_grad_clip",
    "PPO": "clip_by_global_norm",
    "AdamW": "placement.md",
    "WGAN-GP": "clip_by_global_norm",
    "embeddings": "clippy",
    "loss scale": "unscale",
    "differential privacy": "privacy.md",
    "wrong labels": "robustness.md",
    "federated": "error_feedback",
    "Muon": "placement.md",
    "NaN": "skip_nonfinite",
}


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/start.md"])
def test_the_page_on_choosing_is_one_click_away(page):
    assert re.search(r"\]\((docs/)?choosing\.md\)", (DOCS.parent / page).read_text())


def rows_of(situation):
    """The rows of choosing.md whose first cell names a situation, by their cells."""
    rows = [row.split(" | ") for row in text_of("choosing.md").splitlines()]
    return [row for row in rows if row[0][:2] == "| " and situation in row[0]]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_situation_has_a_row_that_leads_to_its_method_and_to_code(situation):
    (row,) = rows_of(situation)
    assert any(SITUATIONS[situation] in cell and "](" in cell for cell in row)
    pages = re.findall(r"\]\((\S+\.md)", row[1])
    assert pages
    assert all("```python\n" in text_of(page) for page in pages)


# What a reader looks for in the README, one click from its method.
IN_THE_README = {
    "RNN, Transformer": "methods/clip_by_global_norm.md",
    "`max_norm`": "thresholds.md#find-a-number",
    "NaN": "spikes.md",
    "loss spikes": "methods/zclip.md",
    "one tensor spikes": "methods/adagc.md",
    "large batches": "methods/adaptive_grad_clip.md",
    "wrong labels": "per_example.md",
    "privacy": "privacy.md",
    "float16": "mixed_precision.md",
    "several devices": "distributed.md",
    "Muon": "placement.md",
    "PPO": "choosing.md",
    "WGAN-GP": "choosing.md",
}


def test_the_readme_leads_to_the_methods():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    _, part = readme.split("## Which method?")
    table, _, prose = part.partition("\n## ")[0].strip().partition("\n\n")
    lines = [*table.splitlines(), *prose.replace("\n", " ").split(". ")]
    for situation, page in IN_THE_README.items():
        found = [line for line in lines if situation in line]
        assert any(f"](docs/{page}" in line for line in found), situation


@pytest.mark.parametrize("page", ["choosing.md", "thresholds.md", "placement.md"])
def test_pages_of_methods_that_are_linked_are_those_of_recipes(page):
    linked = re.findall(r"\]\(methods/(\w+)\.md\)", text_of(page))
    assert set(linked) <= RECIPES
