"""Adam's ε as the threshold of a soft clip of every coordinate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import clipjax
from clipjax import rules
from clipjax.diagnostics import adam_trace

from ...plotting import plot_lines
from ..options import Whole
from .arguments import require
from .base import Report, beside, number

GRADIENT = (3.0, -0.1, 1e-4)
EPSILONS = (1e-8, 1e-3, 0.1, 10.0)


class Measured(NamedTuple):
    """Adam's update at learning rate 1 for constant gradients.

    Attributes:
        epsilons: `(epsilons,)`.
        sizes: `(points,)`, gradients of independent coordinates.
        adam: `(epsilons, points)`, Adam's update for them.
        soft: `(epsilons, points)`, the soft clip of every entry at γ = ε, over ε.
        vector: `(epsilons, 3)`, Adam's update for the gradient `GRADIENT`.
        vector_soft: `(epsilons, 3)`, the soft clip by global norm at γ = ε, over ε.
    """

    epsilons: np.ndarray
    sizes: np.ndarray
    adam: np.ndarray
    soft: np.ndarray
    vector: np.ndarray
    vector_soft: np.ndarray


def measure(*, steps: int = 200, points: int = 61) -> Measured:
    """Run Adam on constant gradients from 1e-10 to 100, and both soft clips.

    Args:
        steps: steps of Adam.
        points: gradients, a coordinate each.
    """
    require(Whole(100_000), steps=steps)
    require(Whole(100_000, lowest=2), points=points)
    sizes = jnp.geomspace(1e-10, 100.0, points)
    vector = jnp.asarray(GRADIENT)
    # Adam treats every coordinate by itself: one run serves both.
    gradients = jnp.tile(jnp.concatenate([sizes, vector]), (steps, 1))

    @jax.jit
    def updates(eps):
        adam = -adam_trace(gradients, eps=eps).update[-1]
        entries = clipjax.clip_entries(eps, rule=rules.soft)
        vectors = clipjax.soft_clip_by_global_norm(eps)
        soft, whole = (
            clip.update(gradient, clip.init(gradient))[0] / eps
            for clip, gradient in ((entries, sizes), (vectors, vector))
        )
        return adam[:points], soft, adam[points:], whole

    rows = [updates(jnp.float32(eps)) for eps in EPSILONS]
    columns = [np.asarray(column) for column in zip(*rows, strict=True)]
    return Measured(np.array(EPSILONS), np.asarray(sizes), *columns)


def report(measured: Measured) -> Report:
    """How far apart they are, and what another ε does to the update."""
    reported = {
        ("Adam", 1e-8): (measured.vector, ("1", "-1", "1")),
        ("soft clip of the vector", 1e-8): (
            measured.vector_soft,
            (".999", "-.033", "3e-5"),
        ),
        ("Adam", 10.0): (measured.vector, (".23", "-.0099", "1e-5")),
    }
    rows = [
        (f"{name}, ε = {eps:g}, g = {entry:g}", said, values[place, index])
        for (name, eps), (values, texts) in reported.items()
        for place in [EPSILONS.index(eps)]
        for index, (entry, said) in enumerate(zip(GRADIENT, texts, strict=True))
    ]
    distance = float(np.max(np.abs(measured.adam / measured.soft - 1)))
    weak, strong = (np.ptp(np.log10(measured.adam[at])) for at in (-1, 0))
    order = "less" if weak > strong else "not less"
    figure = plot_lines(
        {
            f"ε = {eps:g}": row
            for eps, row in zip(measured.epsilons, measured.adam, strict=True)
        },
        measured.sizes,
        x_label="gradient of a coordinate |g|",
        y_label="update / learning rate",
        title="Adam for constant gradients",
        is_log=(True, True),
    )
    return Report(
        [beside("Update per learning rate for constant gradients", rows)],
        [
            "On constant gradients Adam's update is g / (|g| + ε): the soft clip of "
            "every coordinate with threshold γ = ε at learning rate η/ε, to within "
            f"{number(distance)} of it in these runs.",
            f"Raising ε from {EPSILONS[0]:g} to {EPSILONS[-1]:g} normalizes {order}: "
            f"gradients over 12 decades give updates over {strong:.1f} decades at the "
            f"first and over {weak:.1f} at the second. It is often said that a small "
            "ε makes Adam's clipping weak"
            + ("; it makes it strong." if weak > strong else "."),
        ],
        figure,
    )
