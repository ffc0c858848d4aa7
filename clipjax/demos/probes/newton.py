"""A clipped step and a Newton step on a badly conditioned quadratic."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...plotting import plot_lines
from ...recipes import scale_by_l0_l1
from ..options import Positive
from .arguments import require
from .base import Report, beside

ARRIVED = 1e-6  # of each coordinate, which starts at 1
MOST = 10_000_000
METHODS = ("gradient step 1/λmax", "soft clip, η = 1/λmax, γ = λmax", "Newton")


class Measured(NamedTuple):
    """Steps from (1, 1) until both coordinates are at most 10⁻⁶.

    Attributes:
        conditions: `(conditions,)`, λmax/λmin, with λmin = 1.
        steps: `(3, conditions)`: of gradient descent with the step 1/λmax, of the soft
            clip, and of Newton's method.
        theory: `(conditions,)`, the steps that the slow coordinate takes at least,
            ln(10⁻⁶) / ln(1 − λmin/λmax).
    """

    conditions: np.ndarray
    steps: np.ndarray
    theory: np.ndarray


def measure(*, condition: float = 1e4) -> Measured:
    """Count steps on (x² + κ·y²)/2 for κ = 1, 10, … up to the condition.

    Args:
        condition: the largest condition number κ, at least 10.
    """
    require(Positive(), condition=condition)
    if condition < 10:
        raise ValueError(f"condition must be at least 10, got {condition!r}")
    conditions = 10.0 ** np.arange(np.floor(np.log10(condition)) + 1)
    # Steps of 1e-4 of a coordinate add up to the rounding of float32.
    with jax.enable_x64(True):
        steps = np.array([_count(kappa) for kappa in conditions.tolist()]).T
    # The first is 0/0 for κ = 1: one step suffices.
    rates = np.log1p(-1 / conditions[1:])
    theory = np.append(1.0, np.ceil(np.log(ARRIVED) / rates))
    return Measured(conditions, steps, theory)


def _count(condition: float) -> list[int]:
    curvatures = jnp.array([1.0, condition], jnp.float64)
    # L1 = 1 is the soft clip with γ = L0/L1 = λmax and the learning rate 1/λmax.
    clip = scale_by_l0_l1(condition, 1.0)

    def soft(gradient: jax.Array) -> jax.Array:
        return jnp.asarray(clip.update(gradient, clip.init(gradient))[0])

    return [
        _until_arrived(curvatures, lambda gradient: gradient / condition),
        _until_arrived(curvatures, soft),
        _until_arrived(curvatures, lambda gradient: gradient / curvatures),
    ]


def _until_arrived(
    curvatures: jax.Array, step: Callable[[jax.Array], jax.Array]
) -> int:
    start = jnp.ones_like(curvatures)

    def is_away(carry: tuple) -> jax.Array:
        return (jnp.abs(carry[0]).max() > ARRIVED) & (carry[1] < MOST)

    def go_on(carry: tuple) -> tuple:
        point, count = carry
        return point - step(curvatures * point), count + 1

    return int(jax.jit(lambda x: jax.lax.while_loop(is_away, go_on, (x, 0)))(start)[1])


def report(measured: Measured) -> Report:
    """Steps at the largest condition number, next to reported ones."""
    largest = measured.conditions[-1]
    is_reported = largest == 1e4
    reported = ("138149" if is_reported else None, None, "1" if is_reported else None)
    last = measured.steps[:, -1]
    rows = [
        *zip(METHODS, reported, last, strict=True),
        ("theory of the slow coordinate", None, measured.theory[-1]),
    ]
    soft, newton = last[1:]
    return Report(
        [
            beside(
                f"Steps until both coordinates are at most 10⁻⁶, κ = {largest:g}", rows
            )
        ],
        [
            "A soft clip multiplies the whole gradient by one number: it does not "
            "precondition, and is not a diagonal Newton step. "
            f"At κ = {largest:g} it takes {soft:,} steps where Newton's method takes "
            f"{newton}.",
        ],
        plot_lines(
            dict(zip(METHODS, measured.steps.astype(float), strict=True)),
            measured.conditions,
            x_label="condition number κ",
            y_label="steps to 10⁻⁶",
            title="Quadratic (x² + κ·y²)/2",
            is_log=(True, True),
        ),
    )
