"""Figures of training show the data they are given, also where it is not finite."""

import jax.numpy as jnp
import numpy as np
import pytest
from figures import (
    CALM,
    RECORDED,
    WILD,
    History,
    crosses,
    first_line,
    lines,
    mesh_of,
    x_values,
)
from matplotlib.figure import Figure

from clipjax import plotting


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
