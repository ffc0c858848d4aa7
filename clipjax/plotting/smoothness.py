"""Local smoothness against the gradient norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure

from .arms import Values, by_name, of_arm, read_arms, read_companion
from .canvas import open_canvas, style_of


class Fit(Protocol):
    """A line through smoothness against norm, and how much of the variance it has."""

    @property
    def l0(self) -> Any: ...
    @property
    def l1(self) -> Any: ...
    @property
    def r2(self) -> Any: ...


def plot_smoothness(
    norms: Values,
    smoothness: Values,
    fit: Fit | Mapping[str, Fit] | None = None,
    *,
    axes: Any = None,
) -> Figure:
    r"""Draw the local smoothness along a run against the gradient norm.

    With a fit, the figure also shows the line $L = L_0 + L_1 \lVert g \rVert$, and the
    legend its R²: a line can be fitted to any points, and only R² shows whether it
    describes them.

    Args:
        norms: gradient norm at each probe, by arm if several; of a history, the column
            ``grad_norm_raw``.
        smoothness: local smoothness there, of the same shapes; of a history, the column
            ``smoothness``. Points that are not finite are left out.
        fit: an object with ``l0``, ``l1`` and ``r2``, by arm if several.
        axes: the Axes to draw into.

    Returns:
        The figure.

    Raises:
        TypeError: an argument does not contain real numbers, or a fit lacks an
            attribute.
        ValueError: arms or shapes differ between the arguments.

    Example:
        >>> from types import SimpleNamespace
        >>> line = SimpleNamespace(l0=1.0, l1=2.0, r2=1.0)
        >>> figure = plot_smoothness([0.0, 1.0, 2.0], [1.0, 3.0, 5.0], line)
        >>> figure.axes[0].get_lines()[-1].get_label()
        'L = 1 + 2 ‖g‖, R² = 1.00'

    Source: the fit of Zhang et al., "Why gradient clipping accelerates training"
    (https://arxiv.org/abs/1905.11881), section 2.
    """
    arms = read_arms("norms", norms, "grad_norm_raw")
    values = read_companion("smoothness", smoothness, "smoothness", "norms", arms)
    fits = {} if fit is None else by_name("fit", fit)
    for name in fits:
        if name not in arms:
            known = ", ".join(map(repr, arms)) if any(arms) else "one array"
            raise ValueError(f"{of_arm('fit', name)} has no norms; norms has {known}")
    canvas = open_canvas(1, axes, 2.8)
    (panel,) = canvas.panels
    for index, (name, arm) in enumerate(arms.items()):
        style = style_of(index)
        x, y = arm.values.ravel(), values[name].ravel()
        finite = np.isfinite(x) & np.isfinite(y)
        points = {"markersize": 4, "alpha": 0.6, "color": style.color}
        label = name or ("probes" if fits else "")
        marks = panel.plot(x[finite], y[finite], style.marker, label=label, **points)
        marks[0].set_markeredgewidth(0)
        if name in fits and finite.any():
            line = fits[name]
            l0, l1, r2 = _constants(of_arm("fit", name), line)
            sign = "−" if l1 < 0 else "+"
            equation = f"L = {l0:.3g} {sign} {abs(l1):.3g} ‖g‖, R² = {r2:.2f}"
            ends = np.array([0.0, x[finite].max()])
            panel.plot(
                ends,
                l0 + l1 * ends,
                color=style.color if len(arms) > 1 else "#D55E00",
                linestyle=style.dash,
                linewidth=1.6,
                label=f"{name}\n{equation}" if name else equation,
            )
    canvas.label(
        "gradient norm ‖g‖",
        "local smoothness L",
        "Local smoothness against gradient norm",
    )
    canvas.legend()
    return canvas.figure


def _constants(argument: str, fit: Any) -> tuple[float, float, float]:
    missing = [name for name in ("l0", "l1", "r2") if not hasattr(fit, name)]
    if missing:
        kind = type(fit).__name__
        raise TypeError(f"{argument} must have l0, l1 and r2; got {kind}")
    return float(fit.l0), float(fit.l1), float(fit.r2)
