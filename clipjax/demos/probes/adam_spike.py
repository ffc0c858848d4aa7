"""Adam through one spike of the gradient, with and without a clip before it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import clipjax
from clipjax.diagnostics import adam_trace

from ...plotting import plot_adam_steps
from ..options import Positive, Whole
from .arguments import require
from .base import Report, beside, number

LATER = (0, 100, 1000, 5000)  # steps after the spike that are reported


class Measured(NamedTuple):
    """Adam at learning rate 1; arrays of shape `(steps,)`.

    Attributes:
        spike_at: index of the step of the spike.
        spike: its gradient; all others are 1.
        threshold: of the clip.
        update: size of the change of the parameter without a clip.
        effective_step: 1 / (√v̂ + ε) without a clip.
        second_moment: v̂ without a clip.
        clipped_update: the same three with the clip before Adam.
        clipped_effective_step: see above.
        clipped_second_moment: see above.
    """

    spike_at: int
    spike: float
    threshold: float
    update: np.ndarray
    effective_step: np.ndarray
    second_moment: np.ndarray
    clipped_update: np.ndarray
    clipped_effective_step: np.ndarray
    clipped_second_moment: np.ndarray


def measure(
    *, spike: float = 1000.0, spike_at: int = 1000, threshold: float = 2.0
) -> Measured:
    """Run Adam over gradients of 1 with one spike.

    Args:
        spike: the gradient of one step.
        spike_at: which step, counted from 0.
        threshold: of the clip by global norm.
    """
    require(Positive(), spike=spike, threshold=threshold)
    require(Whole(1_000_000), spike_at=spike_at)
    gradients = jnp.ones(spike_at + LATER[-1] + 1).at[spike_at].set(spike)
    traces = [
        adam_trace(gradients, clip)
        for clip in (None, clipjax.clip_by_global_norm(threshold))
    ]
    arrays = [
        np.asarray(array)
        for trace in traces
        for array in (-trace.update, trace.effective_step, trace.second_moment)
    ]
    return Measured(spike_at, float(spike), float(threshold), *arrays)


def report(measured: Measured) -> Report:
    """The updates after the spike next to reported ones, and how long it lasts."""
    at = measured.spike_at
    arms = (
        ("no clip", measured.update, ("2.5", ".027", ".048", ".36")),
        (
            f"clip at {measured.threshold:g}",
            measured.clipped_update,
            ("1.10", "1.00", "1.00", "1.00"),
        ),
    )
    is_reported = (at, measured.spike, measured.threshold) == (1000, 1000.0, 2.0)
    rows = [
        (f"{name}, spike + {later}", said if is_reported else None, update[at + later])
        for name, update, reported in arms
        for later, said in zip(LATER, reported, strict=True)
    ]
    lost = [_steps_below_half(update[at:]) for _, update, _ in arms]
    name = f"clip at {measured.threshold:g}"
    figure = plot_adam_steps(
        {"no clip": measured.effective_step, name: measured.clipped_effective_step},
        {"no clip": measured.second_moment, name: measured.clipped_second_moment},
        spike=at,
    )
    title = "Adam's update per learning rate; it is 1 before the spike"
    return Report(
        [beside(title, rows)],
        [
            f"Without a clip the update is below half of its size before the spike in "
            f"{lost[0]} of the {LATER[-1]} steps after it; with the clip, in "
            f"{lost[1]}.",
            f"The spike's own update is {number(measured.update[at])} times the one "
            f"before without a clip and {number(measured.clipped_update[at])} with it, "
            "because the first moment forgets in about 10 steps and the second in "
            "about 1,000.",
        ],
        figure,
    )


def _steps_below_half(update: np.ndarray) -> int:
    return int((update[1:] < 0.5).sum())
