"""One line about a history, for a log."""

from __future__ import annotations

import numpy as np

from .history import History


def log_line(history: History, *, name: str | None = None) -> str:
    """Return a one-line summary of a clip over the rows of a history.

    | part | meaning |
    |---|---|
    | ``step`` | the last step |
    | ``norm p50, p90, p99`` | quantiles of the norm before the clip, over finite steps,
      by linear interpolation |
    | ``clipped`` | percent of the rows in which the clip changed anything |
    | ``non-finite`` | number of steps with NaN or inf since the run began |
    | ``threshold`` | the threshold of the last row |

    Parts whose columns are missing are left out; without finite norms the quantiles
    are ``nan``.

    Args:
        history: the rows to summarize, such as ``recorder.fetched.last(1000)``.
        name: the clip's name; None for the first clip in the history.

    Raises:
        ValueError: the history has no clip of that name.

    Example:
        >>> from clipjax.monitoring import History, log_line
        >>> columns = {"step": [0, 1, 2], "clip/grad_norm_raw": [1.0, 2.0, 5.0]}
        >>> print(log_line(History(columns)))
        step 2 | norm p50 2, p90 4.4, p99 4.94
    """
    if not len(history):
        return "no steps yet"
    clip = _clip_name(history, name)
    parts = [f"step {history.steps[-1]}"]
    if clip is None:
        return f"{parts[0]} | no clip"
    norms = history[f"{clip}/grad_norm_raw"]
    norms = norms[np.isfinite(norms)]
    quantiles = [np.nan] * 3 if not norms.size else np.quantile(norms, (0.5, 0.9, 0.99))
    named = zip(("p50", "p90", "p99"), quantiles, strict=True)
    parts.append("norm " + ", ".join(f"{key} {value:.3g}" for key, value in named))
    for key, template in (
        ("clipped_fraction", "clipped {:.1f} %"),
        ("nonfinite_count", "non-finite {:.0f}"),
        ("threshold", "threshold {:.3g}"),
    ):
        if f"{clip}/{key}" not in history:
            continue
        values = history[f"{clip}/{key}"]
        values = values[~np.isnan(values)]
        if key == "clipped_fraction":
            values = 100 * np.mean(values > 0, keepdims=True)
        parts += [template.format(value) for value in values[-1:]]
    return " | ".join(parts)


def _clip_name(history: History, name: str | None) -> str | None:
    """Return the name of the clip to report; None if there is no clip at all."""
    suffix = "/grad_norm_raw"
    clips = [key.removesuffix(suffix) for key in history.keys if key.endswith(suffix)]
    if name is None:
        return clips[0] if clips else None
    if name not in clips:
        raise ValueError(
            f"name must be that of a clip in the history, got {name!r}; it has "
            f"{', '.join(clips) or 'none'}"
        )
    return name
