"""Figures of clipped training, one per diagnostic.

Every function returns a `matplotlib.figure.Figure`; pyplot and its global state are not
involved. Text is at least 10 pixels tall where a figure is shown 360 pixels wide, and
no information is conveyed by color alone. Arguments that all functions share:

| argument | accepted |
|---|---|
| values | an array ``(steps,)`` or ``(seeds, steps)``, or a history, or a mapping from
  the name of an arm to either |
| ``steps`` | the x values, ``(steps,)``, for all arms or by arm; by default the column
  ``step`` of a history, or 0, 1, 2, … |
| ``axes`` | the Axes to draw into, one or a sequence with one per panel; the figure
  that is returned is then theirs |

A history is any object whose ``to_numpy()`` returns a mapping from the name of a column
to an array with one entry per record, such as that of ``clipjax.monitoring``. Columns
are found with or without the name of a clip: ``grad_norm_raw`` or
``clip/grad_norm_raw``. Records that lack a column, and have NaN there, are left out.
Lines are medians over seeds, bands reach from the lowest to the
highest seed. Arms may have different lengths.

Importing this module without matplotlib raises ModuleNotFoundError, so that its absence
is noticed before a training and not after it: ``pip install 'clipjax[plot]'``.
"""

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    message = "clipjax.plotting needs matplotlib: pip install 'clipjax[plot]'"
    raise ModuleNotFoundError(message, name="matplotlib") from error

from .adam import plot_adam_steps as plot_adam_steps
from .blocks import plot_block_norms as plot_block_norms
from .curves import running_mean as running_mean
from .descent import plot_phase_portrait as plot_phase_portrait
from .distribution import plot_norm_distribution as plot_norm_distribution
from .jacobians import plot_jacobian_norms as plot_jacobian_norms
from .lines import plot_lines as plot_lines
from .scatter import plot_scatter as plot_scatter
from .smoothness import plot_smoothness as plot_smoothness
from .sweep import plot_sweep as plot_sweep
from .training import plot_clip_ratio as plot_clip_ratio
from .training import plot_loss as plot_loss
from .training import plot_norms as plot_norms
from .training import plot_threshold as plot_threshold
