"""Figures that tests of `clipjax.plotting` share, and what is drawn in them."""

import pathlib
from types import SimpleNamespace

import numpy as np
from matplotlib.patches import Rectangle

from clipjax import plotting

DOCS = pathlib.Path(__file__).parent.parent / "docs"
STEPS = np.arange(50)
CALM = np.stack([4 * np.exp(-STEPS / 30), 5 * np.exp(-STEPS / 30)])
WILD = np.stack([4 * np.exp(STEPS / 5), 5 * np.exp(STEPS / 5)])
WILD[0, 30:] = np.nan
WILD[1, 40:] = np.inf


class History:
    """As `clipjax.monitoring` records it."""

    def __init__(self, **columns):
        self.columns = {
            name.replace("__", "/"): np.asarray(column)
            for name, column in columns.items()
        }

    def to_numpy(self):
        return self.columns


RECORDED = History(
    step=[10, 20, 30],
    loss=[3.0, 2.0, 1.0],
    clip__grad_norm_raw=[1.0, 8.0, np.inf],
    clip__grad_norm_clipped=[1.0, 2.0, 2.0],
    clip__clip_ratio=[1.0, 0.25, 0.0],
    clip__threshold=[2.0, 2.0, 2.0],
    clip__grad_norm_raw__kernel=[0.5, 8.0, np.inf],
    clip__grad_norm_raw__bias=[0.2, np.nan, 0.1],
)


def lines(figure, axes=0):
    """What is drawn, by the name in the legend."""
    return {
        str(line.get_label()): np.asarray(line.get_ydata(), np.float64)
        for line in figure.axes[axes].get_lines()
    }


def x_values(figure, label, axes=0):
    (line,) = (
        line for line in figure.axes[axes].get_lines() if line.get_label() == label
    )
    return np.asarray(line.get_xdata(), np.float64)


def first_line(figure):
    return np.array(figure.axes[0].get_lines()[0].get_data(), np.float64)


def crosses(figure):
    return [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in figure.axes[0].get_lines()
        if line.get_marker() == "x"
    ]


def entries(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def hatched(axes):
    """The corners and sizes of hatched patches."""
    return [
        (*patch.get_xy(), patch.get_width(), patch.get_height())
        for patch in axes.patches
        if isinstance(patch, Rectangle) and patch.get_hatch()
    ]


def mesh_of(axes):
    return np.ma.filled(axes.collections[0].get_array(), np.nan)


SPREAD = [
    SimpleNamespace(strategy="maximum", threshold=9.0, clipped_fraction=0.0),
    SimpleNamespace(strategy="q50", threshold=2.0, clipped_fraction=0.5),
    SimpleNamespace(strategy="none", threshold=np.inf, clipped_fraction=0.0),
]
CLOSE = [
    SimpleNamespace(strategy=f"mean + {k} σ", threshold=9 + k, clipped_fraction=0.01)
    for k in np.arange(0, 1, 0.1)
]
LINE = SimpleNamespace(l0=1.0, l1=-2.0, r2=0.25)
SIGMOID = 3 / (1 + np.exp(-STEPS / 5.0))
LONG = "encoder/layers_0/attention/query_with_a_long_name/kernel"
RATES, LIMITS = [1.0, 0.1, 0.01], [0.5, 1.0, 5.0, None, 25.0]
LOSSES = np.array([[0.1, 2.0, 3.0, 4.0, 0.5]] * 3) * [[1.0], [2.0], [0.5]]
LOSSES[0, 2:] = np.nan
LONG_ARMS = {"clip_by_global_norm(1.0)": CALM, "adaptive_grad_clip(0.01)": WILD}

FIGURES = {
    "loss": lambda **to: plotting.plot_loss(LONG_ARMS, window=7, **to),
    "norms": lambda **to: plotting.plot_norms(CALM, CALM / 2, 2.0, **to),
    "ratio": lambda **to: plotting.plot_clip_ratio(LONG_ARMS, **to),
    "threshold": lambda **to: plotting.plot_threshold(
        LONG_ARMS | {"none": np.full(9, np.inf)}, **to
    ),
    "distribution": lambda **to: plotting.plot_norm_distribution(
        CALM, [*SPREAD, *CLOSE], recommended="q50", **to
    ),
    "blocks": lambda **to: plotting.plot_block_norms(
        {f"{LONG}_{number}": WILD[1] for number in range(30)}, **to
    ),
    "smoothness": lambda **to: plotting.plot_smoothness(
        LONG_ARMS,
        LONG_ARMS,
        dict.fromkeys(LONG_ARMS, LINE),
        **to,
    ),
    "phase": lambda **to: plotting.plot_phase_portrait(
        CALM[0], SIGMOID * 1e3, 1.5, cycles=[1.0, 2.0], fixed_points=[1.5], **to
    ),
    "sweep": lambda **to: plotting.plot_sweep(LOSSES, RATES, LIMITS, **to),
    "wide sweep": lambda **to: plotting.plot_sweep(
        np.outer(CALM[0, :12], CALM[0, :15]), CALM[0, :12], CALM[0, :15], **to
    ),
    "scatter": lambda **to: plotting.plot_scatter(
        {LONG: np.stack([CALM, WILD], axis=-1), "lost": np.full((9, 2), np.nan)},
        outlines=CALM.T,
        x_label="x",
        y_label="y",
        title="Points",
        **to,
    ),
    "jacobian": lambda **to: plotting.plot_jacobian_norms(LONG_ARMS, **to),
    "adam": lambda **to: plotting.plot_adam_steps(LONG_ARMS, spike=9, **to),
    "adam and moment": lambda **to: plotting.plot_adam_steps(CALM, CALM**2, **to),
    "norms of four": lambda **to: plotting.plot_norms(
        {f"arm {number}": CALM * 10**number for number in range(4)}, **to
    ),
    "blocks of two": lambda **to: plotting.plot_block_norms(
        {"a": CALM, "b": WILD[:, :40]}, **to
    ),
}
PANELS = {"scatter": 2, "adam and moment": 2, "norms of four": 4, "blocks of two": 2}
