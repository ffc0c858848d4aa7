"""When the loss falls at each clipped step, and what a path ends in."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ... import rules
from ...core.clip import clip_by
from ...core.entries import clip_entries
from ...diagnostics import ClippedDescent, clipped_descent
from ...plotting import plot_phase_portrait
from ..options import Whole
from .arguments import require
from .base import Report, Table, beside, number

CLIPS = {
    "hard clip": lambda threshold: clip_by(threshold),
    "soft clip": lambda threshold: clip_by(threshold, rule=rules.soft),
    "clip by value": lambda threshold: clip_entries(threshold),
}
REPORTED = {  # the loss √(x² + 10⁻⁴) at each step, for η = C
    1.0: ("0.300", "0.700", "0.301", "0.699"),
    0.5: ("0.300", "0.051", "0.200", "0.051", "0.200"),
}


class Lemma(NamedTuple):
    """One step on each of many random quadratics, with ηL below 2.

    Attributes:
        increases: steps at which the loss rises.
        violations: steps after which the loss is above the bound.
        least_slack: the least bound minus loss, relative to |loss| + |bound|.
    """

    increases: int
    violations: int
    least_slack: float


class Measured(NamedTuple):
    """Counterexample, descent lemma, and 2-cycles.

    Attributes:
        rates: `(2,)`, η = C = C/G for the slopes of √(x² + 10⁻⁴), which are below G =
            1.
        losses: `(2, 5)`, the loss along the two paths from 0.3.
        is_clipped: `(2,)`, whether a step of the path was clipped.
        lemma: by clip, what was found on random quadratics.
        count: quadratics per clip.
        portrait: paths on 1.5·x² with η = C = 1, so that ηL = 3, one per start.
        runaway: |x| after each step on -x²/2, from 1, with η = 0.5 and C = 1.
    """

    rates: np.ndarray
    losses: np.ndarray
    is_clipped: np.ndarray
    lemma: dict[str, Lemma]
    count: int
    portrait: ClippedDescent
    runaway: np.ndarray


def measure(*, quadratics: int = 20_000, dimension: int = 5, seed: int = 0) -> Measured:
    """Follow the paths, and take one step on each random quadratic with each clip.

    Args:
        quadratics: how many, for each clip; eigenvalues have either sign.
        dimension: of each.
        seed: of the random numbers.
    """
    require(Whole(), quadratics=quadratics, dimension=dimension)
    require(Whole(lowest=0), seed=seed)

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sqrt(x * x + 1e-4)

    rates = np.array([1.0, 0.5])
    found = [
        clipped_descent(jax.grad(loss), 0.3, rate, rate, 4) for rate in rates.tolist()
    ]
    runaway = clipped_descent(lambda x: -x, 1.0, 0.5, 1.0, 50)
    starts = jnp.array([0.37, 0.6, -3.3])
    return Measured(
        rates,
        np.stack([loss(each.path) for each in found]),
        np.array([not bool(each.in_band.all()) for each in found]),
        {
            name: _lemma(name, quadratics, dimension, key)
            for name, key in zip(
                CLIPS, jax.random.split(jax.random.key(seed), len(CLIPS)), strict=True
            )
        },
        quadratics,
        jax.tree.map(
            np.asarray, clipped_descent(lambda x: 3 * x, starts, 1.0, 1.0, 12)
        ),
        np.abs(np.asarray(runaway.path)),
    )


def _lemma(name: str, count: int, dimension: int, key: jax.Array) -> Lemma:
    def one(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        axes, scales, point, rate, size = jax.random.split(key, 5)
        mirror = jax.random.normal(axes, (dimension,))
        mirror /= jnp.linalg.norm(mirror)
        eigenvalues = jax.random.normal(scales, (dimension,))
        smoothness = jnp.abs(eigenvalues).max()
        basis = jnp.eye(dimension) - 2 * jnp.outer(mirror, mirror)
        hessian = basis @ jnp.diag(eigenvalues) @ basis
        x = jax.random.normal(point, (dimension,))

        def loss(x: jax.Array) -> jax.Array:
            return 0.5 * x @ hessian @ x

        grad = jax.grad(loss)(x)
        eta = 2 / smoothness * jax.random.uniform(rate)
        threshold = jnp.linalg.norm(grad) * 10 ** jax.random.uniform(
            size, minval=-3.0, maxval=0.5
        )
        clip = CLIPS[name](threshold)
        clipped, _ = clip.update(grad, clip.init(grad))
        # For a clip by the norm <g, clip(g)> is s·n², of which the clipped square is
        # s²·n²; each clip has |clip(g)|² <= <g, clip(g)>.
        bound = loss(x) - eta * grad @ clipped * (1 - smoothness * eta / 2)
        if name != "clip by value":
            factor = jnp.linalg.norm(clipped) / jnp.linalg.norm(grad)
            bound = loss(x) - eta * grad @ clipped * (1 - smoothness * eta * factor / 2)
        return loss(x), loss(x - eta * clipped), bound

    with jax.enable_x64(True):
        keys = jax.random.split(key, count)
        before, after, bound = map(np.asarray, jax.jit(jax.vmap(one))(keys))
    slack = (bound - after) / (np.abs(bound) + np.abs(after))
    return Lemma(
        int((after > before).sum()), int((slack < -1e-12).sum()), float(slack.min())
    )


def report(measured: Measured) -> Report:
    """The losses next to reported ones, counts, and the phase portrait."""
    rows = [
        (f"η = C = {rate:g}: step {step}", said, losses[step])
        for rate, losses in zip(measured.rates, measured.losses, strict=True)
        for step, said in enumerate(REPORTED[float(rate)])
    ]
    low, high = measured.portrait.two_cycles[0]
    rows += [
        ("1.5·x² from 0.37, η = C = 1: lower point of the cycle", "-0.63", low),
        ("upper point", "0.37", high),
    ]
    lemma = [
        (name, f"{measured.count:,}", str(each.increases), str(each.violations))
        + (number(each.least_slack),)
        for name, each in measured.lemma.items()
    ]
    rises = [bool((np.diff(losses) > 0).any()) for losses in measured.losses]
    steps = np.diff(measured.runaway)[1:]
    total = sum(each.increases for each in measured.lemma.values())
    return Report(
        [
            beside("Loss √(x² + 10⁻⁴) from 0.3, and the 2-cycle of 1.5·x²", rows),
            Table(
                "One step on random quadratics of both curvatures, 0 < ηL < 2",
                ("", "steps", "loss rises", "above the bound", "least slack"),
                lemma,
            ),
        ],
        [
            "It is often said that the loss of a convex function with gradients below "
            "G falls at each step if η ≤ C/G. On √(x² + 10⁻⁴) with η = C/G it rises "
            f"in {sum(rises)} of {len(rises)} runs; "
            f"{(~measured.is_clipped).sum()} of them never clip, since C ≥ G.",
            "What holds: for an L-smooth loss, convex or not, and ηL < 2 each step "
            "lowers it by at least ηs·n²·(1 − ηsL/2), with s the factor of the clip. "
            f"Here it rose {total} times.",
            f"With ηL = 3 the path ends in a 2-cycle of width {high - low:.2f} = ηC. "
            "A clip bounds the steps, not the path: on −x²/2 it runs away at "
            f"{steps.mean():.2f} per step.",
        ],
        _figure(measured.portrait),
    )


def _figure(portrait: ClippedDescent):
    starts = np.asarray(portrait.path[0])
    names = [f"from {start:.2f}" for start in starts]
    return plot_phase_portrait(
        dict(zip(names, np.asarray(portrait.path).T, strict=True)),
        dict(zip(names, np.asarray(portrait.gradients).T, strict=True)),
        1.0,
        cycles=portrait.two_cycles[:1],
        fixed_points=[0.0],
    )
