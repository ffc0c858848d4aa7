"""Gradient descent on θ⁴, whose curvature grows with its gradient."""

from typing import NamedTuple

import numpy as np
import optax

from ... import rules
from ...plotting import plot_lines
from ...recipes import scale_by_l0_l1
from ..options import Whole
from .arguments import require
from .base import Report, beside
from .paths import (
    Gradient,
    Tuned,
    clipped_sgd,
    first_below,
    paths,
    tune,
)

START = 5.0
ARRIVED = 0.1  # a path has arrived when |θ| is below
L1 = np.array([0.25, 0.5, 1, 2, 4, 8])
OPTIMIZERS = {
    "no clip, η = 0.01": clipped_sgd(0.01),
    "no clip, η = 7.16e-5": clipped_sgd(7.16e-5),
    "hard clip, η = 0.1, γ = 1": clipped_sgd(0.1, 1.0),
    "soft clip, η = 0.1, γ = 1": clipped_sgd(0.1, 1.0, rules.soft),
}
REPORTED_TUNED = {"no clip": "1400", "hard clip": "11", "soft clip": "7"}
REPORTED_THEORY = ("3195", "797", "201", "57", "30", "42")


class Measured(NamedTuple):
    """Paths from θ = 5, and the best settings for all starts from 3 to 7.

    Attributes:
        paths: by optimizer, θ at each step, `(steps + 1,)`.
        diverging: θ with a learning rate of 0.1 and no clip, `(4,)`.
        l1: `(6,)`, the L1 of the steps 1 / (16/L1² + L1·|g|).
        theory: θ with those steps, `(6, steps + 1)`.
        tuned: by kind of clip, the best settings of a grid.
        tuned_paths: with those settings |θ| from each start, `(starts, points)`.
    """

    paths: dict[str, np.ndarray]
    diverging: np.ndarray
    l1: np.ndarray
    theory: np.ndarray
    tuned: dict[str, Tuned]
    tuned_paths: dict[str, np.ndarray]


def gradient(theta):
    """The derivative of θ⁴."""
    return 4 * theta**3


def measure(*, steps: int = 3500, starts: int = 41, grid: int = 61) -> Measured:
    """Descend with the settings of the source, with tuned ones, and by theory.

    Args:
        steps: of each path from θ = 5.
        starts: evenly spaced from 3 to 7, for the tuned settings.
        grid: learning rates, and thresholds, that are tried.
    """
    require(Whole(lowest=1000), steps=steps)
    require(Whole(), starts=starts, grid=grid)

    def from_start(optimizer: optax.GradientTransformation, steps: int) -> np.ndarray:
        return paths(optimizer, gradient, [START], steps)[0]

    theory = [
        optax.chain(scale_by_l0_l1(16 / l1**2, l1), optax.scale(-1.0))
        for l1 in L1.tolist()
    ]
    several = np.linspace(3.0, 7.0, starts)
    tuned = tune_all(gradient, several, grid=grid, steps=2000)
    return Measured(
        {name: from_start(each, steps) for name, each in OPTIMIZERS.items()},
        from_start(clipped_sgd(0.1), 3),
        L1,
        np.stack([from_start(optimizer, steps) for optimizer in theory]),
        tuned,
        {
            name: np.abs(paths(optimizer_of(name, best), gradient, several, 2000))
            for name, best in tuned.items()
        },
    )


def tune_all(
    gradient: Gradient, starts: np.ndarray, *, grid: int, steps: int
) -> dict[str, Tuned]:
    """The best common settings without a clip, with a hard and with a soft one.

    Without a clip the grid of learning rates is four times as fine.
    """
    wide = np.geomspace(1e-3, 1e3, grid)
    none = tune(
        gradient,
        starts,
        rates=np.geomspace(1e-3, 1e3, 4 * (grid - 1) + 1),
        thresholds=np.array([np.inf]),
        limit=ARRIVED,
        steps=steps,
    )
    clips = {
        name: tune(
            gradient,
            starts,
            rates=wide,
            # Without the infinite threshold a clip could not do as well as none.
            thresholds=np.append(wide, np.inf) if rule is rules.hard else wide,
            rule=rule,
            limit=ARRIVED,
            steps=min(steps, 400),
        )
        for name, rule in (("hard clip", rules.hard), ("soft clip", rules.soft))
    }
    return {"no clip": none, **clips}


