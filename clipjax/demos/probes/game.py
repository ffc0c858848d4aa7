"""Gradient descent against gradient ascent on xy, with and without a clip.

One player lowers xy by x, the other raises it by y. The joint gradient (y, -x) is
orthogonal to the position, so that a step of length s takes the squared radius from r²
to r² + s²: simultaneous steps leave the equilibrium 0, with any clip. Unclipped, s is
the learning rate times r, and r grows geometrically; clipped to C, s is the learning
rate times C, and r grows as the square root of the number of steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import clipjax

from ...plotting import plot_lines
from ..options import Positive, Whole
from .arguments import require
from .base import Report, beside, number

THRESHOLDS = (float("inf"), 1.0, 0.1)


class Measured(NamedTuple):
    """Distances from the equilibrium along the way.

    Attributes:
        steps: `(points,)`, after how many steps.
        thresholds: `(thresholds,)`; infinite for no clip.
        radius: `(thresholds, points)`, with a clip of the joint gradient.
        theory: the same by the formula, which holds from a radius of at least the
            threshold.
        own_radius: `(thresholds, points)`, with a clip of each player's own gradient.
    """

    steps: np.ndarray
    thresholds: np.ndarray
    radius: np.ndarray
    theory: np.ndarray
    own_radius: np.ndarray


def measure(
    *, steps: int = 10_000, learning_rate: float = 0.1, start: float = 1.0
) -> Measured:
    """Play the game from x = y = `start`.

    Args:
        steps: of both players, at the same time.
        learning_rate: of both.
        start: both coordinates.

    Raises:
        ValueError: if an argument is out of range.
    """
    require(Whole(), steps=steps)
    require(Positive(), learning_rate=learning_rate, start=start)
    shown = np.unique(np.geomspace(1, steps, 100).astype(int))
    begin = np.hypot(start, start)
    radius, theory, own = [], [], []
    for threshold in THRESHOLDS:
        clipped = optax.chain(
            clipjax.clip_by_global_norm(threshold), optax.sgd(learning_rate)
        )
        each = optax.partition({"x": clipped, "y": clipped}, {"x": "x", "y": "y"})
        radius.append(_play(clipped, start, steps)[shown - 1])
        own.append(_play(each, start, steps)[shown - 1])
        if threshold == float("inf"):
            theory.append(begin * (1 + learning_rate**2) ** (shown / 2))
        else:
            theory.append(np.sqrt(begin**2 + shown * (learning_rate * threshold) ** 2))
    return Measured(
        shown,
        np.array(THRESHOLDS),
        np.array(radius),
        np.array(theory),
        np.array(own),
    )


def _play(
    optimizer: optax.GradientTransformation, start: float, steps: int
) -> np.ndarray:
    """The radius after each step, `(steps,)`."""

    def step(carry: Any, unused: Any):
        position, state = carry
        grads = {"x": position["y"], "y": -position["x"]}
        updates, state = optimizer.update(grads, state, position)
        position = optax.apply_updates(position, updates)
        return (position, state), position

    def play(position):
        carry = (position, optimizer.init(position))
        return jax.lax.scan(step, carry, length=steps)[1]

    begin = jnp.float32(start)
    positions = jax.jit(play)({"x": begin, "y": begin})
    return np.hypot(positions["x"], positions["y"])


def report(measured: Measured) -> Report:
    """The last radius beside the reported and the theoretical one."""
    names = [
        "no clip" if threshold == float("inf") else f"C = {threshold:g}"
        for threshold in measured.thresholds
    ]
    last = measured.steps[-1]
    rows = []
    for index, name in enumerate(names):
        said = ("5.7e21", "10.10", "1.73")[index] if last == 10_000 else None
        rows.append((f"{name}, joint", said, measured.radius[index, -1]))
        rows.append((f"{name}, formula", said, measured.theory[index, -1]))
        rows.append((f"{name}, each its own", None, measured.own_radius[index, -1]))
    away = [
        name
        for name, radius in zip(names, measured.radius, strict=True)
        if radius[-1] > radius[0]
    ]
    figure = plot_lines(
        dict(zip(names, measured.radius, strict=True)),
        measured.steps,
        x_label="step",
        y_label="distance from the equilibrium",
        title="Simultaneous steps on xy, joint clip",
        is_log=(True, True),
    )
    return Report(
        [beside(f"Distance from the equilibrium after {last} steps", rows)],
        [
            "It is often said that clipping damps the oscillation of such games and "
            "makes them converge. The distance from the equilibrium grew in "
            f"{len(away)} of {len(names)} runs with a joint clip or none"
            + (": no clip ended the divergence." if len(away) == len(names) else "."),
            "With a joint clip the distances differ from the formula, "
            "√(r0² + k(ηC)²) after k steps with a clip and r0(1 + η²)^(k/2) without, "
            f"by up to {number(_gap(measured))} of them.",
        ],
        figure,
    )


def _gap(measured: Measured) -> float:
    return float(np.abs(measured.radius / measured.theory - 1).max())
