"""Figures show the data they are given, also where it is not finite."""

import importlib
import itertools
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from clipjax import plotting
from clipjax.plotting.canvas import short_number, style_of
from clipjax.plotting.distribution import spread
from clipjax.plotting.heat import lightness

DOCS = pathlib.Path(__file__).parent.parent / "docs"
STEPS = np.arange(50)
CALM = np.stack([4 * np.exp(-STEPS / 30), 5 * np.exp(-STEPS / 30)])
WILD = np.stack([4 * np.exp(STEPS / 5), 5 * np.exp(STEPS / 5)])
WILD[0, 30:] = np.nan
WILD[1, 40:] = np.inf


class History:
    """As `clipjax.monitoring` records it."""

    def __init__(self, **columns):
        self.columns = {
            name.replace("__", "/"): np.asarray(column)
            for name, column in columns.items()
        }

    def to_numpy(self):
        return self.columns


RECORDED = History(
    step=[10, 20, 30],
    loss=[3.0, 2.0, 1.0],
    clip__grad_norm_raw=[1.0, 8.0, np.inf],
    clip__grad_norm_clipped=[1.0, 2.0, 2.0],
    clip__clip_ratio=[1.0, 0.25, 0.0],
    clip__threshold=[2.0, 2.0, 2.0],
    clip__grad_norm_raw__kernel=[0.5, 8.0, np.inf],
    clip__grad_norm_raw__bias=[0.2, np.nan, 0.1],
)


def lines(figure, axes=0):
    """What is drawn, by the name in the legend."""
    return {
        str(line.get_label()): np.asarray(line.get_ydata(), np.float64)
        for line in figure.axes[axes].get_lines()
    }


def x_values(figure, label, axes=0):
    (line,) = (
        line for line in figure.axes[axes].get_lines() if line.get_label() == label
    )
    return np.asarray(line.get_xdata(), np.float64)


def first_line(figure):
    return np.array(figure.axes[0].get_lines()[0].get_data(), np.float64)


def crosses(figure):
    return [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in figure.axes[0].get_lines()
        if line.get_marker() == "x"
    ]


