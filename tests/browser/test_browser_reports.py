"""The reports of the command line, as a phone and a desktop show them."""

import numpy as np
import pytest
from browser_checks import check

from clipjax.demos import pages, tune_report
from clipjax.demos.heat_map import HeatMap


def test_the_report_of_a_comparison(visit, report):
    opened = visit(report)
    check(opened, figures=3)
    page = opened.page
    # What happened is on the first screen, below the title and before all else.
    verdict = page.locator(".verdict")
    assert page.locator("body > *").nth(1).get_attribute("class") == "verdict"
    box = verdict.bounding_box()
    assert box["y"] + box["height"] <= page.viewport_size["height"]
    said = verdict.inner_text()
    assert "final loss" in said.lower() and "Steps in which the clip changed" in said


def test_figures_stand_below_each_other_on_a_phone_alone(visit, report):
    opened = visit(report)
    boxes = [one.bounding_box() for one in opened.page.locator("figure").all()]
    columns = {round(box["x"]) for box in boxes}
    assert len(columns) == (1 if opened.width < 600 else 2)


def test_tables_scroll_in_their_own_box(visit, report):
    opened = visit(report)
    box = opened.page.locator(".wide").first
    assert box.bounding_box()["width"] <= opened.width
    is_wide = box.evaluate("node => node.scrollWidth > node.clientWidth")
    assert is_wide or opened.width > 600


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_background(visit, report, scheme):
    page = visit(report).page
    page.emulate_media(color_scheme=scheme)
    for selector in ("body", ".verdict", ".note", "figcaption", "pre"):
        text, back = (
            np.array(rgb) / 255
            for rgb in page.locator(selector).first.evaluate(
                """node => {
                  const numbers = text => text.match(/[0-9.]+/g).map(Number);
                  const color = numbers(getComputedStyle(node).color).slice(0, 3);
                  for (; node; node = node.parentElement) {
                    const back = numbers(getComputedStyle(node).backgroundColor);
                    if (back.length < 4 || back[3]) return [color, back.slice(0, 3)];
                  }
                }"""
            )
        )
        dark, light = sorted((luminance(text), luminance(back)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, selector


def luminance(rgb):
    """The relative luminance of the Web Content Accessibility Guidelines."""
    linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_the_report_of_a_heat_map(visit, tmp_path):
    losses = np.linspace(1, 2, 24).reshape(3, 4, 2)
    heat = HeatMap(
        learning_rates=np.array([0.1, 0.3, 1.0]),
        thresholds=np.array([0.1, 1.0, 10.0, np.inf]),
        loss=losses,
        diverged=losses > 1.9,
        norms=np.ones((3, 2, 5)),
    )
    settings = {"task": "rnn", "last": 5, "steps": 9, "seeds": 2}
    written = tune_report.contents(settings, heat, [], "clipjax tune", "a()", None)
    (tmp_path / "report.html").write_bytes(written["report.html"])
    opened = visit(tmp_path / "report.html")
    check(opened, figures=1)
    assert "Best cell" in opened.page.locator(".verdict").inner_text()


def test_a_wide_table_and_long_names_do_not_widen_the_page(visit, tmp_path):
    name = "clip_" * 30
    body = pages.verdict([name, name]) + pages.table(
        ["clip", *["a heading"] * 20], [[name, *["123.456 ± 0.001"] * 20]]
    )
    (tmp_path / "wide.html").write_bytes(pages.page("wide", f"<h1>{name}</h1>{body}"))
    check(visit(tmp_path / "wide.html"))
