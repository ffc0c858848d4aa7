"""Thresholds for cosh, a function with known constants L0 and L1."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ... import rules
from ...plotting import plot_lines
from ..options import Positive, Whole
from .arguments import require
from .base import Report, beside
from .paths import clipped_sgd, first_below, paths

ARRIVED = 1e-3  # a path has arrived when |L1·x| is below
CONSTANTS = ((0.02, 12.7), (0.5, 8.2), (0.8, 5.3), (10.0, 1.0))
REPORTED = ((None, "10"), ("6", "10"), ("8", "10"), ("65", "10"))


class Measured(NamedTuple):
    """Paths of L1·x on f(x) = (L0/L1²)·cosh(L1·x).

    f″ ≤ L0 + L1·|f′| everywhere, with equality at x = 0.

    Attributes:
        constants: `(4, 2)`, pairs L0, L1.
        inverse: soft clip with γ = 1/L1 and η = 1/L0, `(4, steps + 1)`.
        ratio: soft clip with γ = L0/L1 and η = 1/L0, `(4, steps + 1)`.
        halved: hard clip with γ = L0/L1 and η = 1/(2·L0), `(4, steps + 1)`.
    """

    constants: np.ndarray
    inverse: np.ndarray
    ratio: np.ndarray
    halved: np.ndarray


def measure(*, start: float = 6.0, steps: int = 2000) -> Measured:
    """Descend from x = start/L1 with three pairs of a threshold and a learning rate.

    Args:
        start: L1·x at the start.
        steps: of each path.
    """
    require(Positive(), start=start)
    require(Whole(), steps=steps)

    def scaled(l0: float, l1: float, rate: float, threshold: float, rule: rules.Rule):
        optimizer = clipped_sgd(rate, threshold, rule)
        found = paths(
            optimizer, lambda x: l0 / l1 * jnp.sinh(l1 * x), [start / l1], steps
        )
        return l1 * found[0]

    soft, hard = rules.soft, rules.hard
    return Measured(
        np.array(CONSTANTS),
        np.stack([scaled(l0, l1, 1 / l0, 1 / l1, soft) for l0, l1 in CONSTANTS]),
        np.stack([scaled(l0, l1, 1 / l0, l0 / l1, soft) for l0, l1 in CONSTANTS]),
        np.stack([scaled(l0, l1, 0.5 / l0, l0 / l1, hard) for l0, l1 in CONSTANTS]),
    )


def report(measured: Measured) -> Report:
    """Steps until |L1·x| < 1e-3 with each threshold, next to reported ones."""
    floor = 1e-6  # of the figure
    kinds = {
        "soft, γ = 1/L1": measured.inverse,
        "soft, γ = L0/L1": measured.ratio,
        "hard, γ = L0/L1, half the rate": measured.halved,
    }
    rows = [
        (
            f"L0 = {l0:g}, L1 = {l1:g}: {name}",
            None if which > 1 else REPORTED[index][which],
            first_below(np.abs(found[index]), ARRIVED),
        )
        for index, (l0, l1) in enumerate(measured.constants)
        for which, (name, found) in enumerate(kinds.items())
    ]
    rising = [
        f"{name} (L0 = {l0:g})"
        for name, found in kinds.items()
        for (l0, _), path in zip(measured.constants, found, strict=True)
        if (np.diff(np.abs(path)) > 1e-6).any()
    ]
    farthest = np.abs(measured.inverse).max(axis=1)
    same = np.ptp(measured.ratio, axis=0).max()
    never = ~np.isfinite(first_below(np.abs(measured.inverse), ARRIVED))
    return Report(
        [beside("cosh, steps until |L1·x| < 0.001 (inf: never)", rows)],
        [
            "γ has the units of a gradient and 1/L1 those of a parameter, so that "
            "γ = 1/L1 cannot be right in all units. The step 1/(L0 + L1·|g|) is a soft "
            "clip with γ = L0/L1 and η = 1/L0, for which ηγ = 1/L1.",
            f"With γ = L0/L1 the paths of L1·x are the same for all constants (they "
            f"differ by at most {same:.1e}).",
            "With γ = 1/L1 the path "
            + " and ".join(
                f"never arrives for L0 = {l0:g} (|L1·x| up to {far:.0f})"
                for (l0, _), far, lost in zip(
                    measured.constants, farthest, never, strict=True
                )
                if lost
            )
            + "."
            if never.any()
            else "With γ = 1/L1 all paths arrive, after different numbers of steps.",
            f"The loss rises at some step with: {', '.join(rising)}."
            if rising
            else "The loss never rises.",
        ],
        plot_lines(
            {
                **{
                    f"γ = 1/L1, L0 = {l0:g}": np.maximum(np.abs(path[:81]), floor)
                    for (l0, _), path in zip(
                        measured.constants, measured.inverse, strict=True
                    )
                },
                "γ = L0/L1, any L0": np.maximum(np.abs(measured.ratio[0, :81]), floor),
            },
            x_label="step",
            y_label="|L1·x|, at least 1e-6",
            title="Soft clip on cosh, η = 1/L0",
            is_log=(False, True),
            level=ARRIVED,
        ),
    )
