"""The notebooks are as they were run, and say what they print.

That they run is tested by `make notebooks`, which CI calls.
"""

import ast
import functools
import json
import math
import re

import pytest
from reading import NOTEBOOKS

NUMBER = re.compile(r"(?<![\w.^{-])[-−+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w])")
# What is left of a text when no number of it is a result.
NOT_RESULTS = (
    r"`+[^`]*`+",  # code
    r"\$\$.*?\$\$|\$[^$\n]*\$",  # equations
    r"\]\([^)]*\)",  # addresses
    r"^#+ .*$",  # headings
    r"^\s*\d+\. ",  # items of a list
    r"\b(19|20)\d\d\b",  # years
    r"\b(equation|section|algorithm|table|figure|theorem|lemma)s? \d[\d.]*",
    r"\b(notebook|part)s? \d+",
)
SMALL = 12  # integers up to here count things in the text, rather than results
MACHINE = re.compile(r"/(tmp|root|home|work|Users)/|0x[0-9a-f]{6,}")


@functools.cache
def cells_of(notebook):
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def texts(notebook, kind):
    return ["".join(c["source"]) for c in cells_of(notebook) if c["cell_type"] == kind]


def outputs(notebook):
    code = (c for c in cells_of(notebook) if c["cell_type"] == "code")
    return [output for cell in code for output in cell["outputs"]]


def printed(notebook):
    """What the notebook's cells hold and print, as one text."""
    shown = []
    for output in outputs(notebook):
        shown.append("".join(output.get("text", "")))
        shown.append("".join(output.get("data", {}).get("text/plain", "")))
    return "\n".join(texts(notebook, "code") + shown)


def value(number):
    return float(number.replace("−", "-").replace(",", ""))


def decimals(number):
    mantissa = re.split("[eE]", number)[0]
    return len(mantissa.partition(".")[2])


def is_rounding_of(claim, exact):
    """Tells whether a number, or that in percent, is rounded to the claim."""
    half = 0.5000001 * 10.0 ** -decimals(claim)
    wanted = abs(value(claim))
    if re.search("[eE]", claim):
        return math.isclose(wanted, exact, rel_tol=10 * half)
    return any(abs(wanted - exact * scale) <= half for scale in (1.0, 100.0))


def unprinted_numbers(claims, shown):
    """The numbers of a text that neither code nor output has, rounded the same way."""
    for pattern in NOT_RESULTS:
        claims = re.sub(pattern, " ", claims, flags=re.DOTALL | re.MULTILINE | re.I)
    exact = {
        abs(value(n)) for n in re.findall(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", shown)
    }
    return [
        number
        for number in NUMBER.findall(claims)
        if not (decimals(number) == 0 and abs(value(number)) <= SMALL)
        and not any(is_rounding_of(number, other) for other in exact)
    ]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_number_in_the_text_is_printed(notebook):
    claims = "\n\n".join(texts(notebook, "markdown"))
    assert unprinted_numbers(claims, printed(notebook)) == []


def test_numbers_that_are_not_printed_are_found():
    shown = "accuracy 0.9337 loss 1.25e-05 and [0.94 0.92] 1,234 steps"
    right = (
        "It reaches 93.4 %, or 0.93, in 1,234 steps (2020, section 4.2): `77` and $88$."
    )
    assert unprinted_numbers(right, shown) == []
    wrong = "It reaches 93.5 %, or 0.95, in 1,235 steps; 17 of them."
    assert unprinted_numbers(wrong, shown) == ["93.5", "0.95", "1,235", "17"]


def test_each_was_run_from_top_to_bottom_without_a_warning():
    wrong = []
    for notebook in NOTEBOOKS:
        code = [c for c in cells_of(notebook) if c["cell_type"] == "code"]
        counts = [cell["execution_count"] for cell in code]
        if counts != list(range(1, len(code) + 1)):
            wrong.append(f"{notebook.stem}: cells ran in the order {counts}")
        for output in outputs(notebook):
            if output["output_type"] == "error" or output.get("name") == "stderr":
                wrong.append(f"{notebook.stem}: {''.join(output.get('text', '?'))}")
    assert not wrong


def test_none_shows_a_path_or_an_address_in_memory():
    shown = {n.stem: MACHINE.findall(printed(n)) for n in NOTEBOOKS}
    assert not {name: found for name, found in shown.items() if found}


def test_each_has_a_figure_near_the_top_and_ends_with_what_was_found():
    for notebook in NOTEBOOKS:
        early = json.dumps([c.get("outputs") for c in cells_of(notebook)[:8]])
        assert "image/png" in early, f"{notebook.stem}: no figure near the top"
        markdown = texts(notebook, "markdown")
        assert markdown[0].startswith("# "), f"{notebook.stem}: no title"
        headings = re.findall(r"^## (.+)$", "\n".join(markdown), re.MULTILINE)
        assert "What was found" in headings, f"{notebook.stem}: {headings}"
        assert "xercise" in markdown[-1] + markdown[-2], f"{notebook.stem}: no exercise"
        assert notebook.stat().st_size < 1_000_000


def test_they_use_what_is_public():
    """Models and training loops are written out: nothing of the demos is imported."""
    wrong = []
    for notebook in NOTEBOOKS:
        for code in texts(notebook, "code"):
            lines = [ln for ln in code.splitlines() if not ln.lstrip().startswith("%")]
            for node in ast.walk(ast.parse("\n".join(lines))):
                names = []
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.Attribute):
                    names = [node.attr] if not node.attr.startswith("__") else []
                private = r"clipjax\.(demos|core)\b|(^|\.)_[a-z]"
                wrong += [
                    f"{notebook.stem}: {n}" for n in names if re.search(private, n)
                ]
    assert not wrong
