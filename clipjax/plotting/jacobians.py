"""The norm of a product of Jacobians against the number of factors."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from .arms import Steps, Values, read_arms
from .canvas import GREY, count_steps, log_axis, open_canvas
from .curves import draw_arms


def plot_jacobian_norms(
    norms: Values,
    *,
    steps: Steps | None = None,
    axes: Any = None,
    factor: str = "step",
) -> Figure:
    r"""Draw the norm of a product of Jacobians as factors are added.

    The y axis is $\lVert J_k \cdots J_1 \rVert$ on a logarithmic axis, where a constant
    growth factor is a straight line. A line marks 1: gradients explode where a curve
    rises above it without end, and vanish where it falls.

    Args:
        norms: norm of the product up to each factor, by arm if several; of a history,
            the column ``jacobian_norm``. Zeros and values that are not finite are not
            drawn; a cross marks where a curve stops being finite.
        steps: the x values, by default 1, 2, 3, …: the number of factors.
        axes: the Axes to draw into.
        factor: what a factor is, such as "time step" or "layer".

    Returns:
        The figure.

    Raises:
        TypeError: norms are not real numbers.
        ValueError: an arm has another shape, or another number of steps than ``steps``.

    Example:
        >>> figure = plot_jacobian_norms([1.2, 1.44, 1.728], factor="layer")
        >>> figure.axes[0].get_lines()[0].get_xdata()
        array([1, 2, 3])
    """
    arms = read_arms("norms", norms, "jacobian_norm", steps)
    if steps is None:
        arms = {
            name: arm if arm.columns else arm._replace(steps=arm.steps + 1)
            for name, arm in arms.items()
        }
    canvas = open_canvas(1, axes, 2.6)
    (panel,) = canvas.panels
    draw_arms(panel, arms)
    count_steps(panel)
    log_axis(canvas.panels)
    panel.axhline(1, color=GREY, linewidth=1, zorder=1)
    canvas.label(
        factor,
        "norm of the product",
        "Growth through a product of Jacobians",
    )
    canvas.legend()
    return canvas.figure
