"""Figures of diagnostics show what was measured."""

from types import SimpleNamespace

import numpy as np
import pytest
from figures import (
    CALM,
    FIGURES,
    LIMITS,
    LINE,
    LOSSES,
    RATES,
    RECORDED,
    SPREAD,
    entries,
    first_line,
    hatched,
    lines,
    mesh_of,
    x_values,
)
from matplotlib.colors import to_rgb

from clipjax import plotting
from clipjax.plotting.distribution import spread
from clipjax.plotting.heat import lightness


def test_distribution_is_the_fraction_above_each_threshold():
    norms = [4.0, 1.0, 2.0, 0.0, np.nan]
    figure = plotting.plot_norm_distribution({"a": norms})
    label = "a (1 not finite)"
    np.testing.assert_allclose(x_values(figure, label), [1, 1, 2, 4])
    np.testing.assert_allclose(lines(figure)[label], [75, 50, 25, 0])
    assert figure.axes[0].get_xscale() == "log"


def test_strategies_are_marked_on_the_distribution():
    figure = plotting.plot_norm_distribution([1.0, 2, 4, 9], SPREAD, recommended="q50")
    marks = [
        (line.get_marker(), line.get_xdata()[0], line.get_ydata()[0])
        for line in figure.axes[0].get_lines()
        if line.get_marker() in ("o", "*")
    ]
    assert marks == [("*", 2, 50), ("o", 9, 0)]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2"]
    assert entries(figure) == [
        "q50: 2 clips 50 % (recommended)",
        "maximum: 9 clips 0 %",
        "none: inf clips 0 %",
    ]
    table = SimpleNamespace(rows=SPREAD, recommended=SPREAD[1])
    again = plotting.plot_norm_distribution([1.0, 2, 4, 9], table)
    assert entries(again) == entries(figure)


def test_distribution_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match=r"norms\['a'\] has no finite positive norm"):
        plotting.plot_norm_distribution({"a": [0.0, np.nan]})
    with pytest.raises(TypeError, match="no strategy"):
        plotting.plot_norm_distribution([1.0], [(1.0, 2.0)])
    with pytest.raises(ValueError, match="recommended must be one of 'maximum', 'q50'"):
        plotting.plot_norm_distribution([1.0], SPREAD, recommended="q5")


def test_spread_keeps_order_and_distance():
    moved = spread(np.array([0.2, 0.21, 0.22, 0.97, 0.98]), 0.1)
    np.testing.assert_allclose(moved, [0.2, 0.3, 0.4, 0.9, 1.0])


def test_blocks_by_steps():
    figure = plotting.plot_block_norms(RECORDED)
    axes = figure.axes[0]
    expected = [[0.5, 8, np.nan], [0.2, np.nan, 0.1]]
    np.testing.assert_allclose(mesh_of(axes), expected)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["kernel", "bias"]
    assert axes.get_xlim() == (5, 35) and axes.yaxis_inverted()
    assert hatched(axes) == [(25, -0.5, 10, 1)]  # the infinite norm, not the NaN
    assert entries(figure) == ["not finite"]
    scale = axes.collections[0].norm
    assert (type(scale).__name__, scale.vmin, scale.vmax) == ("LogNorm", 0.1, 8)


def test_no_spike_is_lost_where_steps_share_a_cell():
    norms = np.ones((2, 10_000))
    norms[1, 7777], norms[0, 3] = 50.0, np.nan
    axes = plotting.plot_block_norms(norms).axes[0]
    assert mesh_of(axes).shape == (2, 400)
    assert mesh_of(axes)[1].max() == 50 and not np.isnan(mesh_of(axes)).any()
    assert axes.get_xlim() == (-0.5, 9999.5)


def test_arms_of_blocks_share_scale_and_time():
    figure = plotting.plot_block_norms({"a": CALM, "b": CALM[:, :20] * 100})
    first, second, _ = figure.axes
    assert first.collections[0].norm is second.collections[0].norm
    assert first.get_xlim() == second.get_xlim() == (-0.5, 49.5)
    assert [first.get_title(), second.get_title()] == ["a", "b"]


