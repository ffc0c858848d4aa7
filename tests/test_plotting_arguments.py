"""What all figures accept, and what they refuse."""

import numpy as np
import pytest
from figures import CALM, FIGURES, LINE, PANELS, RECORDED, STEPS, History
from matplotlib.figure import Figure

from clipjax import plotting


@pytest.mark.parametrize("name", FIGURES)
def test_given_axes_are_drawn_into(name):
    theirs = Figure(figsize=(6, 4))
    panels = theirs.subplots(PANELS.get(name, 1), squeeze=False)
    spare = theirs.add_axes((0.9, 0.9, 0.1, 0.1))
    axes = panels if name in PANELS else panels[0, 0]
    assert FIGURES[name](axes=axes) is theirs
    for panel in panels.ravel():
        assert panel.has_data()
    assert not spare.has_data() and theirs.get_size_inches().tolist() == [6, 4]
    with pytest.raises(ValueError, match=r"axes must have \d panels, got 9"):
        FIGURES[name](axes=[spare] * 9)
    with pytest.raises(TypeError, match="axes must be matplotlib Axes.*got str"):
        FIGURES[name](axes=["me"])


def test_points_outside_of_the_outlines_are_counted():
    outlines = [[0.0, 0.0], [1.0, 2.0], [np.nan, np.nan]]
    seeds = [[[0.5, 1.0], [0.2, 3.0]], [[np.nan, 0.0], [1.0, 2.0]]]
    (panel,) = plotting.plot_scatter(seeds, outlines=outlines).axes
    drawn = [np.stack(line.get_data(), 1).tolist() for line in panel.get_lines()[1:]]
    assert drawn == [[[0.5, 1.0]], [[1.0, 2.0]]]
    assert panel.get_title() == "50 % of the points lie outside"
    np.testing.assert_allclose(panel.get_ylim(), [-0.3, 2.3])
    (panel,) = plotting.plot_scatter(seeds[0]).axes
    assert not panel.get_title() and panel.get_ylim()[1] > 3
    with pytest.raises(
        ValueError, match=r"points\['a'\] must have shape \(points, 2\)"
    ):
        plotting.plot_scatter({"a": np.zeros((3, 3))})
    with pytest.raises(TypeError, match="points must be an array of real numbers"):
        plotting.plot_scatter("points")


def test_axes_of_a_subfigure_return_the_whole_figure():
    whole = Figure()
    part = whole.subfigures(1, 2)[1]
    assert plotting.plot_loss(CALM, axes=part.subplots()) is whole


@pytest.mark.parametrize("values", [np.full(50, np.nan), np.zeros(50), np.ones(1)])
def test_nothing_to_draw_is_no_error(values):
    thresholds = np.arange(len(values)) + 1.0
    for plot in (
        lambda **to: plotting.plot_loss({"a": values}, **to),
        lambda **to: plotting.plot_clip_ratio(values, **to),
        lambda **to: plotting.plot_threshold({"a": values}, **to),
        lambda **to: plotting.plot_norms(values, values, **to),
        lambda **to: plotting.plot_block_norms({"a": values}, **to),
        lambda **to: plotting.plot_smoothness(values, values, LINE, **to),
        lambda **to: plotting.plot_phase_portrait(values, values, 1.0, **to),
        lambda **to: plotting.plot_sweep([values], [1.0], thresholds, **to),
        lambda **to: plotting.plot_jacobian_norms(values, **to),
        lambda **to: plotting.plot_adam_steps(values, **to),
    ):
        plain = Figure()  # without a layout, which takes most of the time
        plot(axes=plain.subplots()).draw_without_rendering()


@pytest.mark.parametrize("shape", [(0,), (2, 0), (2, 3, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"losses\['a'\] must have shape"):
        plotting.plot_loss({"a": np.zeros(shape)})
    with pytest.raises(ValueError, match="norms must have shape"):
        plotting.plot_block_norms(np.zeros(shape))


@pytest.mark.parametrize("bad", ["text", [1j], object(), [[1.0], [1.0, 2.0]], None])
def test_what_is_no_array_is_refused(bad):
    for plot, name in {
        plotting.plot_loss: "losses",
        plotting.plot_norm_distribution: "norms",
        plotting.plot_block_norms: "norms",
    }.items():
        with pytest.raises(TypeError, match=rf"^{name}\['a'\] must be an array of"):
            plot({"a": bad})


def test_companions_must_fit():
    with pytest.raises(ValueError, match=r"raw\['b'\] is given, but not clipped"):
        plotting.plot_norms({"a": CALM, "b": CALM}, {"a": CALM})
    with pytest.raises(ValueError, match=r"clipped\['c'\] is given, but not raw"):
        plotting.plot_norms({"a": CALM}, {"a": CALM, "c": CALM})
    wrong = r"clipped\['a'\] has shape \(50,\), and raw has shape \(2, 50\)"
    with pytest.raises(ValueError, match=wrong):
        plotting.plot_norms({"a": CALM}, {"a": CALM[0]})
    with pytest.raises(ValueError, match=r"second_moments has shape \(3,\)"):
        plotting.plot_adam_steps(STEPS, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="losses has no arms"):
        plotting.plot_loss({})


def test_a_column_must_be_there_once():
    with pytest.raises(ValueError, match="has no column 'threshold'; it has loss, ste"):
        plotting.plot_threshold({"a": History(loss=[1.0], step=[0])})
    two = History(clip__threshold=[1.0], clip_2__threshold=[2.0])
    with pytest.raises(ValueError, match="has 'clip/threshold', 'clip_2/threshold'"):
        plotting.plot_threshold(two)
    with pytest.raises(ValueError, match="no columns 'clip_ratio/<block>'"):
        plotting.plot_block_norms(RECORDED, column="clip_ratio")
