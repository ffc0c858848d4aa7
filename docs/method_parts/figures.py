"""Draws length out against norm in, and the threshold's path over a spike."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import clipjax
from clipjax.plotting.canvas import COLORS, GREY, LABEL, TEXT, plain_number

from .scenes import SCENES, Scene, make

SIZE = (3.5, 2.9)  # 336 pixels wide: two beside each other on a page, one on a phone
STEPS, SPIKE, HEIGHT, SPREAD = 200, 120, 100.0, 0.2
BLUE, ORANGE = COLORS[2], COLORS[1]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "clipjax",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "path.simplify_threshold": 0.4,
}


def draw(name: str, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws the figures of a recipe, the second only where its threshold changes."""
    scene = SCENES[name]
    curve, path = follow(scene)
    written = [folder / f"{name}.svg"]
    with mpl.rc_context(STYLE):
        save(draw_curve(scene, curve), written[0])
        if scene.path:
            written.append(folder / f"{name}-path.svg")
            save(draw_path(scene, path), written[1])
    return written


def stream() -> np.ndarray:
    """Return log-normal norms with a median of 1, and one spike."""
    noise = np.random.default_rng(0).standard_normal(STEPS)
    norms = np.exp(SPREAD * noise).astype(np.float32)
    norms[SPIKE] = HEIGHT
    return norms


def gradient(kind: str, size: jax.Array) -> jax.Array:
    """Return a gradient of a size, of the kind that a scene asks for."""
    if kind == "leaf":
        return jnp.full(4, size)
    if kind == "outlier":
        return jnp.append(jnp.full(63, 0.03), size)
    if kind == "matrix":
        return jnp.diag(jnp.stack([size, jnp.full_like(size, 0.5)]))
    return size[None]


def follow(scene: Scene) -> tuple[Any, Any]:
    """Run a clip over the stream, and over all sizes from where the spike is."""
    clip = make(scene.drawn or scene.plain)
    norm, growth = scene.params
    weights = norm * np.linspace(1, growth, STEPS, dtype=np.float32)
    if scene.kind == "entry":
        sizes = np.linspace(-3, 3, 241, dtype=np.float32)
    else:
        sizes = np.geomspace(1e-2, 1e2, 161).astype(np.float32)

    def step(state: Any, inputs: Any) -> tuple[Any, Any]:
        size, weight = inputs
        grads = gradient(scene.kind, size)
        params = jnp.full(grads.shape, weight)
        updates, new = clip.update(grads, state, params)
        return new, measured(scene, size, updates, new)

    @jax.jit
    def run(norms: jax.Array, weights: jax.Array, sizes: jax.Array) -> Any:
        start = clip.init(gradient(scene.kind, norms[0]))
        before = SPIKE if scene.path else 1
        usual = jax.tree.map(lambda x: x[:before], (norms, weights))
        state, first = jax.lax.scan(step, start, usual)
        one = lambda size: step(state, (size, weights[before]))[1]  # noqa: E731
        curve = jax.vmap(one)(sizes)
        rest = jax.tree.map(lambda x: x[before:], (norms, weights))
        path = jax.lax.scan(step, state, rest)[1] if scene.path else first
        path = jax.tree.map(lambda *x: jnp.concatenate(x), first, path)
        return curve, path

    return jax.tree.map(np.asarray, run(stream(), weights, sizes))


def measured(scene: Scene, size: jax.Array, updates: jax.Array, state: Any) -> Any:
    """Return what came in, what came out, and the threshold in force."""
    is_clip = lambda node: isinstance(node, clipjax.ClipState)  # noqa: E731
    found = [n for n in jax.tree.leaves(state, is_leaf=is_clip) if is_clip(n)]
    info = found[-1].clip_info
    if scene.as_reported:
        return info.norm_before, info.norm_after, info.clip_threshold
    out = {
        "entry": lambda: updates[0],
        "leaf": lambda: jnp.max(jnp.abs(updates)),
        "outlier": lambda: updates[-1],
        "matrix": lambda: jnp.diag(updates),
    }.get(scene.kind, lambda: jnp.linalg.norm(updates))
    return size, out(), info.clip_threshold


def panel(xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    """Return a figure with one set of axes, in the text size of a phone."""
    figure = Figure(figsize=SIZE, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set_xlabel(xlabel, size=LABEL)
    axes.set_ylabel(ylabel, size=LABEL)
    axes.tick_params(labelsize=TEXT)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def logarithmic(axis: Any) -> None:
    """Label a logarithmic axis in plain numbers."""
    axis.set_major_formatter(plain_number)
    axis.set_minor_locator(NullLocator())


def draw_curve(scene: Scene, curve: Any) -> Figure:
    """Draw the length out against the norm in, on top of the identity."""
    before, after, threshold = curve
    figure, axes = panel(f"{scene.what} in", f"{scene.what} out")
    order = np.argsort(before)
    before, after, threshold = before[order], after[order], threshold[order]
    axes.plot(
        before, before, color=GREY, linewidth=1, linestyle="--", label="as it came"
    )
    if scene.limits and np.isfinite(threshold).any():
        shown = np.where(np.isfinite(threshold), threshold, np.nan)
        axes.plot(before, shown, ":", color=ORANGE, linewidth=1.6, label="threshold")
    if scene.kind == "matrix":
        other = "a second one of 0.5"
        axes.plot(before, after[:, 1], "-.", color=COLORS[3], linewidth=2, label=other)
        after = after[:, 0]
    axes.plot(before, after, color=BLUE, linewidth=2.2, label="after the clip")
    if scene.kind != "entry":
        axes.set(xscale="log", yscale="log")
        bottom = min(after.min(), before.min())
        axes.set_ylim(bottom * 0.7, before.max() * 1.4)
        logarithmic(axes.xaxis)
        logarithmic(axes.yaxis)
    axes.legend(fontsize=TEXT - 0.5, frameon=False, loc="upper left", handlelength=2.2)
    return figure


def draw_path(scene: Scene, path: Any) -> Figure:
    """Draw what came in, the threshold in force, and what came out, step by step."""
    before, after, threshold = path
    figure, axes = panel("step", scene.what)
    steps = np.arange(1, STEPS + 1)
    shown = np.where(np.isfinite(threshold) & (threshold > 0), threshold, np.nan)
    axes.plot(steps, before, color=GREY, linewidth=1, label="in")
    axes.plot(steps, after, color=BLUE, linewidth=1.2, label="out")
    mark = (
        "o" if np.isfinite(shown).sum() < STEPS / 10 else ""
    )  # lone points are no line
    style = {"color": ORANGE, "linewidth": 1.8, "marker": mark, "markersize": 4}
    axes.plot(steps, shown, ":", label="threshold", **style)
    axes.set_yscale("log")
    logarithmic(axes.yaxis)
    axes.legend(fontsize=TEXT - 0.5, frameon=False, loc="upper left", handlelength=2.0)
    return figure


def save(figure: Figure, path: pathlib.Path) -> None:
    """Write a figure that is the same each time, to a hundredth of a point."""
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", text)
    lines = (line.rstrip() for line in text.splitlines())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