def test_blocks_must_have_the_same_ascending_steps():
    with pytest.raises(ValueError, match=r"norms\['a'\] has.*\(2,\).*\['b'\].*\(3,\)"):
        plotting.plot_block_norms({"a": [1.0, 2.0], "b": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="steps must ascend"):
        plotting.plot_block_norms(CALM[:, :2], steps=[1, 1])
    with pytest.raises(ValueError, match="must have shape"):
        plotting.plot_block_norms({"a": CALM, "b": CALM[0]})


def test_smoothness_has_points_and_the_fit():
    norms, smoothness = [1.0, 2.0, np.nan, 4.0], [3.0, 1.0, 9.0, np.inf]
    figure = plotting.plot_smoothness(norms, smoothness, LINE)
    np.testing.assert_allclose(x_values(figure, "probes"), [1, 2])
    np.testing.assert_allclose(lines(figure)["probes"], [3, 1])
    label = "L = 1 − 2 ‖g‖, R² = 0.25"
    np.testing.assert_allclose(x_values(figure, label), [0, 2])
    np.testing.assert_allclose(lines(figure)[label], [1, -3])
    arms = {"a": norms, "b": norms}
    two = plotting.plot_smoothness(arms, arms, dict.fromkeys(arms, LINE))
    assert entries(two) == ["a", f"a\n{label}", "b", f"b\n{label}"]
    with pytest.raises(TypeError, match=r"fit must have l0, l1 and r2; got float"):
        plotting.plot_smoothness(norms, smoothness, 1.0)
    with pytest.raises(ValueError, match=r"fit\['b'\] has no norms; norms has 'a'"):
        plotting.plot_smoothness({"a": norms}, {"a": smoothness}, {"b": LINE})


def test_phase_portrait_has_path_band_and_cycle():
    path = np.array([2.9, 2.0, 1.1, 0.2])
    figure = plotting.plot_phase_portrait(
        path, 3 * path, 1.5, cycles=[-0.45, 0.45], fixed_points=[0.0]
    )
    axes = figure.axes[0]
    np.testing.assert_allclose(x_values(figure, "path"), path)
    np.testing.assert_allclose(lines(figure)["path"], 3 * path)
    (band,) = axes.patches
    assert (band.get_y(), band.get_height()) == (-1.5, 3)
    assert "2-cycle, 0.9 apart" in entries(figure)
    upright = [
        line.get_xdata()[0]
        for line in axes.get_lines()
        if len(line.get_xdata()) == 2 and np.ptp(line.get_xdata()) == 0
    ]
    assert upright == [-0.45, 0.45]
    assert lines(figure)["fixed point"] == [0]
    two = [[1.0, 2.0], [1.5, 4.5]]
    again = plotting.plot_phase_portrait(path, path, 1.5, cycles=two)
    assert "2-cycle, 1 or 3 apart" in entries(again)
    with pytest.raises(ValueError, match=r"cycles must have shape.*got \(3,\)"):
        plotting.plot_phase_portrait(path, path, 1.5, cycles=[1.0, 2.0, 3.0])
    assert axes.get_yscale() == "linear"
    steep = plotting.plot_phase_portrait(path, 300 * path, 1.5)
    assert steep.axes[0].get_yscale() == "symlog"


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.inf, np.nan, [1.0]])
def test_phase_portrait_needs_a_positive_threshold(threshold):
    with pytest.raises(ValueError, match="threshold must be finite and positive"):
        plotting.plot_phase_portrait([1.0], [1.0], threshold)


