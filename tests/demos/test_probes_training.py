"""Probes that train: what they compute from runs, and a run with a known answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipjax.demos.probes import (
    adam_thresholds,
    deep_mlp,
    heat_map,
    recurrent_rates,
    training,
)
from clipjax.demos.probes.training import UNCLIPPED, Arm, Runs
from clipjax.demos.tasks.base import Task


class Point(nnx.Module):
    """A single parameter, whose loss is its square."""

    def __init__(self):
        self.x = nnx.Param(jnp.full((1,), 10.0))


SQUARE = Task(
    source="none",
    build=lambda key: Point(),
    train=jnp.zeros(1),
    held_out=jnp.zeros(1),
    sample=lambda key, step, train: train,
    loss=lambda model, batch: jnp.sum(jnp.square(model.x[...])),
    evaluate=lambda model, held_out: {"distance": jnp.abs(model.x[...]).sum()},
    unit="1",
)


def test_training_a_square():
    """Its gradient is 2x: above a rate of 1 it diverges, and clipped it alternates."""
    seen = []
    runs = training.train(
        SQUARE,
        [UNCLIPPED, Arm("hard", 2.0), Arm("soft", 2.0, True)],
        [0.25, 1.5],
        steps=70,
        seeds=2,
        watch=seen.append,
        label="square:",
    )
    assert runs.loss.shape == runs.norm.shape == (3, 2, 2, 70)
    np.testing.assert_allclose(runs.loss[0, 0, 0, :3], [100, 25, 6.25])
    np.testing.assert_allclose(runs.norm[0, 0, 0, :3], [20, 10, 5])
    # A hard clip at 2 takes steps of 0.5 from 10; the soft one is shorter still.
    np.testing.assert_allclose(runs.loss[1, 0, 0, :3], [100, 9.5**2, 81])
    np.testing.assert_allclose(runs.loss[2, 0, 0, 1], (10 - 0.25 * 40 / 22) ** 2)
    np.testing.assert_array_equal(
        runs.has_diverged.any(axis=-1), [[False, True], [False, False], [False] * 2]
    )
    assert np.all(runs.scores["distance"][:, 0] < 1e-3)
    assert seen[0] == "square: compiles"
    assert "square: hard, learning rate 0.25, seed 1, step 70" in seen


def test_standardized_pixels():
    """Black is -0.42 and the mean of MNIST 0, in training as in evaluation."""
    pixels = jnp.array([0.0, 0.1307, 1.0])
    task = dataclasses.replace(
        SQUARE,
        sample=lambda key, step, train: (pixels, None),
        evaluate=lambda model, held_out: {"score": model(pixels)},
    )
    scaled = training.standardized(task)
    expected = [-0.4242, 0, 2.8215]
    found = scaled.sample(jax.random.key(0), 0, None)[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    seen = scaled.evaluate(lambda pixels: pixels, None)["score"]
    np.testing.assert_allclose(seen, expected, atol=1e-4)
    with pytest.raises(ValueError, match="standardize must be 0 or 1, got 2"):
        heat_map.measure(standardize=2)


def test_what_is_read_from_losses():
    losses = np.full((1, 1, 2, 30), 1.0)
    losses[..., 20:] = 0.1
    losses[0, 0, 1, 5] = 4.0
    losses[0, 0, 1, 20:] = np.inf
    runs = Runs(losses, losses, {})
    np.testing.assert_array_equal(runs.steps_to(0.5, window=1), [[[21, np.nan]]])
    np.testing.assert_array_equal(runs.steps_to(0.5), [[[26, np.nan]]])
    np.testing.assert_allclose(runs.largest_jump, [[[0, 3]]])
    np.testing.assert_allclose(runs.last(5)[0, 0], [0.1, np.inf])
    np.testing.assert_array_equal(runs.has_diverged, [[[False, True]]])


def test_the_highest_usable_rate():
    is_bad = np.array([[[0, 0], [0, 1]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]], bool)
    arms = [Arm("a", 1.0), Arm("b", 1.0), Arm("c", 1.0)]
    said = training.usable(arms, (0.1, 0.3), is_bad)
    assert said.endswith("0.1 with a, 0.3 (the highest tried) with b, none with c.")


def falling(arms, rates, seeds=2, steps=250):
    """Losses that fall the slower the lower the rate; the first arm blows up last."""
    time = np.arange(steps)
    rate = np.linspace(0.02, 0.1, rates)[:, None, None]
    loss = 2.3 * np.exp(-rate * time) * np.ones((arms, rates, seeds, steps))
    loss[0, -1, :, steps // 2 :] = np.nan
    return Runs(loss, loss, {"accuracy": loss[..., 0]})


def test_the_deep_network_is_reported_as_it_is():
    he, torch = falling(3, 3), falling(3, 2, seeds=1, steps=100)
    report = deep_mlp.report(
        deep_mlp.Measured(np.array(deep_mlp.RATES), he, np.array([0.01, 0.1]), torch)
    )
    assert "is 0.3 with no clip, 0.6 (the highest tried)" in report.findings[0]
    # All arms are alike here.
    assert "the clip is not slower there" in report.findings[1]
    assert "a hard clip at 1 acts" in report.findings[2]
    steps = dict((row[0], row[2]) for row in report.tables[0].rows)
    assert steps["no clip, learning rate 0.1"] == str(int(he.steps_to(0.3)[0, 0, 0]))
    with pytest.raises(ValueError, match="torch_steps must be a whole number"):
        deep_mlp.measure(torch_steps=0)


def test_the_heat_map_says_where_a_threshold_helps():
    loss = np.array([list(map(float, row)) for row in heat_map.REPORTED.values()])
    measured = heat_map.Measured(
        np.array(list(heat_map.REPORTED)),
        np.array([*heat_map.THRESHOLDS, np.inf]),
        loss[..., None],
        np.zeros((4, 5, 1), bool),
        300,
    )
    report = heat_map.report(measured)
    assert {row[-1] for row in report.tables[0].rows} == {"agrees"}
    assert report.findings[0].endswith("learning rate 0.1 with threshold 5.")
    assert "0.3 (0.012 against 0.206)" in report.findings[1]
    assert "0.01 (" not in report.findings[1]
    assert report.findings[2].endswith("of 0.1 gives 2.03, and no clip 0.108.")
    assert report.findings[3].startswith("20 of the 20 cells lie within 25 %")
    diverged = measured._replace(diverged=np.arange(20).reshape(4, 5, 1) == 19)
    assert "0.3 (0.012 against divergence)" in heat_map.report(diverged).findings[1]
    with pytest.raises(ValueError, match="seeds must be a whole number"):
        heat_map.measure(seeds=0)


def test_recurrent_rates_are_reported_as_they_are():
    tanh, lstm = falling(4, 4), falling(3, 5, steps=150)
    report = recurrent_rates.report(
        recurrent_rates.Measured(
            np.array(recurrent_rates.RATES),
            tanh,
            tanh,
            np.array(recurrent_rates.LSTM_RATES),
            lstm,
        )
    )
    assert "is 1 with no clip, 3 (the highest tried) with hard" in report.findings[0]
    assert "is 3 with no clip, 10 (the highest tried) with hard" in report.findings[2]
    assert "at most 2.3 (reported: .94): a clip at 5 never acts" in report.findings[3]
    with pytest.raises(ValueError, match="steps must be a whole number"):
        recurrent_rates.measure(steps=-1)


def test_adams_thresholds_are_reported_as_they_are():
    said = [0.037, 0.037, 0.020, 0.013, 0.013, 0.015, 0.096]
    loss = np.array(said)[:, None]
    epsilon = np.array([0.037, 0.048, 0.118, 0.335])[:, None]
    measured = adam_thresholds.Measured(
        1e-3,
        400,
        np.array(adam_thresholds.THRESHOLDS),
        loss,
        loss,
        np.array(adam_thresholds.EPSILONS),
        epsilon,
        epsilon,
    )
    report = adam_thresholds.report(measured)
    assert {row[-1] for row in report.tables[0].rows} == {"agrees"}
    assert "within a factor of 2.846; at 1e-06 it is 7.385" in report.findings[0]
    assert "grows with ε, from 0.037 to 0.335" in report.findings[1]
    with pytest.raises(ValueError, match="learning_rate must be a finite number"):
        adam_thresholds.measure(learning_rate=0.0)
