"""How far one example moves a clipped gradient, and the noise that hides it."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_ndtr

import clipjax

from ...plotting import plot_lines
from ..options import Positive, Whole
from .arguments import require
from .base import Report, beside, number


class Measured(NamedTuple):
    """Distances between the results of two data sets that differ in one example.

    Attributes:
        threshold: C of the clip.
        examples: m in the larger data set.
        dimension: d of the parameters.
        replaced: L2 distance of the means where one example is replaced.
        removed: L2 distance where one is removed and the divisor stays m.
        removed_actual: L2 distance where one is removed and the divisor is the number
            of examples.
        replaced_unclipped: L2 distance of clipped means, the mean being clipped and
            not the examples.
        replaced_l1: L1 distance of the means where one example is replaced.
        epsilons: `(points,)`, the ε of differential privacy.
        delta: `(points,)`, δ of the classical Gaussian noise meant for `target`.
        target: the δ that the noise is meant for.
    """

    threshold: float
    examples: int
    dimension: int
    replaced: float
    removed: float
    removed_actual: float
    replaced_unclipped: float
    replaced_l1: float
    epsilons: np.ndarray
    delta: np.ndarray
    target: float


def gaussian_delta(epsilon: float, noise: float, sensitivity: float = 1.0) -> float:
    """The least δ for which Gaussian noise is (ε, δ)-differentially private.

    Balle and Wang, "Improving the Gaussian mechanism for differential privacy"
    (https://arxiv.org/abs/1805.06530), theorem 8.

    Args:
        epsilon: ε.
        noise: standard deviation of each coordinate.
        sensitivity: L2 sensitivity of what the noise is added to.
    """
    ratio = sensitivity / noise
    near, far = ratio / 2 - epsilon / ratio, -ratio / 2 - epsilon / ratio
    return float(np.exp(log_ndtr(near)) - np.exp(epsilon + log_ndtr(far)))


def classical_noise(epsilon: float, delta: float, sensitivity: float = 1.0) -> float:
    """√(2 ln(1.25/δ)) / ε times the sensitivity: proved for ε of at most 1."""
    return sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def measure(
    *,
    threshold: float = 1.0,
    examples: int = 8,
    dimension: int = 20,
    target: float = 1e-5,
) -> Measured:
    """Clip the worst pairs of data sets by `clipjax.clipped_grad`.

    Args:
        threshold: C of the clip of each example's gradient.
        examples: m of the larger data set.
        dimension: d of the parameters.
        target: the δ that the classical noise is meant for.
    """
    require(Positive(), threshold=threshold, target=target)
    require(Whole(10_000), examples=examples, dimension=dimension)
    if target >= 1 or examples < 2:
        raise ValueError(
            f"target must be below 1, got {target!r}, and examples at least 2, got "
            f"{examples!r}"
        )
    params = jnp.zeros(dimension)
    # The gradient of an example is the example: far beyond the threshold, and with
    # all coordinates equal, so that its L1 norm is the largest for its L2 norm.
    far = 1e3 * threshold * np.ones((examples, dimension), np.float32)
    other = np.concatenate([-far[:1], far[1:]])

    none, is_first = np.zeros(examples, bool), np.arange(examples) == 0

    @jax.jit
    def mean(data, is_absent=none, divisor=float(examples)):
        grad = clipjax.clipped_grad(
            lambda params, example: jnp.sum(example @ params),
            l2_clip_norm=threshold,
            normalize_by=divisor,
        )
        return grad(params, data, is_padding_example=is_absent)

    @jax.jit
    def clipped_mean(data):
        return clipjax.project_onto_ball(jnp.mean(data, axis=0), threshold)

    # One example outweighs all others in a mean that is clipped only afterwards.
    outlier = np.concatenate([-2 * examples * far[:1], far[1:]])

    def length(difference):
        return float(np.linalg.norm(np.asarray(difference, np.float64)))

    epsilons = np.unique(np.append(np.geomspace(0.1, 30, 60), [1.0, 8.0, 10.0, 20.0]))
    first, second = mean(far), mean(other)
    return Measured(
        float(threshold),
        examples,
        dimension,
        replaced=length(first - second),
        removed=length(second - mean(other, is_first)),
        removed_actual=length(second - mean(other, is_first, examples - 1.0)),
        replaced_unclipped=length(clipped_mean(far) - clipped_mean(outlier)),
        replaced_l1=float(jnp.abs(first - second).sum()),
        epsilons=epsilons,
        delta=np.array(
            [gaussian_delta(e, classical_noise(e, target)) for e in epsilons]
        ),
        target=float(target),
    )


def report(measured: Measured) -> Report:
    """The distances next to reported ones, and δ where the classical noise fails."""
    setting = (measured.threshold, measured.examples, measured.dimension)
    is_reported = setting == (1.0, 8, 20) and measured.target == 1e-5

    def row(name, said, value):
        return name, said if is_reported else None, value

    distances = [
        row("one replaced", ".2500", measured.replaced),
        row("one removed, divisor fixed", ".125", measured.removed),
        row("one removed, divisor the batch size", ".25", measured.removed_actual),
        row("one replaced, only the mean clipped", "2", measured.replaced_unclipped),
        row("one replaced, L1 norm", "1.118", measured.replaced_l1),
    ]
    deltas = [
        row(f"ε = {e:g}", said, measured.delta[measured.epsilons == e])
        for e, said in (
            (1.0, None),
            (8.0, "8.0e-6"),
            (10.0, "2.3e-5"),
            (20.0, "1.5e-3"),
        )
    ]
    broken = measured.epsilons[measured.delta > measured.target]
    classical = (
        f"is exceeded from ε = {number(broken[0])} on"
        if broken.size
        else "is never exceeded"
    )
    bound = 2 * measured.threshold / measured.examples
    figure = plot_lines(
        {"true δ": measured.delta},
        measured.epsilons,
        x_label="ε",
        y_label="δ",
        title=f"Classical Gaussian noise for δ = {measured.target:g}",
        is_log=(True, True),
        level=measured.target,
    )
    return Report(
        [
            beside("Distance of the clipped means of two data sets", distances),
            beside(f"True δ of the classical noise for {measured.target:g}", deltas),
        ],
        [
            f"The L2 sensitivity of the mean of clipped gradients is 2C/m = "
            f"{number(bound)} if one example is replaced, and half of it if one is "
            "added or removed and the divisor is fixed. Laplace noise needs the L1 "
            f"sensitivity, which is up to √d times as large: here "
            f"{number(measured.replaced_l1)}.",
            "The classical standard deviation √(2 ln(1.25/δ))·Δ/ε is proved for ε up "
            f"to 1; the δ it is meant for {classical}.",
        ],
        figure,
    )
