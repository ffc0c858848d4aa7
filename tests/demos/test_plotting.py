"""Figures show the data they are given, also where it is not finite."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from clipjax import plotting

STEPS = np.arange(50)
CALM = np.stack([4 * np.exp(-STEPS / 30), 5 * np.exp(-STEPS / 30)])
WILD = np.stack([4 * np.exp(STEPS / 5), 5 * np.exp(STEPS / 5)])
WILD[0, 30:] = np.nan
WILD[1, 40:] = np.inf


def lines(figure, axes=0):
    """What is drawn, by the name in the legend."""
    return {
        str(line.get_label()): np.asarray(line.get_ydata(), np.float64)
        for line in figure.axes[axes].get_lines()
    }


def crosses(figure):
    return [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in figure.axes[0].get_lines()
        if line.get_marker() == "x"
    ]


def test_loss_is_the_median_over_seeds_on_a_log_axis():
    figure = plotting.plot_loss({"a": CALM, "b": CALM[0]}, unit="bits")
    assert isinstance(figure, Figure)
    drawn = lines(figure)
    np.testing.assert_allclose(drawn["a"], np.median(CALM, axis=0))
    np.testing.assert_allclose(drawn["b"], CALM[0])
    colours = [line.get_color() for line in figure.axes[0].get_lines()]
    assert len(set(map(str, colours))) == 2
    assert figure.axes[0].get_yscale() == "log"
    assert "bits" in figure.axes[0].get_ylabel()
    assert len(figure.axes[0].collections) == 1  # a band for "a" only
    assert not crosses(figure)


def test_the_end_of_the_finite_part_is_marked():
    figure = plotting.plot_loss({"wild": WILD})
    assert crosses(figure) == [(29, WILD[0, 29]), (39, WILD[1, 39])]
    line = lines(figure)["wild (2 of 2 seeds not finite)"]
    assert np.isnan(line[40:]).all()
    assert np.isfinite(line[:40]).all()


def test_norms_have_one_panel_per_arm():
    raw = {"a": CALM, "b": WILD, "c": CALM, "d": CALM}
    limit = {name: np.full((2, 50), 1.0) for name in raw} | {"b": np.full(50, np.inf)}
    clipped = {name: np.minimum(values, 1) for name, values in raw.items()}
    figure = plotting.plot_norms(raw, clipped, limit)
    assert [axes.get_title() for axes in figure.axes] == list(raw)
    assert "threshold" in lines(figure, 0)
    assert not any("threshold" in label for label in lines(figure, 1))
    after = lines(figure, 2)["after clipping"]
    np.testing.assert_allclose(after, np.median(clipped["c"], axis=0))


def test_ratio_axis_reaches_zero_and_one():
    figure = plotting.plot_clip_ratio({"a": np.full(50, 0.7)})
    low, high = figure.axes[0].get_ylim()
    assert low == 0 and 1 < high < 1.2
    taller = plotting.plot_clip_ratio({"a": np.full(50, 3.0)})
    assert taller.axes[0].get_ylim()[1] > 3


def test_threshold_without_limit_is_named():
    figure = plotting.plot_threshold({"a": np.full(50, np.inf), "b": np.ones(50)})
    drawn = lines(figure)
    assert "no limit: a" in drawn and "b" in drawn and "a" not in drawn
    assert plotting.plot_threshold({"a": np.full(50, np.inf)}).axes


@pytest.mark.parametrize("values", [np.full(50, np.nan), np.zeros(50), np.ones(1)])
def test_nothing_to_draw_is_no_error(values, tmp_path):
    for plot in (plotting.plot_loss, plotting.plot_clip_ratio, plotting.plot_threshold):
        plot({"a": values}).savefig(tmp_path / "figure.png")
    plotting.plot_norms({"a": values}, {"a": values}).savefig(tmp_path / "figure.png")


@pytest.mark.parametrize("shape", [(0,), (2, 0), (2, 3, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        plotting.plot_loss({"a": np.zeros(shape)})


def test_running_mean():
    mean = plotting.running_mean(np.array([1.0, 3.0, 5.0, np.nan, 7.0, 9.0]), 2)
    np.testing.assert_allclose(mean, [1, 2, 4, np.nan, np.nan, 8])
    np.testing.assert_allclose(plotting.running_mean(np.arange(4.0), 99)[-1], 1.5)


def test_pyplot_is_not_involved():
    assert "clipjax" not in repr(sys.modules.get("matplotlib.pyplot"))
    import subprocess

    code = (
        "import sys, numpy as np\nfrom clipjax import plotting\n"
        "plotting.plot_loss({'a': np.ones(3)})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
