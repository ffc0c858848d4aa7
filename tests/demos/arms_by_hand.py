"""Finished arms of a comparison, whose losses are made by hand."""

import numpy as np

from clipjax.demos.compare import Result

STEPS = 40  # a window of two steps


def result(label, losses, norms=None, clipped=0.5, rate=0.1):
    losses = np.asarray(losses, np.float64)
    norms = np.full(losses.shape, 2.0) if norms is None else np.asarray(norms)
    return Result(
        label=label,
        learning_rate=rate,
        log={
            "loss": losses,
            "grad_norm_raw": norms,
            "grad_norm_clipped": norms * clipped,
            "clip_ratio": np.full(losses.shape, clipped),
            "threshold": np.ones(losses.shape),
            "clipped_fraction": np.full(losses.shape, float(clipped < 1)),
        },
        held_out={"held-out loss": losses[:, -1]},
        seconds_per_step=np.full(len(losses), 0.01),
        score_steps=np.array([STEPS]),
        scores={"held-out loss": losses[:, -1:]},
        outcome={},
    )


def falling(start=5.0, stop=1.0):
    return np.linspace(start, stop, STEPS)
