"""Where gradient descent ends when single examples or small batches are clipped."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import clipjax

from ...plotting import plot_lines
from ..options import Whole
from .arguments import require
from .base import Report, beside
from .descend import descend

THRESHOLDS = (2.0, 1.0, 0.5, 0.1)
# Far from the limit every step has length C: 1 / 0.1 steps. Near it, the distance of
# the slowest case falls by a factor of about 1 - exp(-0.7) · 2 · 0.1 per step.
STEPS = 400


class Measured(NamedTuple):
    """Limits of gradient descent on the mean of (x - ξ)²/2 over exponential ξ.

    Attributes:
        thresholds: `(thresholds,)`, the thresholds C.
        group_sizes: `(groups,)`, how many examples are averaged before the clip; the
            last one is the whole sample.
        limits: `(groups, thresholds, seeds)`, the x where the descent ends.
        exact: `(thresholds,)`, the limit of the distribution if each example is
            clipped.
        means: `(seeds,)`, the minimizer: the mean of the sample.
        two_point: `(2,)`, the mean of a gradient that is 10 with probability 0.1 and
            -1 otherwise, without and with a clip of each to 1.
    """

    thresholds: np.ndarray
    group_sizes: np.ndarray
    limits: np.ndarray
    exact: np.ndarray
    means: np.ndarray
    two_point: np.ndarray


def measure(*, seeds: int = 3, examples: int = 8192) -> Measured:
    """Descend on samples of the exponential distribution of mean 1.

    The samples are stratified, one from each of `examples` intervals of the same
    probability, so that their quantiles are those of the distribution.

    Args:
        seeds: independent samples.
        examples: examples per sample, a multiple of 64.
    """
    require(Whole(), seeds=seeds)
    require(Whole(lowest=64), examples=examples)
    if examples % 64:
        raise ValueError(f"examples must be a multiple of 64, got {examples}")
    thresholds = np.array(THRESHOLDS)
    group_sizes = np.array([1, 8, 64, examples])
    generator = np.random.default_rng(0)
    uniform = np.arange(examples) + generator.uniform(size=(seeds, examples))
    samples = generator.permuted(-np.log1p(-uniform / examples), axis=1)
    samples = jnp.asarray(samples, jnp.float32)

    def limit(groups: jax.Array, threshold: jax.Array) -> jax.Array:
        def loss(x: jax.Array, group: jax.Array) -> jax.Array:
            return jnp.mean(jnp.square(x - group)) / 2

        # Each row of `groups` is one example for `clipped_grad`: its mean is clipped.
        gradient = clipjax.clipped_grad(
            loss, l2_clip_norm=threshold, normalize_by=len(groups)
        )
        path = descend(
            optax.sgd(1.0), lambda x, step: gradient(x, groups), jnp.float32(0), STEPS
        )
        return path[-1]

    over = jax.vmap(jax.vmap(limit, (0, None)), (None, 0))
    limits = [
        jax.jit(over)(
            samples.reshape(seeds, -1, int(size)), jnp.asarray(thresholds, jnp.float32)
        )
        for size in group_sizes
    ]
    return Measured(
        thresholds,
        group_sizes,
        np.asarray(limits),
        np.array([_exact(threshold) for threshold in THRESHOLDS]),
        np.asarray(samples.mean(axis=1)),
        _two_point(),
    )


def _exact(threshold: float) -> float:
    """The x between 0 and 1 at which the mean of clip(x - ξ, -C, C) is zero."""
    low, high = 0.0, 1.0
    for _ in range(50):
        x = (low + high) / 2
        edge = min(threshold, x)
        mean = edge - np.exp(edge - x) + np.exp(-x - threshold)
        low, high = (x, high) if mean < 0 else (low, x)
    return low


def _two_point() -> np.ndarray:
    """The mean of a linear loss's gradients, each clipped to infinity or to 1."""
    gradients = jnp.array([10.0] + 9 * [-1.0])

    def loss(x: jax.Array, slope: jax.Array) -> jax.Array:
        return jnp.sum(slope * x)

    return np.array(
        [
            clipjax.clipped_grad(loss, l2_clip_norm=threshold, normalize_by=10)(
                jnp.float32(0), gradients
            )
            for threshold in (np.inf, 1.0)
        ]
    )


def report(measured: Measured) -> Report:
    """The limits next to reported ones, and how far each is from the minimizer."""
    thresholds, sizes, limits, exact, means, (plain, clipped) = measured
    reported = dict(zip(THRESHOLDS, ("0.949", "0.842", "0.735", "0.695"), strict=True))
    names = [f"means of {size} clipped" for size in sizes]
    names[0], names[-1] = "each example clipped", "full batch clipped"
    rows = [
        (f"{name}, C = {threshold:g}", reported[threshold] if index == 0 else None, x)
        for index, name in enumerate(names)
        for threshold, x in zip(thresholds, limits[index], strict=True)
    ]
    rows.append(("minimizer: mean of the sample", "1", means))
    figure = plot_lines(
        {name: x.T for name, x in zip(names, limits, strict=True)},
        thresholds,
        x_label="threshold C",
        y_label="x where the descent ends",
        title="Limits for exponential data",
        is_log=(True, False),
        level=float(means.mean()),
    )
    off = np.abs(limits - means).mean(axis=2)
    far = int(np.argmin(thresholds))
    turned = "the wrong sign" if plain * clipped < 0 else "the right sign"
    return Report(
        [
            beside("Limits of descent on the mean of (x - ξ)²/2", rows),
            beside(
                "Gradient of 10 with probability 0.1, else -1",
                [
                    ("mean", "0.1", plain),
                    ("mean of those clipped to 1", "-0.8", clipped),
                ],
            ),
        ],
        [
            "Distances from the minimizer at the smallest threshold: "
            + ", ".join(
                f"{row[far]:.2g} ({n})" for n, row in zip(names, off, strict=True)
            )
            + ".",
            "A clip of the full batch shortens steps, and where the minimizer is "
            "unique it does not move. A clip of each example, or of means of few, "
            "weighs down the long tail of the data: descent settles elsewhere.",
            "Clips of each example lead to the root of m - exp(m - x) + exp(-x - C), "
            f"m = min(C, x), within {np.abs(limits[0] - exact[:, None]).max():.1g}: "
            + ", ".join(
                f"{x:.4f} (C = {c:g})" for x, c in zip(exact, thresholds, strict=True)
            )
            + ". Reported limits that differ from it may be those of a random sample.",
            f"The mean of the clipped two-point gradients has {turned}.",
        ],
        figure,
    )
