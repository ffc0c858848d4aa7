"""The step 1/ℓ(|g|) for a user-defined smoothness ℓ, as a user-defined rule.

`EllStep` is a complete rule; copy it, and pass it to `clipjax.clip_by`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...core.clip import clip_by
from ...diagnostics import least_l0
from ...plotting import plot_lines
from ...recipes import scale_by_l0_l1
from ...rules import Rule
from ..options import Whole
from .arguments import require
from .base import Report, Table, number
from .paths import clipped_sgd, first_below, paths

ARRIVED = 0.1  # a path has arrived when the minimum is closer
L1 = 2.0


@dataclasses.dataclass(frozen=True, repr=False)
class EllStep(Rule):
    """Scale a gradient of norm n to the length c·n/ℓ(n), for the threshold c.

    With c = 1 this is the step of a function whose Hessian satisfies ‖∇²f‖ ≤ ℓ(‖∇f‖).

    Attributes:
        ell: the smoothness, in gradient per parameter, positive for n > 0.
    """

    ell: Callable[[jax.Array], jax.Array]
    contractive = False
    bounded = False

    def length(self, norm: jax.Array, threshold: jax.Array) -> jax.Array:
        return threshold * norm / self.ell(norm)


def scale_by_ell(
    ell: Callable[[jax.Array], jax.Array],
) -> optax.GradientTransformation:
    """Descend with the step 1/ℓ(‖g‖)."""
    return optax.chain(clip_by(1.0, rule=EllStep(ell)), optax.scale(-1.0))


class Function(NamedTuple):
    """A convex function of one variable.

    Attributes:
        value: the function.
        minimum: where it is least.
        ell: the least ℓ with f″ ≤ ℓ(|f′|).
        text: that ℓ in words.
        starts: where paths start.
        interval: on which L0 is sought for L1.
        longer: a longer one.
    """

    value: Callable[[jax.Array], jax.Array]
    minimum: float
    ell: Callable[[jax.Array], jax.Array]
    text: str
    starts: tuple[float, ...]
    interval: tuple[float, float]
    longer: tuple[float, float]


FUNCTIONS = {
    "x⁴": Function(
        lambda x: x**4,
        0.0,
        lambda n: 12 * (n / 4) ** (2 / 3),
        "12·(n/4)^(2/3)",
        (-7.0, 0.5, 3.0, 5.0),
        (-10.0, 10.0),
        (-100.0, 100.0),
    ),
    "cosh x": Function(
        jnp.cosh,
        0.0,
        lambda n: jnp.sqrt(1 + n**2),
        "√(1 + n²)",
        (-8.0, 0.5, 3.0, 6.0),
        (-10.0, 10.0),
        (-40.0, 40.0),
    ),
    "x − log x": Function(
        lambda x: x - jnp.log(x),
        1.0,
        lambda n: (1 + n) ** 2,
        "(1 + n)²",
        (0.01, 0.1, 0.5, 3.0),
        (0.01, 10.0),
        (0.001, 10.0),
    ),
}


class Measured(NamedTuple):
    """Distances from the minimum, with three kinds of step.

    Attributes:
        ell: by function, with the step 1/ℓ(|f′|), `(starts, steps + 1)`.
        l0_l1: by function, with 1/(L0 + L1·|f′|), `(starts, steps + 1)`.
        fixed: by function, with 1 / max f″ over the interval, `(starts, steps + 1)`.
        l0: by function, the least L0 for L1 = 2 on the interval and on the longer
            one, `(2,)`.
        falls: by function, whether f falls at every step 1/ℓ.
    """

    ell: dict[str, np.ndarray]
    l0_l1: dict[str, np.ndarray]
    fixed: dict[str, np.ndarray]
    l0: dict[str, np.ndarray]
    falls: dict[str, bool]


def measure(*, steps: int = 2000) -> Measured:
    """Descend on functions whose curvature is bounded by a function of the slope.

    Args:
        steps: of each path.
    """
    require(Whole(), steps=steps)
    found = Measured({}, {}, {}, {}, {})
    for name, function in FUNCTIONS.items():
        gradient = jax.grad(function.value)
        constants = [
            float(least_l0(function.value, L1, ends).l0)
            for ends in (function.interval, function.longer)
        ]

        def distances(optimizer: optax.GradientTransformation) -> np.ndarray:
            points = paths(optimizer, gradient, function.starts, steps)  # noqa: B023
            return np.abs(points - function.minimum)  # noqa: B023

        theory = optax.chain(scale_by_l0_l1(constants[0], L1), optax.scale(-1.0))
        steepest = float(least_l0(function.value, 0.0, function.interval).l0)
        found.ell[name] = distances(scale_by_ell(function.ell))
        found.l0_l1[name] = distances(theory)
        found.fixed[name] = distances(clipped_sgd(1 / steepest))
        found.l0[name] = np.array(constants)
        points = paths(scale_by_ell(function.ell), gradient, function.starts, steps)
        values = np.asarray(function.value(jnp.asarray(points)))
        rounding = 1e-6 * np.abs(values[:, :-1])
        found.falls[name] = bool((np.diff(values, axis=1) <= rounding).all())
    return found


def report(measured: Measured) -> Report:
    """Steps until the distance is below 0.1, of the slowest start."""
    rows = []
    for name, function in FUNCTIONS.items():
        kinds = (measured.ell, measured.l0_l1, measured.fixed)
        slowest = [first_below(kind[name], ARRIVED).max() for kind in kinds]
        narrow, wide = measured.l0[name]
        rows.append(
            (name, function.text, *map(number, slowest), number(narrow), number(wide))
        )
    falling = [name for name, falls in measured.falls.items() if falls]
    growing = [name for name, l0 in measured.l0.items() if l0[1] > 2 * l0[0]]
    return Report(
        [
            Table(
                "Steps to 0.1 from the minimum, slowest start (inf: more than tried)",
                (
                    "f",
                    "ℓ(n)",
                    "1/ℓ(n)",
                    "1/(L0 + L1·n)",
                    "1/max f″",
                    "L0 for L1 = 2",
                    "on a longer interval",
                ),
                rows,
            )
        ],
        [
            "ℓ bounds the change of the gradient per length of a step: "
            "|∇f(y) − ∇f(x)| ≤ ℓ(|∇f(x)|)·|y − x|, to first order in the step. "
            "Without the factor |y − x| the units of both sides differ.",
            f"With the step 1/ℓ the loss falls at every step on {', '.join(falling)}."
            if falling
            else "With the step 1/ℓ the loss rises at some step of each function.",
            "In one dimension, with the least ℓ of a convex function, 1/ℓ is close to "
            "Newton's step; in more dimensions it is one number for all directions.",
            f"No L0 suffices on all of the domain of {', '.join(growing)} for L1 = 2: "
            "it grows with the interval."
            if growing
            else "The L0 for L1 = 2 does not grow with the interval.",
            "The analysis of such functions is in Li et al., 2023, "
            "https://arxiv.org/abs/2306.01264.",
        ],
        _figure(measured),
    )


def _figure(measured: Measured):
    arms = {}
    for name in FUNCTIONS:
        for label, kind in (("1/ℓ", measured.ell), ("L0, L1", measured.l0_l1)):
            arms[f"{name}: {label}"] = np.maximum(
                kind[name][:, 1:301].max(axis=0), 1e-3
            )
    return plot_lines(
        arms,
        np.arange(1, len(next(iter(arms.values()))) + 1),
        x_label="step",
        y_label="distance, at least 0.001",
        title="Steps 1/ℓ(|g|), slowest start",
        is_log=(True, True),
        level=ARRIVED,
    )
