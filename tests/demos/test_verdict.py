"""The first lines of a report, on losses made by hand."""

import dataclasses

import numpy as np
import pytest
from arms_by_hand import falling, result

from clipjax.demos import summary
from clipjax.demos.tasks.base import LOSS, Goal
from clipjax.demos.verdict import percent, verdict

BAD, GOOD = [falling(5, 9)] * 2, [falling(5, 1), falling(5, 1.5)]


def said_of(*results, goal=LOSS):
    return verdict([summary.summarise(each, goal) for each in results], "nats")


def test_a_clip_that_saves_training():
    assert said_of(
        result("none", BAD, clipped=1.0), result("a", GOOD), result("b:1", GOOD)
    ) == [
        "Training diverged without a clip; the model learned with a and b:1.",
        "Loss from step 0 to the end: 5 to 8.95 without a clip.",
        "Lowest final loss: 1.298 ± 0.349 nats with a; the same with b:1.",
        "Steps in which the clip changed the gradient: all with a and b:1.",
    ]


def test_nothing_diverged():
    first, *_, clips = said_of(
        result("none", GOOD, clipped=1.0), result("a", GOOD, clipped=1.0)
    )
    assert first == "The model learned with all 2 arms: none diverged."
    assert clips == "Steps in which the clip changed the gradient: none with a."


def test_everything_diverged():
    nan = [np.full(40, np.nan)] * 2
    assert said_of(result("none", BAD, clipped=1.0), result("a", nan)) == [
        "Training diverged with all 2 arms.",
        "Loss from step 0 to the end: 5 to 8.95 without a clip; "
        "not finite to not finite with a.",
        "Steps in which the clip changed the gradient: all with a.",
    ]


@pytest.mark.parametrize(
    ("label", "losses", "expected"),
    [
        ("none", BAD, ["Training diverged without a clip.", "5 to 8.95 without a"]),
        ("a", BAD, ["Training diverged with a.", "5 to 8.95 with a.", "all with a."]),
        ("none", GOOD, ["learned without a clip.", "5 to 1.3 without", "Final loss: "]),
        ("a", GOOD, ["The model learned with a.", "5 to", "Final loss: 1.298", "all"]),
    ],
)
def test_one_arm(label, losses, expected):
    said = said_of(result(label, losses, clipped=1.0 if label == "none" else 0.5))
    for sentence, part in zip(said, expected, strict=True):
        assert part in sentence


def test_one_diverged_seed_is_not_all():
    some = result("a", [falling(5, 9), falling(5, 1)])
    said = said_of(some, result("none", GOOD, clipped=1.0))
    assert said[0] == "Diverged seeds: 1 of 2 with a; the model learned without a clip."
    assert "Lowest" not in said[2] and "without a clip" in said[2]
    said = said_of(some, result("none", BAD, clipped=1.0), result("b", GOOD))
    assert said[0] == (
        "Training diverged without a clip; diverged seeds: 1 of 2 with a; "
        "the model learned with b."
    )


def test_ties_and_differences():
    near, far = [falling(5, 1.1), falling(5, 1.6)], [falling(5, 3), falling(5, 3.1)]
    best = said_of(result("a", GOOD), result("b", near), result("c", far))[1]
    assert best.endswith("with a; no difference to rely on with b; 1.78 higher with c.")
    one = said_of(result("a", GOOD[:1]), result("b", near[:1]))[1]
    assert one == (
        "Lowest final loss: 1.051 nats with a; 0.0987 higher with b "
        "(one seed: this may be chance)."
    )


def test_a_score_to_be_high():
    goal = Goal("modes covered", is_lowest_best=False, must_fall=False)
    arms = []
    for label, scores in {
        "none": [2.0, 3.0],
        "b": [7.0, 8.0],
        "c": [np.nan, 9.0],
    }.items():
        arm = result(label, [falling(1, 5)] * 2, clipped=1.0)
        arms.append(dataclasses.replace(arm, held_out={goal.name: np.array(scores)}))
    said = said_of(*arms, goal=goal)
    assert said[0] == "The loss stayed finite with all 3 arms: none diverged."
    assert said[1] == (
        "Highest modes covered: 7.500 ± 0.707 with b; 5 lower without a clip."
    )


def test_each_arm_at_its_own_rate():
    said = said_of(
        result("none", GOOD, clipped=1.0, rate=0.1),
        result("none", BAD, clipped=1.0, rate=1.0),
        result("a", GOOD, rate=0.1),
        result("a", [falling(5, 0.1)] * 2, rate=1.0),
        result("b", BAD, rate=0.1),
        result("b", BAD, rate=1.0),
    )
    assert said[0] == (
        "Training diverged with b at every learning rate; the model learned without "
        "a clip and with a."
    )
    assert said[1] == (
        "Highest learning rate without a diverged seed: none with b; 0.1 without a "
        "clip; 1 with a."
    )
    assert "with a at learning rate 1; " in said[3]


def test_how_often_single_examples_are_clipped():
    few = result("per_example@a", GOOD, clipped=0.4)
    few.log["clipped_fraction"] *= 0.1
    half = result("b", GOOD)
    half.log["clipped_fraction"][:, ::2] = 0
    said = said_of(few, half, result("per_example@none", GOOD, clipped=1.0))[-1]
    assert said == (
        "Steps in which the clip changed the gradient: all (10 % of the parts that it "
        "clips separately) with per_example@a; 50 % with b."
    )


def test_many_arms_are_counted():
    names = "abcdefg"
    said = said_of(
        result("none", BAD, clipped=1.0),
        *(result(name, BAD) for name in names[:6]),
        result("g", GOOD),
    )
    assert said[0] == (
        "Training diverged without a clip and with 6 others; the model learned with g."
    )


def test_percentages_are_never_rounded_to_none_or_all():
    shares = (0, 0.2, 1, 50, 99.4, 100)
    assert [percent(share) for share in shares] == [
        "0 %",
        "under 1 %",
        "1 %",
        "50 %",
        "over 99 %",
        "100 %",
    ]
