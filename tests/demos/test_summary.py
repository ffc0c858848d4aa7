"""What the numbers of the table mean, on losses made by hand."""

import numpy as np
import pytest
from arms_by_hand import STEPS, falling, result

from clipjax.demos import summary
from clipjax.demos.tasks.base import LOSS, Goal


def test_diverged_by_its_two_criteria():
    rising_back = falling()
    rising_back[-2:] = 5.001
    just_below = falling()
    just_below[-2:] = 4.999
    hole = falling()
    hole[10] = np.nan
    overflow = falling()
    overflow[3] = np.inf
    losses = np.stack([falling(), rising_back, just_below, hole, overflow])
    np.testing.assert_array_equal(
        summary.diverged(losses), [False, True, False, True, True]
    )


def test_a_loss_of_rare_examples_need_not_fall():
    rising = np.stack([falling(1, 5)])
    assert summary.summarise(result("clip", rising)).diverged.all()
    goal = Goal(must_fall=False)
    assert not summary.summarise(result("clip", rising), goal).diverged.any()
    rising[0, 3] = np.nan
    assert summary.summarise(result("clip", rising), goal).diverged.all()


def test_row_of_a_finite_run():
    losses = np.stack([falling(5, 1), falling(5, 2)])
    losses[:, 20:22] = 0.25
    row = summary.summarise(result("clip", losses, clipped=0.5))
    np.testing.assert_allclose(row.final, losses[:, -2:].mean(axis=1))
    np.testing.assert_allclose(row.best, 0.25)
    np.testing.assert_allclose(row.clipped, 1)
    np.testing.assert_allclose(row.norm, 2)
    np.testing.assert_allclose(row.ratio, 0.5)


def test_a_finite_end_is_reported_after_a_hole():
    losses = falling()[None].copy()
    losses[0, 5] = np.inf
    row = summary.summarise(result("clip", losses))
    assert row.final[0] == pytest.approx(losses[0, -2:].mean())
    assert np.isfinite(row.best[0])


def test_spread():
    assert summary.spread(np.array([1.0, 3.0]), 3) == "2.000 ± 1.414"
    assert summary.spread(np.array([2.0]), 1, " ms") == "2.0 ms"
    assert summary.spread(np.array([1.0, np.nan, np.inf]), 3) == "not finite (2 of 3)"
    assert summary.spread(np.array([123.4])) == "123"
    assert summary.spread(np.array([0.04567])) == "0.0457"
    assert summary.spread(np.array([1.5e9, 1.5e9])) == "1.50e+09 ± 0.00e+00"


def rows(*results):
    return [summary.summarise(each) for each in results]


def test_table_has_a_cell_for_each_heading():
    header, cells = summary.table(rows(result("none", [falling()], clipped=1.0)))
    assert len(cells) == 1 and len(cells[0]) == len(header)
    assert dict(zip(header, cells[0], strict=True))["diverged"] == "0 of 1"


def said_of(*results, rates=(0.1,), goal=LOSS):
    found = [summary.summarise(each, goal) for each in results]
    return " ".join(summary.findings(summary.at_best_rate(found), rates))


def test_findings_say_what_happened_and_no_more():
    good = [falling(5, 1), falling(5, 1.5)]
    near = [falling(5, 1.1), falling(5, 1.6)]
    free = result("none", good, clipped=1.0)
    said = said_of(
        result("none", [falling(5, 9)] * 2, clipped=1.0),
        result("a", good, clipped=1.0),
        result("b", near, clipped=0.2),
    )
    assert "'a' never acted" in said
    assert "'b' clipped practically every gradient, to 20 % of its norm" in said
    assert "without help" not in said and "not settled by 2 seeds" in said
    assert "stable without help from a clip" in said_of(free, result("a", good))
    assert "whether one was needed is not seen" in said_of(result("a", good))
    assert "share one learning rate" not in said_of(free)  # there is no other arm


def test_findings_of_a_clip_on_single_examples():
    losses = [falling()]
    few = result("per_example@clip", losses, clipped=0.4)
    few.log["clipped_fraction"] *= 0.1
    idle = result("per_example@other", losses, clipped=1.0)
    free = result("per_example@none", losses, clipped=1.0)
    said = " ".join(summary.findings(rows(few, idle, free)))
    assert "shrank" not in said  # a tenth of the examples is not every gradient
    assert "'per_example@other' never acted: its threshold" in said
    assert "'per_example@none' never acted" not in said


def test_each_clip_at_its_own_best_rate():
    good, better = falling(5, 2), falling(5, 1)
    low = np.where(np.arange(STEPS) == 3, np.inf, falling(5, 0.1))
    found = rows(
        result("none", [good, good], rate=0.1),
        result("none", [low, better], rate=1.0),  # lower, but one seed diverged
        result("a", [good, good], rate=0.1),
        result("a", [better, better], rate=1.0),
        result("b", [low, low], rate=0.1),
        result("b", [low, low], rate=1.0),
    )
    best = summary.at_best_rate(found)
    assert [(row.label, row.learning_rate) for row in best] == [
        ("none", 0.1),
        ("a", 1.0),
        ("b", 0.1),
    ]
    header, cells = summary.table(found)
    assert header[1] == "rate" and [row[1] for row in cells] == ["0.1", "1"] * 3
    said = " ".join(summary.findings(best, (0.1, 0.3, 1.0)))
    assert "'a' is best at 1, the last one tried: try a higher one." in said
    assert "'none' is best at 0.1, the last one tried: try a lower one." in said
    assert "share one learning rate" not in said and "flatters" in said
    said = " ".join(summary.findings(best[1:2], (0.1, 1.0, 3.0)))
    assert "'a' is best at 1." in said
