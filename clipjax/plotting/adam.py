"""Adam's second moment and effective step through a spike."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from .arms import Steps, Values, numbers, read_arms, read_companion
from .canvas import GREY, count_steps, log_axis, open_canvas
from .curves import draw_arms


def plot_adam_steps(
    effective_steps: Values,
    second_moments: Values | None = None,
    *,
    steps: Steps | None = None,
    axes: Any = None,
    spike: float | None = None,
) -> Figure:
    r"""Draw Adam's effective step, and below it the second moment that divides it.

    The effective step is $\eta / (\sqrt{\hat v} + \epsilon)$, the factor of each
    coordinate of the first moment. One spike raises $\hat v$ for about
    $1 / (1 - \beta_2)$ steps and shortens every step meanwhile; a clip before Adam
    limits that.

    Args:
        effective_steps: at each step, by arm if several (with and without a clip); of a
            history, the column ``effective_step``.
        second_moments: v̂, of the same shapes; of a history, the column
            ``second_moment``, which is also read from a history passed as
            ``effective_steps``. Without it there is one panel.
        steps: the x values.
        axes: the Axes to draw into, one per panel.
        spike: the x value to mark with a vertical line.

    Returns:
        The figure.

    Raises:
        TypeError: an argument does not contain real numbers.
        ValueError: arms or shapes differ between the arguments.

    Example:
        >>> arms = {"no clip": [1.0, 0.1], "clip": [1.0, 0.8]}
        >>> figure = plot_adam_steps(arms, spike=1)
        >>> figure.axes[0].get_yscale()
        'log'

    Source: Kingma and Ba, "Adam" (https://arxiv.org/abs/1412.6980), algorithm 1.
    """
    arms = read_arms("effective_steps", effective_steps, "effective_step", steps)
    moments = read_companion(
        "second_moments", second_moments, "second_moment", "effective_steps", arms
    )
    count = 2 if moments else 1
    canvas = open_canvas(count, axes, 2.6 if count == 1 else 2.0, is_shared=False)
    draw_arms(canvas.panels[0], arms)
    if moments:
        below = {name: arms[name]._replace(values=moments[name]) for name in moments}
        draw_arms(canvas.panels[1], below, order=list(arms))
    for panel in canvas.panels:
        if spike is not None:
            at = float(numbers("spike", "", spike))
            panel.axvline(at, color=GREY, linewidth=1, zorder=1, label="spike")
        count_steps(panel)
        log_axis([panel])
    canvas.label("step", "", "Adam through a spike")
    canvas.panels[0].set_ylabel(r"$\eta\,/\,(\sqrt{\hat v}+\epsilon)$")
    if moments:
        canvas.panels[1].set_ylabel(r"$\hat v$")
    canvas.legend()
    return canvas.figure