def optimizer_of(name: str, best: Tuned) -> optax.GradientTransformation:
    """The optimizer with the best settings of a kind of clip."""
    rule = rules.soft if name == "soft clip" else rules.hard
    return clipped_sgd(best.rate, best.threshold, rule)


def log_log_slope(theta: np.ndarray) -> tuple[float, float]:
    """The slope of log|θ| against log(step), and R², once |θ| is below the limit."""
    first = int(first_below(np.abs(theta), ARRIVED))
    steps = np.arange(first, len(theta))
    x, y = np.log(steps), np.log(np.abs(theta[first:]))
    line = np.polynomial.Polynomial.fit(x, y, 1)
    return float(line.convert().coef[1]), float(1 - np.var(y - line(x)) / np.var(y))


def report(measured: Measured) -> Report:
    """Steps until |θ| < 0.1 next to reported ones, and the shape of the tail."""
    fixed, slow, hard, soft = measured.paths.values()
    rows = []
    for name, path, arrived, middle, end in (
        ("no clip, η = 0.01", fixed, "1", None, None),
        ("no clip, η = 7.16e-5", slow, None, None, "3.2"),
        ("hard clip, η = 0.1, γ = 1", hard, "163", "0.347", "0.142"),
        ("soft clip, η = 0.1, γ = 1", soft, "172", "0.480", None),
    ):
        rows.append((f"{name}: steps", arrived, first_below(np.abs(path), ARRIVED)))
        for step, said in ((50, middle), (100, end)):
            rows += [(f"{name}: θ at step {step}", said, path[step])] if said else []
    rows.append(("no clip, η = 0.1: θ at step 3", "-1.9e13", measured.diverging[3]))
    slope, r2 = log_log_slope(hard[:1001])
    rows += [
        ("hard clip, tail to step 1,000: log-log slope of θ", "-0.55", slope),
        ("R² of that line", "0.99", r2),
    ]
    late, _ = log_log_slope(hard)
    arrived = first_below(np.abs(measured.theory), ARRIVED)
    theory = [
        (f"L1 = {l1:g}", said, steps)
        for l1, said, steps in zip(measured.l1, REPORTED_THEORY, arrived, strict=True)
    ]
    tuned = [
        (
            f"{name}, η = {best.rate:.3g}"
            + ("" if np.isinf(best.threshold) else f", γ = {best.threshold:.3g}"),
            REPORTED_TUNED[name],
            best.steps,
        )
        for name, best in measured.tuned.items()
    ]
    falls = bool((np.diff(measured.theory**4, axis=1) <= 0).all())
    none, *clips = (best.steps for best in measured.tuned.values())
    return Report(
        [
            beside("θ⁴ from θ = 5, steps until |θ| < 0.1", rows),
            beside("Steps of size 1 / (16/L1² + L1·|g|) from θ = 5", theory),
            beside("Best common settings for all starts from 3 to 7: steps", tuned),
        ],
        [
            "θ⁴ is convex, and 12θ² ≤ 16/L1² + L1·|4θ³| for every L1 > 0.",
            "From θ = 5 a learning rate of 0.01 goes to the minimum in one step, by "
            f"chance: 0.01·4·5³ = 5. Elsewhere it does not: for all starts from 3 to 7 "
            f"the best common learning rate needs {none:.0f} steps without a clip, and "
            f"the best common pair with one {min(clips):.0f}. A coarser grid finds "
            "fewer good pairs, so these counts depend on the grid.",
            f"The tail is a power law, θ ≈ (8ηk)^(-1/2): the slope of log θ against "
            f"log k is {slope:.2f} to step 1,000, and {late:.2f} to the last step. "
            "A line through the loss on a logarithmic axis is not straight.",
            "With the steps of the theory the loss "
            + ("never rises." if falls else "rises at some step."),
        ],
        _figure(measured),
    )


def _figure(measured: Measured):
    names = [
        f"{name}, η = {best.rate:.3g}"
        + ("" if np.isinf(best.threshold) else f", γ = {best.threshold:.3g}")
        for name, best in measured.tuned.items()
    ]
    arms = {
        name: path[:, 1:].max(axis=0)
        for name, path in zip(names, measured.tuned_paths.values(), strict=True)
    }
    source = "hard clip, η = 0.1, γ = 1"
    arms[f"{source}, from 5"] = np.abs(measured.paths[source])[1:2001]
    return plot_lines(
        arms,
        np.arange(1, 2001),
        x_label="step",
        y_label="|θ|",
        title="θ⁴, slowest start from 3 to 7",
        is_log=(True, True),
        level=ARRIVED,
    )
