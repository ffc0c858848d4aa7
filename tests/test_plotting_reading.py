"""Figures can be read, and importing them has no side effects."""

import importlib
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
from figures import DOCS, FIGURES, PANELS
from matplotlib.colors import to_rgb

from clipjax import plotting
from clipjax.plotting.canvas import short_number, style_of
from clipjax.plotting.heat import lightness


def shown_texts(figure):
    """Every text that is drawn."""
    for axes in figure.axes:
        for axis, (low, high) in (
            (axes.xaxis, sorted(axes.get_xlim())),
            (axes.yaxis, sorted(axes.get_ylim())),
        ):
            slack = 1e-9 * (high - low)
            for tick in axis.get_major_ticks():
                if low - slack <= tick.get_loc() <= high + slack:
                    yield from (tick.label1, tick.label2)
            yield from (axis.label, axis.get_offset_text())
        yield from (axes.title, *axes.texts)
    yield from figure.texts
    for legend in figure.legends:
        yield from legend.get_texts()


@pytest.mark.parametrize("name", FIGURES)
def test_figures_can_be_read_on_a_phone(name):
    """Shown 360 pixels wide: text of 10 pixels, all of it inside, none on another.

    Panels are below each other.
    """
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    per_point = figure.dpi / 72 * 360 / figure.bbox.width
    texts = [
        text for text in shown_texts(figure) if text.get_visible() and text.get_text()
    ]
    assert len(texts) > 8
    boxes = {text: text.get_window_extent() for text in texts}
    for text, box in boxes.items():
        assert text.get_fontsize() * per_point >= 10 - 1e-9, text
        assert 0 <= box.x0 and box.x1 <= figure.bbox.width, text
        assert 0 <= box.y0 and box.y1 <= figure.bbox.height, text
    for one, other in itertools.combinations(texts, 2):
        overlap = [
            min(getattr(boxes[one], f"{side}1"), getattr(boxes[other], f"{side}1"))
            - max(getattr(boxes[one], f"{side}0"), getattr(boxes[other], f"{side}0"))
            for side in "xy"
        ]
        assert min(overlap) < 1, (one, other)
    places = [axes.get_position() for axes in figure.axes[: PANELS.get(name, 1)]]
    for above, below in itertools.pairwise(places):
        assert above.y0 > below.y1 and above.x0 == pytest.approx(below.x0)


def test_arms_differ_in_grey():
    """Dashes or lightness tell the first seven arms apart; color is not needed."""
    for one, other in itertools.combinations(map(style_of, range(7)), 2):
        levels = lightness(to_rgb(one.color)) - lightness(to_rgb(other.color))
        assert one.dash != other.dash or abs(levels) > 0.15


def test_cells_become_lighter_with_their_value():
    mesh = (
        plotting.plot_block_norms(np.geomspace(1, 99, 50)[None]).axes[0].collections[0]
    )
    levels = [lightness(color) for color in mesh.to_rgba(np.geomspace(1, 99, 50))]
    assert (np.diff(levels) > 0).all() and levels[-1] - levels[0] > 0.6


def test_lightness_is_that_of_cie():
    for color, expected in {
        "#ffffff": 1.0,
        "#777777": 0.5003,
        "#ff0000": 0.5324,
    }.items():
        assert lightness(to_rgb(color)) == pytest.approx(expected, abs=1e-4)
    assert lightness((0, 0, 0)) == 0


def test_the_page_shows_each_figure():
    page = (DOCS / "figures.md").read_text(encoding="utf-8")
    images = re.findall(r"\]\((figures/.*?)\)", page)
    assert len(images) == 11
    assert all((DOCS / image).stat().st_size < 50_000 for image in images)
    missing = [
        name for name in dir(plotting) if name.startswith("plot_") and name not in page
    ]
    assert not missing


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.00041, "4.1e-4"),
        (0.0123, "0.012"),
        (12.3, "12"),
        (99.9, "100"),
        (1234.5, "1234"),
        (1e4, "1e4"),
        (-0.5, "-0.5"),
    ],
)
def test_short_numbers(value, text):
    assert short_number(value) == text


def test_pyplot_is_not_involved():
    code = (
        "import sys, numpy as np\nfrom clipjax import plotting\n"
        "plotting.plot_loss({'a': np.ones(3)})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_matplotlib_is_one_line_that_names_the_extra(monkeypatch):
    for name in list(sys.modules):
        if name.startswith(("clipjax.plotting", "matplotlib")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module("clipjax.plotting")
    expected = "clipjax.plotting needs matplotlib: pip install 'clipjax[plot]'"
    assert str(caught.value) == expected and caught.value.name == "matplotlib"
