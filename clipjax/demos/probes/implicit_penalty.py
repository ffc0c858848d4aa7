"""Parameters of logistic regression on separable data, with and without a clip."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import clipjax

from ...plotting import plot_lines
from ..options import Positive, Whole
from .arguments import require
from .base import Report, beside
from .descend import descend

# Three examples, times their labels ±1. The first two are the support vectors: both
# have a margin of 1 along the first axis, which is the direction of largest margin.
POINTS = np.array([[1.0, 2.0], [1.0, -0.5], [3.0, 1.0]])
DIRECTION = np.array([1.0, 0.0])
PENALTY = 0.01


class Measured(NamedTuple):
    """Paths of gradient descent from zero on the mean logistic loss.

    Attributes:
        arms: `(arms,)`, the names: without a clip, with one, and with an L2 penalty.
        steps: `(points,)`, the numbers of steps at which the rest was recorded.
        norm: `(arms, points)`, the distance from the start.
        angle: `(arms, points)`, degrees from the direction of largest margin.
        bound: `(points,)`, ηCt.
    """

    arms: np.ndarray
    steps: np.ndarray
    norm: np.ndarray
    angle: np.ndarray
    bound: np.ndarray


def measure(
    *, steps: int = 200_000, threshold: float = 0.05, learning_rate: float = 1.0
) -> Measured:
    """Descend on three examples.

    Args:
        steps: number of steps, at least 100.
        threshold: the threshold C of the clip by global norm.
        learning_rate: the learning rate η.
    """
    require(Whole(lowest=100), steps=steps)
    require(Positive(), threshold=threshold, learning_rate=learning_rate)
    decades = 10.0 ** np.arange(1, int(np.log10(steps)) + 1)
    recorded = np.concatenate([decades, np.geomspace(1, steps, 60)])
    recorded = np.unique(recorded.round().astype(int))

    def loss(weights: jax.Array) -> jax.Array:
        return jnp.mean(jax.nn.softplus(-jnp.asarray(POINTS, jnp.float32) @ weights))

    clip = clipjax.clip_by_global_norm(threshold)
    arms = {
        "no clip": optax.identity(),
        "clip": clip,
        "L2 penalty, clip": optax.chain(optax.add_decayed_weights(PENALTY), clip),
    }

    def path(before: optax.GradientTransformation) -> jax.Array:
        optimizer = optax.chain(before, optax.sgd(learning_rate))
        gradient = jax.grad(loss)
        whole = descend(optimizer, lambda w, step: gradient(w), jnp.zeros(2), steps)
        return whole[recorded - 1]

    paths = np.asarray(jax.jit(lambda: [path(arm) for arm in arms.values()])())
    norm = np.linalg.norm(paths, axis=2)
    angle = np.degrees(np.arctan2(np.abs(paths[..., 1]), paths[..., 0]))
    bound = learning_rate * threshold * recorded
    return Measured(np.array(list(arms)), recorded, norm, angle, bound)


def report(measured: Measured) -> Report:
    """Norms and angles at powers of ten next to reported ones."""
    arms, steps, norm, angle, bound = measured
    norms = {10: "0.50", 100: "2.40", 1000: "3.52", 10_000: "4.67", 100_000: "5.93"}
    angles = {10: "23", 100: "20", 1000: "17.5", 10_000: "15.6", 200_000: "13.7"}
    clipped, plain = 1, 0
    at = {int(step): index for index, step in enumerate(steps)}
    tables = [
        beside(
            "Norm with the clip",
            [
                (f"{t} steps", said, norm[clipped, at[t]])
                for t, said in norms.items()
                if t in at
            ],
        ),
        beside(
            "Angle to the direction of largest margin without a clip, degrees",
            [
                (f"{t} steps", said, angle[plain, at[t]])
                for t, said in angles.items()
                if t in at
            ],
        ),
    ]
    figure = plot_lines(
        {str(name): values for name, values in zip(arms, norm, strict=True)}
        | {"bound ηCt": bound[bound <= 2 * norm.max()]},
        {str(name): steps for name in arms}
        | {"bound ηCt": steps[bound <= 2 * norm.max()]},
        x_label="step",
        y_label="norm of the parameters",
        title="Separable logistic regression",
        is_log=(True, False),
    )
    late = steps >= steps[-1] / 10
    growth = norm[:, -1] - norm[:, np.argmax(late)]
    products = angle[plain, late] * np.log(steps[late])
    within = "never" if (norm[clipped] <= bound * (1 + 1e-5)).all() else "somewhere"
    return Report(
        tables,
        [
            "Growth of the norm over the last factor of 10 in steps: "
            + ", ".join(
                f"{g:.3g} ({name})" for name, g in zip(arms, growth, strict=True)
            )
            + ". The clip is no penalty: it holds the parameters in no bounded region. "
            "An L2 penalty does.",
            f"The norm with the clip exceeds ηCt {within}; that bound is all that the "
            "clip gives, and it grows with the steps.",
            "The angle times log t varies over the last factor of 10 by "
            f"{np.ptp(products) / products.mean():.0%}: the direction of largest "
            "margin is approached like 1/log t, and reached in no finite number of "
            "steps (Soudry et al., https://arxiv.org/abs/1710.10345).",
            "The norm grows by (ln 10)/margin when the steps grow tenfold: 2.3 for the "
            "examples here, whose margin is 1. The reported growth of about 1.15 would "
            "need a margin of 2; the reported examples are not known.",
        ],
        figure,
    )
