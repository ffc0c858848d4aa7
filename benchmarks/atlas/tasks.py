"""The six tasks."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from .ring import (
    energy_distance,
    modes_covered,
    player,
    ring_batch,
    ring_data,
    ring_loss,
)
from .tabular import (
    INPUTS,
    digit_batch,
    digit_data,
    digit_loss,
    outlier_batch,
    outlier_data,
    square_loss,
    two_layers,
)
from .task import Family, Task
from .text import LENGTH, LETTERS, recurrent, text_task, transformer


def tasks() -> dict[str, Task]:
    """Return the tasks by name."""
    size, hidden, width = len(LETTERS) + 1, 32, 16
    recurrent_shapes = {
        "input": (size, hidden),
        "hidden": (hidden, hidden),
        "bias": (hidden,),
        "readout": (hidden, size),
        "readout_bias": (size,),
    }
    attention = {
        "characters": (size, width),
        "positions": (LENGTH, width),
        "attention_scale": (width,),
        "attention_in": (width, 3 * width),
        "attention_out": (width, width),
        "feed_scale": (width,),
        "feed_in": (width, 4 * width),
        "feed_out": (4 * width, width),
        "last_scale": (width,),
        "readout": (width, size),
    }
    text_centers: dict[Family, float] = {"sgd": -0.5, "adam": -2.0}
    block: dict[str, Any] = {
        "family": "adam",
        "centers": text_centers,
        "steps": 120,
        "shapes": attention,
    }
    found = [
        text_task(
            "rnn",
            "a tanh recurrent network predicts the next of 16 characters of CPython's "
            "documentation; SGD with momentum",
            recurrent,
            family="sgd",
            centers=text_centers,
            steps=120,
            shapes=recurrent_shapes,
        ),
        text_task(
            "transformer",
            "one Transformer block predicts the next of 16 characters; Adam, float32",
            transformer,
            **block,
        ),
        text_task(
            "transformer_bfloat16",
            "the same with activations and gradients in bfloat16; the weights and "
            "Adam's moments stay in float32",
            transformer,
            dtype=jnp.bfloat16,
            **block,
        ),
        Task(
            name="mnist",
            about="a perceptron of two layers classifies digits of 14 × 14 pixels; SGD "
            "with momentum",
            family="sgd",
            centers={"sgd": -1.0, "adam": -2.0},
            steps=120,
            shapes=two_layers(196, 16, 10),
            data=digit_data,
            batch=digit_batch,
            loss=digit_loss,
            evaluate=lambda params, data: digit_loss(params, data[1]),
        ),
        Task(
            name="ring",
            about="a generator and a discriminator on a ring of eight Gaussians, with "
            "a penalty of the discriminator's slope; Adam with the averages 0.5 and "
            "0.99; one clip for both players; the loss is the energy distance of the "
            "generated points",
            family="adam",
            centers={"sgd": -2.5, "adam": -2.0},
            steps=300,
            shapes=player("generator_", 4, 32, 2) | player("critic_", 2, 32, 1),
            data=ring_data,
            batch=ring_batch,
            loss=ring_loss,
            evaluate=energy_distance,
            modes=modes_covered,
            betas=(0.5, 0.99),
        ),
        Task(
            name="outliers",
            about="a perceptron of two layers fits a smooth function of 16 inputs by "
            "least squares; 5 % of the targets are 20 times too far away in all four "
            "conditions; SGD with momentum; the error is that without outliers",
            family="sgd",
            centers={"sgd": -2.5, "adam": -2.0},
            steps=150,
            shapes=two_layers(INPUTS, 32, 1),
            data=outlier_data,
            batch=outlier_batch,
            loss=square_loss,
            evaluate=square_loss,
        ),
    ]
    return {task.name: task for task in found}