def entries(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def hatched(axes):
    """The corners and sizes of hatched patches."""
    return [
        (*patch.get_xy(), patch.get_width(), patch.get_height())
        for patch in axes.patches
        if isinstance(patch, Rectangle) and patch.get_hatch()
    ]


# ---------------------------------------------------------------- loss, norms, ratios


def test_loss_is_the_median_over_seeds_on_a_log_axis():
    figure = plotting.plot_loss({"a": CALM, "b": CALM[0]}, unit="bits")
    assert isinstance(figure, Figure)
    drawn = lines(figure)
    np.testing.assert_allclose(drawn["a"], np.median(CALM, axis=0))
    np.testing.assert_allclose(drawn["b"], CALM[0])
    colors = [line.get_color() for line in figure.axes[0].get_lines()]
    assert len(set(map(str, colors))) == 2
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
    titles = [axes.get_title() for axes in figure.axes]
    assert [title.partition(":")[0] for title in titles] == list(raw)
    assert "threshold" in lines(figure, 0)
    assert not any("threshold" in label for label in lines(figure, 1))
    after = lines(figure, 2)["after clipping"]
    np.testing.assert_allclose(after, np.median(clipped["c"], axis=0))


@pytest.mark.parametrize("given", ["clipped", "thresholds"])
def test_clipped_steps_are_marked_and_counted(given):
    norms = np.array([1.0, 5.0, 2.0, 9.0, 2.0, 1.0, 1.0, 1.0])
    companions = {"clipped": np.minimum(norms, 3.0), "thresholds": 3.0}
    figure = plotting.plot_norms(norms, **{given: companions[given]})
    np.testing.assert_array_equal(x_values(figure, "clipped step"), [1, 3])
    assert figure.axes[0].get_title().endswith("25 % of steps clipped")


def test_rounding_is_no_clip_and_without_a_clip_nothing_is_marked():
    norms = np.full(4, 3.0)
    figure = plotting.plot_norms(norms, np.nextafter(norms, 0, dtype=np.float32))
    assert "clipped step" not in lines(figure)
    assert "clipped" not in plotting.plot_norms(norms).axes[0].get_title()


def test_a_norm_that_is_not_finite_for_one_step_is_marked():
    figure = plotting.plot_norms([1.0, np.inf, 2.0, np.nan, 1.0, np.nan])
    np.testing.assert_array_equal(x_values(figure, "norm not finite"), [1, 3])


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


def test_running_mean():
    mean = plotting.running_mean(np.array([1.0, 3.0, 5.0, np.nan, 7.0, 9.0]), 2)
    np.testing.assert_allclose(mean, [1, 2, 4, np.nan, np.nan, 8])
    np.testing.assert_allclose(plotting.running_mean(np.arange(4.0), 99)[-1], 1.5)


# ---------------------------------------------------------------- what is accepted


def test_a_bare_array_has_no_legend():
    figure = plotting.plot_loss(jnp.asarray(CALM[0], jnp.bfloat16))
    np.testing.assert_allclose(first_line(figure)[1], CALM[0], rtol=1e-2)
    assert not figure.legends


def test_a_history_brings_its_columns_and_steps():
    figure = plotting.plot_norms(RECORDED)
    drawn = lines(figure)
    np.testing.assert_allclose(drawn["before clipping"], [1, 8, np.nan])
    np.testing.assert_allclose(drawn["after clipping"], [1, 2, 2])
    np.testing.assert_allclose(drawn["threshold"], [2, 2, 2])
    np.testing.assert_array_equal(x_values(figure, "before clipping"), [10, 20, 30])
    for plot, expected in {
        plotting.plot_loss: [3, 2, 1],
        plotting.plot_clip_ratio: [1, 0.25, 0],
        plotting.plot_threshold: [2, 2, 2],
    }.items():
        figure = plot({"mine": RECORDED, "other": [1.0, 1.0]})
        np.testing.assert_allclose(lines(figure)["mine"], expected)
        np.testing.assert_array_equal(x_values(figure, "mine"), [10, 20, 30])
        np.testing.assert_array_equal(x_values(figure, "other"), [0, 1])


def test_batched_history_has_seeds_last():
    both = History(step=[1, 2, 3], loss=np.array([[1.0, 3], [2, 4], [3, 5]]))
    np.testing.assert_allclose(first_line(plotting.plot_loss(both))[1], [2, 3, 4])


NAN = np.nan


@pytest.mark.parametrize(
    ("loss", "kept"),
    [
        ([3, NAN, 2, NAN, 1, NAN], [0, 2, 4]),  # every second record has a loss
        ([3, 2, NAN, 1, NAN], [0, 1, 3]),
        ([3, 2, 1, NAN], [0, 1, 2, 3]),  # the run diverged
        ([3, NAN, 2, NAN, NAN], [0, 2, 3, 4]),
        ([NAN, NAN], [0, 1]),
    ],
)
def test_records_without_a_column_are_left_out(loss, kept):
    steps = 10 * np.arange(len(loss))
    figure = plotting.plot_loss(History(step=steps, loss=loss))
    np.testing.assert_array_equal(first_line(figure)[0], steps[kept])
    np.testing.assert_array_equal(first_line(figure)[1], np.array(loss)[kept])


def test_companions_of_a_sparse_history_follow_its_norms():
    sparse = History(
        step=[0, 1, 2, 3],
        clip__grad_norm_raw=[NAN, 4.0, NAN, 6.0],
        clip__grad_norm_clipped=[NAN, 2.0, NAN, 6.0],
        clip__grad_norm_raw__kernel=[NAN, 4.0, NAN, 6.0],
    )
    figure = plotting.plot_norms(sparse)
    np.testing.assert_allclose(lines(figure)["after clipping"], [2, 6])
    assert x_values(figure, "clipped step").tolist() == [1]
    blocks = plotting.plot_block_norms(sparse).axes[0]
    np.testing.assert_allclose(mesh_of(blocks), [[4, 6]])


def test_blocks_of_two_clips_keep_the_name_of_their_clip():
    two = History(clip__grad_norm_raw__w=[1.0], clip_2__grad_norm_raw__w=[2.0])
    axes = plotting.plot_block_norms(two).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["clip/w", "clip_2/w"]


def test_steps_are_the_x_values_of_all_arms_or_of_each():
    arms = {"a": [1.0, 2.0], "b": [1.0, 2.0, 3.0]}
    figure = plotting.plot_loss(arms, steps={"a": [5, 9], "b": [0, 7, 8]})
    np.testing.assert_array_equal(x_values(figure, "a"), [5, 9])
    np.testing.assert_array_equal(x_values(figure, "b"), [0, 7, 8])
    figure = plotting.plot_loss([1.0, 2.0], steps=[100, 200])
    np.testing.assert_array_equal(first_line(figure)[0], [100, 200])
    with pytest.raises(ValueError, match=r"steps has shape \(2,\).*\['b'\] has 3 st"):
        plotting.plot_loss(arms, steps=[0, 1])
    with pytest.raises(ValueError, match=r"losses\['b'\] is given, but not steps"):
        plotting.plot_loss(arms, steps={"a": [0, 1]})


SPREAD = [
    SimpleNamespace(strategy="maximum", threshold=9.0, clipped_fraction=0.0),
    SimpleNamespace(strategy="q50", threshold=2.0, clipped_fraction=0.5),
    SimpleNamespace(strategy="none", threshold=np.inf, clipped_fraction=0.0),
]
CLOSE = [
    SimpleNamespace(strategy=f"mean + {k} σ", threshold=9 + k, clipped_fraction=0.01)
    for k in np.arange(0, 1, 0.1)
]
LINE = SimpleNamespace(l0=1.0, l1=-2.0, r2=0.25)
SIGMOID = 3 / (1 + np.exp(-STEPS / 5.0))
LONG = "encoder/layers_0/attention/query_with_a_long_name/kernel"
RATES, LIMITS = [1.0, 0.1, 0.01], [0.5, 1.0, 5.0, None, 25.0]
LOSSES = np.array([[0.1, 2.0, 3.0, 4.0, 0.5]] * 3) * [[1.0], [2.0], [0.5]]
LOSSES[0, 2:] = np.nan
LONG_ARMS = {"clip_by_global_norm(1.0)": CALM, "adaptive_grad_clip(0.01)": WILD}

FIGURES = {
    "loss": lambda **to: plotting.plot_loss(LONG_ARMS, window=7, **to),
    "norms": lambda **to: plotting.plot_norms(CALM, CALM / 2, 2.0, **to),
    "ratio": lambda **to: plotting.plot_clip_ratio(LONG_ARMS, **to),
    "threshold": lambda **to: plotting.plot_threshold(
        LONG_ARMS | {"none": np.full(9, np.inf)}, **to
    ),
    "distribution": lambda **to: plotting.plot_norm_distribution(
        CALM, [*SPREAD, *CLOSE], recommended="q50", **to
    ),
    "blocks": lambda **to: plotting.plot_block_norms(
        {f"{LONG}_{number}": WILD[1] for number in range(30)}, **to
    ),
    "smoothness": lambda **to: plotting.plot_smoothness(
        LONG_ARMS,
        LONG_ARMS,
        dict.fromkeys(LONG_ARMS, LINE),
        **to,
    ),
    "phase": lambda **to: plotting.plot_phase_portrait(
        CALM[0], SIGMOID * 1e3, 1.5, cycles=[1.0, 2.0], fixed_points=[1.5], **to
    ),
    "sweep": lambda **to: plotting.plot_sweep(LOSSES, RATES, LIMITS, **to),
    "wide sweep": lambda **to: plotting.plot_sweep(
        np.outer(CALM[0, :12], CALM[0, :15]), CALM[0, :12], CALM[0, :15], **to
    ),
    "scatter": lambda **to: plotting.plot_scatter(
        {LONG: np.stack([CALM, WILD], axis=-1), "lost": np.full((9, 2), np.nan)},
        outlines=CALM.T,
        x_label="x",
        y_label="y",
        title="Points",
        **to,
    ),
    "jacobian": lambda **to: plotting.plot_jacobian_norms(LONG_ARMS, **to),
    "adam": lambda **to: plotting.plot_adam_steps(LONG_ARMS, spike=9, **to),
    "adam and moment": lambda **to: plotting.plot_adam_steps(CALM, CALM**2, **to),
    "norms of four": lambda **to: plotting.plot_norms(
        {f"arm {number}": CALM * 10**number for number in range(4)}, **to
    ),
    "blocks of two": lambda **to: plotting.plot_block_norms(
        {"a": CALM, "b": WILD[:, :40]}, **to
    ),
}
PANELS = {"scatter": 2, "adam and moment": 2, "norms of four": 4, "blocks of two": 2}


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


# ---------------------------------------------------------------- one per diagnostic


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


def mesh_of(axes):
    return np.ma.filled(axes.collections[0].get_array(), np.nan)


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


# ---------------------------------------------------------------- who can read it


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


# ---------------------------------------------------------------- imports


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