def test_sweep_is_sorted_and_marks_the_best_and_the_diverged():
    flags = np.zeros(LOSSES.shape, bool)
    flags[2, 0] = True  # would be the best
    figure = plotting.plot_sweep(LOSSES, RATES, LIMITS, diverged=flags)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "0.01",
        "0.1",
        "1",
    ]
    columns = [label.get_text() for label in axes.get_xticklabels()]
    assert columns == ["0.5", "1", "5", "25", "no\nclip"]
    np.testing.assert_allclose(axes.get_xticks(), [0, 1, 2, 3, 4.25])
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown[0, 2] == "0.1 ★" and shown[1, 2] == "2" and shown[4.25, 0] == "2"
    assert len(shown) == LOSSES.size - 4
    bad = [(x, y) for x, y, *_ in hatched(axes)]
    assert sorted(bad) == [(-0.5, -0.5), (1.5, 1.5), (2.5, 1.5), (3.75, 1.5)]
    (frame,) = (patch for patch in axes.patches if not patch.get_hatch())
    assert frame.get_xy() == (-0.5, 1.5)
    assert entries(figure) == ["diverged", "best: learning rate 1, threshold 0.5"]
    assert "best: learning rate 0.01, no clip" in entries(
        plotting.plot_sweep([[2.0, 1.0]], [0.01], [1.0, None])
    )


def test_sweep_without_room_for_numbers_has_a_scale_and_a_star():
    figure = FIGURES["wide sweep"]()
    assert [text.get_text() for text in figure.axes[0].texts] == ["★"]
    assert len(figure.axes) == 2


def test_sweep_that_diverged_has_no_best_cell():
    figure = plotting.plot_sweep([[np.nan]], [1.0], [1.0])
    assert entries(figure) == ["diverged"]


def test_numbers_can_be_read_on_their_cells():
    axes = FIGURES["sweep"]().axes[0]
    colors = {
        (place, row): color
        for place, mesh in zip(axes.get_xticks(), axes.collections, strict=True)
        for row, color in enumerate(mesh.to_rgba(mesh.get_array()[:, 0]))
    }
    assert len(axes.texts) > 9
    for text in axes.texts:
        below = lightness(colors[text.get_position()])
        assert abs(below - lightness(to_rgb(text.get_color()))) > 0.4


def test_sweep_names_the_argument_of_another_shape():
    with pytest.raises(ValueError, match=r"values must have shape.*\(3, 5\), got \(5"):
        plotting.plot_sweep(LOSSES.T, RATES, LIMITS)
    with pytest.raises(ValueError, match=r"diverged must have shape.*got \(2,\)"):
        plotting.plot_sweep(LOSSES, RATES, LIMITS, diverged=[True, False])
    with pytest.raises(ValueError, match="learning_rates must be one-dimensional"):
        plotting.plot_sweep(LOSSES, 1.0, LIMITS)


def test_jacobian_norms_count_factors_from_one():
    figure = plotting.plot_jacobian_norms({"a": [2.0, 4.0]}, factor="layer")
    np.testing.assert_array_equal(x_values(figure, "a"), [1, 2])
    axes = figure.axes[0]
    assert axes.get_yscale() == "log" and axes.get_xlabel() == "layer"
    assert any(np.all(np.asarray(line.get_ydata()) == 1) for line in axes.get_lines())
    given = plotting.plot_jacobian_norms([2.0, 4.0], steps=[0, 1])
    np.testing.assert_array_equal(first_line(given)[0], [0, 1])


def test_adam_has_a_panel_for_each_quantity():
    figure = plotting.plot_adam_steps(
        {"clip": [3.0, 2.0], "none": [3.0, 1.0]},
        {"clip": [1.0, 2.0], "none": [1.0, 9.0]},
        spike=1,
    )
    np.testing.assert_allclose(lines(figure, 0)["none"], [3, 1])
    np.testing.assert_allclose(lines(figure, 1)["none"], [1, 9])
    for panel in (0, 1):
        assert x_values(figure, "spike", panel).tolist() == [1, 1]
    assert entries(figure) == ["clip", "none", "spike"]
    assert len(plotting.plot_adam_steps([1.0]).axes) == 1
